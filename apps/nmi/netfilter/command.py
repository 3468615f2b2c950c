"""Running one program of the system to its end, within a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from podidentity_core.errors import RefusedError, TransientError

_SHOWN_CHARS = 300
"""How much of a program's complaint goes into a message: it may end in a log line or a probe's answer."""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a program ended and what it printed."""

    name: str
    status: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The lines of standard error as one, cut to a readable length."""
        lines = [line.strip() for line in self.err.splitlines() if line.strip() and not line.startswith("#")]
        return "; ".join(lines)[:_SHOWN_CHARS] or "no message"


async def run(*command: str, stdin: str = "", deadline_s: float) -> Finished:
    """Run *command* (found on PATH) and return how it ended, whatever its exit status.

    Raises `RefusedError` when it cannot be started, `TransientError` when it takes longer than *deadline_s*. Nothing
    that was started outlives the call, also when it is cancelled.
    """
    try:
        process = await _started(command, stdin)
    except FileNotFoundError as error:
        raise RefusedError(f"the program {command[0]} is not on PATH: install it in the image") from error
    except OSError as error:
        raise TransientError(f"cannot start {command[0]}: {error.strerror or error}") from error
    try:
        async with asyncio.timeout(deadline_s):
            out, err = await process.communicate()
    except TimeoutError as error:
        await _end(process)
        raise TransientError(f"{command[0]} did not finish within {deadline_s:g} s and was ended") from error
    except asyncio.CancelledError:
        await _end(process)
        raise
    return Finished(command[0], process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace"))


async def _started(command: Sequence[str], stdin: str) -> Process:
    with _readable(stdin) as source:
        # A session of its own: whatever the program starts is ended with it, and a Ctrl-C in the terminal that meets
        # NMI does not end a half-done command.
        starting = asyncio.create_task(
            asyncio.create_subprocess_exec(*command, stdin=source, stdout=PIPE, stderr=PIPE, start_new_session=True)
        )
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            # Cancelled half-way, the start would leave behind what the program has started already.
            with contextlib.suppress(OSError):
                await _end(await starting)
            raise


def _readable(text: str) -> BinaryIO:
    """Return a file in memory that holds *text*: a pipe breaks when the program ends before it has read everything."""
    file = os.fdopen(os.memfd_create("stdin"), "w+b")
    file.write(text.encode())
    file.seek(0)
    return file


async def _end(process: Process) -> None:
    """End *process* and all that it started, which may still run when the process itself has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
