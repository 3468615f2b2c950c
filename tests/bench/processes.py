"""Programs that are measured: started, kept on a core of their own, and what they have used."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

_CORES = sorted(os.sched_getaffinity(0))
CLIENTS_CORE, SERVERS_CORE = _CORES[0], _CORES[-1]
"""Clients and servers do not take each other's core, where there are two. Servers that are compared share theirs."""


@asynccontextmanager
async def program(
    argv: tuple[str, ...], environ: Mapping[str, str], *, core: int | None = None, **streams: Any
) -> AsyncIterator[Process]:
    """A Python program, on *core* if that is given, which ends with the context."""
    streams = {"stdin": DEVNULL, **streams}
    process = await asyncio.create_subprocess_exec(sys.executable, *argv, env=dict(environ), **streams)
    if core is not None:
        os.sched_setaffinity(process.pid, {core})
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Keep this process on *core*."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used since its start, all threads, to the nanosecond."""
    return time.clock_gettime((~pid << 3) | 2)  # the clock that clock_getcpuclockid(3) would name


def pss_mb(pid: int) -> float:
    """Return the memory of a process in MiB, with its share of what it shares."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
