"""What every LeaderLock must do.

Subclass the contract, name the subclass `Test...`, and override its fixtures; each test is a sentence of the contract.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from podidentity_core.ports import LeaderLock

_PATIENCE_S = 20.0


class LeaderLockContract:
    """The contract of `LeaderLock`."""

    @pytest.fixture
    def candidate(self) -> Callable[[str], LeaderLock]:
        """Override: make another candidate, with an identity of its own, for one and the same lock."""
        raise NotImplementedError

    async def test_one_leads_and_the_next_one_when_its_work_has_ended(
        self, candidate: Callable[[str], LeaderLock]
    ) -> None:
        first, second = _Work(candidate("first")), _Work(candidate("second"))
        async with leading(first), asyncio.timeout(_PATIENCE_S):
            await first.started.wait()
            async with leading(second):
                first.linger = True
                first.leave()
                await first.ending.wait()
                assert first.lock.is_held(), "the lock is kept until the work has ended"
                assert not second.started.is_set()
                assert not second.lock.is_held()

                first.may_end.set()
                await second.started.wait()

                assert first.ended
                assert not first.lock.is_held()

    async def test_it_is_held_during_the_work_only(self, candidate: Callable[[str], LeaderLock]) -> None:
        work = _Work(candidate("only"))
        before = work.lock.is_held()
        async with leading(work), asyncio.timeout(_PATIENCE_S):
            await work.started.wait()
            during = work.lock.is_held()

        assert (before, during, work.lock.is_held()) == (False, True, False)

    async def test_work_that_returns_is_campaigned_for_again(self, candidate: Callable[[str], LeaderLock]) -> None:
        turns: asyncio.Queue[int] = asyncio.Queue()

        async def work() -> None:
            turns.put_nowait(1)

        leader = asyncio.create_task(candidate("only").lead(work))
        async with asyncio.timeout(_PATIENCE_S):
            await turns.get()
            await turns.get()
        leader.cancel()
        with suppress(asyncio.CancelledError):
            await leader

    async def test_an_error_of_the_work_is_raised_and_the_next_one_leads(
        self, candidate: Callable[[str], LeaderLock]
    ) -> None:
        async def work() -> None:
            raise ZeroDivisionError

        broken, next_one = candidate("broken"), _Work(candidate("next"))
        async with asyncio.timeout(_PATIENCE_S):
            with pytest.raises(ZeroDivisionError):
                await broken.lead(work)

            assert not broken.is_held()
            async with leading(next_one):
                await next_one.started.wait()


class _Work:
    """Work that goes on until it is cancelled, and then, if it is to *linger*, until it may end."""

    def __init__(self, lock: LeaderLock) -> None:
        self.lock = lock
        self.started, self.ending, self.may_end = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.linger = self.ended = False
        self.task: asyncio.Task[None] | None = None

    async def __call__(self) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ending.set()
            if self.linger:
                await self.may_end.wait()
            self.ended = True

    def leave(self) -> None:
        assert self.task is not None
        self.task.cancel()


@asynccontextmanager
async def leading(work: _Work) -> AsyncIterator[None]:
    """Campaign for *work* in the background."""
    work.task = asyncio.create_task(work.lock.lead(work))
    try:
        yield
    finally:
        work.may_end.set()
        work.leave()
        with suppress(asyncio.CancelledError):
            await work.task
