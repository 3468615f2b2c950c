"""Work by key: one handler at a time per key, however often the key is added; failures wait longer each time.

The level-triggered pattern of Kubernetes controllers: a key says "look again at this", never what has happened.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from podidentity_core.errors import Conflict, PodIdentityError, Throttled
from podidentity_core.ports import Clock
from podidentity_core.services.waiting import wait_at_most

K = TypeVar("K", bound=Hashable)

Handler = Callable[[K], Awaitable[float | None]]
"""Handles one key. May return the seconds after which to look again; raises `PodIdentityError` when it failed."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits after failures: *first_s*, *factor* times as long each time up to *most_s*, shortened by up to half."""

    first_s: float = 0.5
    most_s: float = 60.0
    factor: float = 2.0

    def delay_s(self, failures: int, chance: float) -> float:
        """The wait after the *failures*-th failure in a row; *chance* lies in [0, 1)."""
        longest: float = min(self.most_s, self.first_s * self.factor ** min(failures - 1, 30))
        return longest * (1 - chance / 2)


@dataclass(slots=True)
class _Entry:
    again: bool = False
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class WorkQueue(Generic[K]):
    """Runs *handle* for each added key, *parallel* at once.

    A key that is added while its handler runs is handled once more afterwards. After a failure a key waits out its
    back-off; adding it ends that wait early, unless the queue is *patient*: a host that throttles us is left alone
    whatever happens meanwhile. Keys of which *can_wait* is true take no more than half of the places.
    """

    def __init__(
        self,
        handle: Handler[K],
        *,
        clock: Clock,
        chance: Callable[[], float],
        parallel: int,
        backoff: Backoff = Backoff(),
        patient: bool = False,
        can_wait: Callable[[K], bool] = lambda _: False,
    ) -> None:
        self._handle = handle
        self._clock = clock
        self._chance = chance
        self._slots = asyncio.Semaphore(parallel)
        self._half_of_the_slots = asyncio.Semaphore((parallel + 1) // 2)
        self._can_wait = can_wait
        self._backoff = backoff
        self._patient = patient
        self._entries: dict[K, _Entry] = {}
        self._group: asyncio.TaskGroup | None = None

    def add(self, key: K) -> None:
        """Have *key* looked at, now or as soon as its turn comes."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.again = True
            entry.wake.set()
            return
        self._entries[key] = _Entry()
        if self._group is not None:
            self._group.create_task(self._serve(key))

    async def run(self) -> None:
        """Work, until cancelled. Keys may be added before."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            for key in tuple(self._entries):
                group.create_task(self._serve(key))
            try:
                await asyncio.Event().wait()
            finally:
                self._group = None  # handlers that are being cancelled may still add keys

    async def _serve(self, key: K) -> None:
        entry = self._entries[key]
        failures = 0
        while True:
            entry.again = False
            entry.wake.clear()
            try:
                again_in_s = await self._handle_in_turn(key)
            except PodIdentityError as error:
                failures += 1
                delay_s = self._delay_s(error, failures)
                level = logging.INFO if isinstance(error, Throttled | Conflict) else logging.ERROR  # only to wait
                log.log(level, "%s failed, next attempt in %.1f s, error: %s", key, delay_s, error)
                await self._pause(entry, delay_s, patient=self._patient)
                continue
            failures = 0
            if again_in_s is not None and not entry.again:
                await self._pause(entry, again_in_s, patient=False)
            elif not entry.again:
                break
        del self._entries[key]

    async def _handle_in_turn(self, key: K) -> float | None:
        if not self._can_wait(key):
            async with self._slots:
                return await self._handle(key)
        async with self._half_of_the_slots, self._slots:
            return await self._handle(key)

    def _delay_s(self, error: PodIdentityError, failures: int) -> float:
        delay_s = self._backoff.delay_s(failures, self._chance())
        return max(delay_s, error.retry_after_s) if isinstance(error, Throttled) else delay_s

    async def _pause(self, entry: _Entry, delay_s: float, *, patient: bool) -> None:
        if patient:
            await self._clock.sleep(delay_s)
        else:
            await wait_at_most(delay_s, entry.wake.wait(), self._clock)
