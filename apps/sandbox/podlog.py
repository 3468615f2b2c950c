"""What a pod's process has printed, for `kubectl logs`."""

from __future__ import annotations

import asyncio


class PodLog:
    """Output that grows until its writer is done; any number of readers follow it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.done = False
        self._changed = asyncio.Event()

    def write(self, text: bytes) -> None:
        """Append output."""
        self.data += text
        self._wake()

    def finish(self) -> None:
        """Let followers end."""
        self.done = True
        self._wake()

    async def after(self, at: int) -> bytes:
        """Wait for output beyond position *at* and return it; empty once there will be no more."""
        while len(self.data) <= at and not self.done:
            await self._changed.wait()
        return bytes(self.data[at:])

    def tail(self, lines: int | None) -> int:
        """Return the position where the last *lines* lines begin (all lines if None)."""
        if lines is None:
            return 0
        kept = bytes(self.data).splitlines(keepends=True)[-lines:] if lines else []
        return len(self.data) - sum(map(len, kept))

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
