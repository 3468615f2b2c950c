"""A clock that stands still until a test moves it."""

from __future__ import annotations

import asyncio
import heapq
from itertools import count
from typing import TYPE_CHECKING

from podidentity_core.ports import Clock

_MOST_ROUNDS = 1_000_000


class FakeClock:
    """Clock whose time passes only in `advance`. Wall time moves along, from *wall_s* on."""

    def __init__(self, *, wall_s: float = 1_700_000_000.0) -> None:
        self._now_s = 0.0
        self._wall_offset_s = wall_s
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = count()

    def monotonic_s(self) -> float:
        """Seconds since the clock was made."""
        return self._now_s

    def wall_s(self) -> float:
        """Seconds since the epoch, as far as this clock goes."""
        return self._wall_offset_s + self._now_s

    async def sleep(self, seconds: float) -> None:
        """Return when `advance` has moved the time by *seconds*; at once, as any await may, for none."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now_s + seconds, next(self._order), woken))
        await woken

    async def advance(self, seconds: float) -> None:
        """Let *seconds* pass. Sleepers wake one by one in the order of their times, then of their falling asleep.

        After each one everything runs that can run, so whoever wakes early may fall asleep again and still wake
        within *seconds*.
        """
        until_s = self._now_s + seconds
        await settle()
        while (due_s := self.next_wake_s()) is not None and due_s <= until_s:
            self.wake_next()
            await settle()
        self._now_s = max(self._now_s, until_s)

    def wake_next(self) -> None:
        """Move the time to the next sleeper's, and wake it; it runs when the loop does. Somebody must be asleep."""
        due_s = self.next_wake_s()
        assert due_s is not None, "nobody sleeps"
        self._now_s = max(self._now_s, due_s)
        heapq.heappop(self._sleepers)[2].set_result(None)

    def next_wake_s(self) -> float | None:
        """When the next sleeper wakes, in monotonic seconds; None when nobody sleeps."""
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)  # it was cancelled
        return self._sleepers[0][0] if self._sleepers else None


class RestlessClock:
    """*clock* as a program sees a real one: *tick_s* pass with each look at it, and sleep ends *early_s* too early."""

    def __init__(self, clock: FakeClock, *, tick_s: float = 0.00001, early_s: float = 0.001) -> None:
        self._clock = clock
        self._tick_s = tick_s
        self._early_s = early_s

    def monotonic_s(self) -> float:
        """Seconds since the clock was made."""
        self._clock._now_s += self._tick_s  # noqa: SLF001  # time passes for all who go by it
        return self._clock.monotonic_s()

    def wall_s(self) -> float:
        """Seconds since the epoch, as far as this clock goes."""
        return self._clock.wall_s()

    async def sleep(self, seconds: float) -> None:
        """Return when `advance` has moved the time by nearly *seconds*."""
        await self._clock.sleep(seconds - self._early_s)


async def settle() -> None:
    """Let the loop run until every task waits for something: another's doing, a clock, or a socket."""
    ready = asyncio.get_running_loop()._ready  # type: ignore[attr-defined]  # noqa: SLF001  # asyncio does not tell otherwise
    for _ in range(_MOST_ROUNDS):
        await asyncio.sleep(0)
        if not ready:
            return
    raise AssertionError("the loop does not come to rest: some task keeps itself busy")


if TYPE_CHECKING:
    _: type[Clock] = FakeClock
    __: type[Clock] = RestlessClock
