"""How often something may be done: a token bucket without a background task."""

from __future__ import annotations

from podidentity_core.ports import Clock


class RateLimit:
    """Lets *per_s* calls a second pass, after a first burst of *burst*; the others wait, in order of arrival."""

    def __init__(self, per_s: float, *, burst: int, clock: Clock) -> None:
        self._interval_s = 1 / per_s
        self._clock = clock
        self._head_start_s = max(burst - 1, 0) * self._interval_s
        self._next_s = clock.monotonic_s() - self._head_start_s

    async def wait(self) -> None:
        """Return when the caller may go on. A caller that is cancelled while it waits has used up its place."""
        now_s = self._clock.monotonic_s()
        turn_s = max(self._next_s, now_s - self._head_start_s)
        self._next_s = turn_s + self._interval_s
        if turn_s > now_s:
            await self._clock.sleep(turn_s - now_s)
