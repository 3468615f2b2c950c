"""Programs that the demo runs beside itself, and what they print."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

_END_S = 15.0


class ProgramEnded(Exception):
    """A program ended, or did not say in time what was waited for; the message holds its last lines."""


class Program:
    """One child process. Leaving the context ends it, by SIGTERM and, if that does not help, by SIGKILL."""

    def __init__(self, name: str, argv: Sequence[str], environ: Mapping[str, str]) -> None:
        self.name = name
        self.lines: list[str] = []
        self._argv = argv
        self._environ = environ
        self._news = asyncio.Condition()
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *self._argv,
            env=dict(self._environ),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the demo, which then ends this process in order
        )
        self._reading = asyncio.create_task(self._read(self._process))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None or self._reading is None:
            return
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(_END_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._reading

    async def line(self, text: str, within_s: float) -> str:
        """Return the first line that contains *text*, as soon as it is there. Raises ProgramEnded."""
        seen = 0
        try:
            async with asyncio.timeout(within_s), self._news:
                while True:
                    for line in self.lines[seen:]:
                        if text in line:
                            return line
                    seen = len(self.lines)
                    if self._reading is None or self._reading.done():
                        raise ProgramEnded(self._tail("ended"))
                    await self._news.wait()
        except TimeoutError:
            raise ProgramEnded(self._tail(f"did not print {text!r} within {within_s:.0f} s")) from None

    def _tail(self, what: str) -> str:
        return "\n".join((f"{self.name} {what}; its last lines:", *(f"    {line}" for line in self.lines[-15:])))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101 - it was asked for above
        try:
            async for raw in process.stdout:
                await self._note(raw.decode(errors="replace").rstrip("\n"))
        finally:
            await self._note(None)

    async def _note(self, line: str | None) -> None:
        async with self._news:
            if line is not None:
                self.lines.append(line)
            self._news.notify_all()
