"""Turns at a service that counts its calls: so many at once, so many a second, and each key in its turn.

A call counts from its beginning until a second after its end. The service takes it in some time between the two, so
it never sees more in a second than it allows, however long each call is on its way.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

from podidentity_core.errors import Throttled
from podidentity_core.ports import Clock
from podidentity_core.services.waiting import wait_at_most

COUNTED_S = 1.0
"""How long a call still counts after its end."""

LONGEST_PAUSE_S = 10.0
"""A longer pause than this is not believed: whatever ends it early is not told to us."""


class Turns:
    """Gives turns at *service* (its name in messages). One for all calls that the service counts together.

    Keys that wait take turns one after the other, so a new one waits for at most one turn of each of the others; within
    a key the first comes first. How many may wait is the callers' affair.
    """

    def __init__(self, service: str, clock: Clock, *, at_once: int, per_second: int) -> None:
        self._service = service
        self._clock = clock
        self._at_once = at_once
        self._per_second = per_second
        self._running = 0
        self._ended: deque[float] = deque()
        self._paused_until_s = clock.monotonic_s()
        self._waiting: OrderedDict[Hashable, deque[asyncio.Event]] = OrderedDict()
        self._alarm: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def turn(self, key: Hashable, *, within_s: float) -> AsyncIterator[None]:
        """Wait for a turn of *key*; the call is what happens inside. To call again takes another turn.

        Raises:
            Throttled: no turn came within *within_s*; says how long those who wait now will take.
        """
        await self._wait(key, within_s)
        try:
            yield
        finally:
            self._running -= 1
            self._ended.append(self._clock.monotonic_s())
            self._give()

    def pause(self, seconds: float) -> None:
        """Let nobody begin for *seconds*, or for the longest pause; what runs goes on."""
        until_s = self._clock.monotonic_s() + min(seconds, LONGEST_PAUSE_S)
        self._paused_until_s = max(self._paused_until_s, until_s)

    async def _wait(self, key: Hashable, within_s: float) -> None:
        given = asyncio.Event()
        self._waiting.setdefault(key, deque()).append(given)
        self._give()
        try:
            if not given.is_set():
                await wait_at_most(within_s, given.wait(), self._clock)
            if not given.is_set():
                raise self._too_many(within_s)
        except asyncio.CancelledError:
            if given.is_set():
                self._running -= 1  # it was given, and nobody is here to take it: no call was made
                self._give()
            raise
        finally:
            if not given.is_set():
                self._leave(key, given)

    def _too_many(self, within_s: float) -> Throttled:
        waiting = sum(map(len, self._waiting.values()))
        pause_s = self._paused_until_s - self._clock.monotonic_s()
        return Throttled(
            f"{waiting} calls wait for {self._service}, which takes {self._per_second} a second and {self._at_once} at "
            f"once; this one had no turn within {within_s:.0f} s",
            retry_after_s=max(1.0, pause_s, waiting / self._per_second),
        )

    def _leave(self, key: Hashable, given: asyncio.Event) -> None:
        queue = self._waiting[key]
        queue.remove(given)
        if not queue:
            del self._waiting[key]
        if not self._waiting and self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _give(self) -> None:
        """Give what turns there are; if only time keeps the next one back, come again then."""
        while self._waiting and self._running < self._at_once:
            wait_s = self._next_s() - self._clock.monotonic_s()
            if wait_s > 0:
                if self._alarm is None:
                    self._alarm = asyncio.create_task(self._give_in(wait_s))
                return
            self._running += 1
            self._next().set()

    def _next_s(self) -> float:
        """When to look again for a turn, as far as the time decides; one is free if that is not to come."""
        while self._ended and self._ended[0] + COUNTED_S <= self._clock.monotonic_s():
            self._ended.popleft()
        full = self._running + len(self._ended) >= self._per_second
        return self._ended[0] + COUNTED_S if full else self._paused_until_s

    def _next(self) -> asyncio.Event:
        """Take the first of the key whose turn it is, and put the key behind the others."""
        key, queue = next(iter(self._waiting.items()))
        given = queue.popleft()
        if queue:
            self._waiting.move_to_end(key)
        else:
            del self._waiting[key]
        return given

    async def _give_in(self, seconds: float) -> None:
        await self._clock.sleep(seconds)
        self._alarm = None
        self._give()
