"""How both daemons start: the command line, the log, the event loop, and what becomes of a wrong setting."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import uvloop

from apps import klog
from apps.goflags import TextRequested, UsageError, answer
from podidentity_core.errors import ConfigurationError

log = logging.getLogger(__name__)


class Config(Protocol):
    """What every daemon's settings have."""

    @property
    def log(self) -> klog.LogOptions:
        """How to log."""
        ...


C = TypeVar("C", bound=Config)


def run_daemon(
    parse: Callable[[Sequence[str], Mapping[str, str]], C],
    run: Callable[[C], Awaitable[int]],
    argv: Sequence[str] | None,
) -> int:
    """Run a daemon with *argv* (None: the process's own); returns the exit code.

    A wrong command line is 2, a setting or port that cannot be used 1, with one line that says what to do.
    """
    try:
        config = parse(sys.argv[1:] if argv is None else argv, os.environ)
    except (UsageError, TextRequested) as outcome:
        return answer(outcome)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 1
    klog.setup(config.log)
    try:
        return uvloop.run(_coroutine(run, config))
    except ConfigurationError as error:
        log.critical("%s", error)
        return 1


async def _coroutine(run: Callable[[C], Awaitable[int]], config: C) -> int:
    return await run(config)


async def first_of(terminated: asyncio.Future[signal.Signals], *tasks: asyncio.Task[Any]) -> None:
    """Return when a signal has come; raise what breaks a task before."""
    await asyncio.wait((terminated, *tasks), return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        if task.done():
            task.result()
    log.info("received %s, shutting down", terminated.result().name)


async def stopped(task: asyncio.Task[Any]) -> None:
    """Cancel *task*, and return when it has ended."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
