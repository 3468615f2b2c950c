"""Waiting for the first of two things, without leaving the other behind."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from podidentity_core.ports import Clock


def take_note(call: asyncio.Future[Any]) -> None:
    """Look at a failure that nobody waits for any more, so that asyncio does not report it as lost."""
    if not call.cancelled():
        call.exception()


async def wait_at_most(seconds: float, happening: Coroutine[Any, Any, object], clock: Clock) -> None:
    """Return when *happening* has happened, or after *seconds*."""
    sleeper = asyncio.ensure_future(clock.sleep(seconds))
    waiter = asyncio.ensure_future(happening)
    try:
        await asyncio.wait((sleeper, waiter), return_when=asyncio.FIRST_COMPLETED)
    finally:
        sleeper.cancel()
        waiter.cancel()
