"""The project's programs as processes, with what they print."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

PATIENCE_S = 20.0
ANY_PORTS = ("--http-probe-port=0", "--prometheus-port=0")


class Daemon:
    """One process. *lines* has what it has printed so far, to either stream."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.process = process
        self.lines: list[str] = []
        self._news = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    async def line(self, *words: str, after: int = 0) -> str:
        """Return the first line, from line *after* on, that has all *words*, once there is one."""
        at = after
        async with asyncio.timeout(PATIENCE_S):
            while True:
                self._news.clear()
                for line in self.lines[after:]:
                    if all(word in line for word in words):
                        return line
                after = max(after, at)
                assert not self._reading.done(), f"{self.name} ended without saying {words}:\n{self.output}"
                await self._news.wait()

    async def exit_code(self) -> int:
        """Wait for the process to end by itself, and for all it has to say."""
        async with asyncio.timeout(PATIENCE_S):
            await self._reading
            return await self.process.wait()

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, and return the exit code."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)
        return await self.exit_code()

    async def _read(self) -> None:
        assert self.process.stdout is not None
        try:
            async for raw in self.process.stdout:
                self.lines.append(raw.decode(errors="replace").rstrip("\n"))
                self._news.set()
        finally:
            self._news.set()


@asynccontextmanager
async def daemon(
    name: str, *flags: str, environ: Mapping[str, str] | None = None, module: str = ""
) -> AsyncIterator[Daemon]:
    """Run `python -m apps.NAME` (or *module*) with *flags*, in a process group of its own; kill it at the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module or f"apps.{name}", *flags),
        env={**os.environ, "MIC_POD_NAMESPACE": "default", **(environ or {})},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_take_interrupts,
    )
    running = Daemon(name, process)
    try:
        yield running
    finally:
        if process.returncode is None:
            await running.end(signal.SIGKILL)


def _take_interrupts() -> None:
    """Undo what a shell does to everything that it starts in the background: there SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


async def until(condition: Callable[[], Any], what: str = "") -> Any:
    """Return what *condition* returns, once it is true."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not (found := condition()):  # noqa: ASYNC110  # what a sandbox has seen sets no event
                await asyncio.sleep(0.005)
            return found
    except TimeoutError:
        raise AssertionError(f"{what or condition} did not come true within {PATIENCE_S:.0f} s") from None
