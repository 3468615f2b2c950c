"""The real time."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from podidentity_core.ports import Clock


class SystemClock:
    """The machine's clocks, and asyncio's sleep."""

    def monotonic_s(self) -> float:
        """Seconds that never jump."""
        return time.monotonic()

    def wall_s(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Return after *seconds*."""
        await asyncio.sleep(seconds)


if TYPE_CHECKING:
    _: type[Clock] = SystemClock
