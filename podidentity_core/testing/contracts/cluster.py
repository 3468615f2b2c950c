"""What every ClusterReader must do.

Subclass the contract, name the subclass `Test...`, and override its fixtures; each test is a sentence of the contract.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from itertools import groupby
from typing import Protocol, cast

import pytest

from podidentity_core.model import (
    Assignment,
    AssignmentState,
    Change,
    ExceptionRule,
    Gone,
    Key,
    Node,
    Pod,
    PodPhase,
    Seen,
    Synced,
    Thing,
)
from podidentity_core.ports import ClusterReader
from podidentity_core.testing import builders

_PATIENCE_S = 20.0


class ClusterWorld(Protocol):
    """The rest of the cluster, as a test plays it: not by way of the ports that are under test."""

    async def put(self, thing: Thing) -> None:
        """Let *thing* exist, or be like this from now on."""
        ...

    async def remove(self, thing: Thing) -> None:
        """Let *thing* vanish."""
        ...

    async def assignments(self) -> Mapping[Key, Assignment]:
        """Read the assignments that are stored now."""
        ...


def content(thing: Thing) -> Thing:
    """Give *thing* without what a server chooses: uid and version."""
    if isinstance(thing, Node | ExceptionRule):
        return thing
    if isinstance(thing, Pod):
        return replace(thing, uid="")
    return replace(thing, uid="", resource_version="")


class Follower:
    """What a reader has told so far."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.batches: list[Sequence[Change]] = []
        self._news = asyncio.Event()

    async def follow(self, reader: ClusterReader) -> None:
        """Take in all changes, for ever."""
        async with aclosing(_stream(reader)) as stream:
            async for batch in stream:
                self.batches.append(batch)
                self.changes += batch
                self._news.set()

    @property
    def things(self) -> Mapping[tuple[type[Thing], Key], Thing]:
        """What exists, by the changes so far."""
        exist: dict[tuple[type[Thing], Key], Thing] = {}
        for change in self.changes:
            if isinstance(change, Seen):
                exist[type(change.thing), change.thing.key] = content(change.thing)
            elif isinstance(change, Gone):
                exist.pop((change.kind, change.key), None)
        return exist

    def knows(self, thing: Thing) -> bool:
        """Whether *thing* exists, and is just like this."""
        return self.things.get((type(thing), thing.key)) == content(thing)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a change that makes *condition* true."""
        async with asyncio.timeout(_PATIENCE_S):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def until_synced(self) -> None:
        """Wait until everything that existed has been told."""
        await self.until(lambda: Synced() in self.changes)


@asynccontextmanager
async def following(reader: ClusterReader) -> AsyncIterator[Follower]:
    """Follow *reader* in the background."""
    follower = Follower()
    task = asyncio.create_task(follower.follow(reader))
    try:
        yield follower
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


_POD = builders.pod()
_RULE = builders.exception_rule()
_ASSIGNMENT = builders.assignment()
_THINGS: Sequence[tuple[Thing, Thing]] = (
    (_POD, replace(_POD, phase=PodPhase.SUCCEEDED)),
    (builders.vmss_node("node-1"), builders.vmss_node("node-1", "another")),
    (builders.identity(), builders.identity(client="changed")),
    (builders.binding(), builders.binding(selector="changed")),
    (_ASSIGNMENT, replace(_ASSIGNMENT, state=AssignmentState.UNASSIGNED)),
    (_RULE, replace(_RULE, pod_labels={"app": "changed"})),
)
_NAMES = [type(thing).__name__ for thing, _ in _THINGS]


class ClusterReaderContract:
    """The contract of `ClusterReader`."""

    @pytest.fixture
    def world(self) -> ClusterWorld:
        """Override: the cluster that *reader* reads, empty but for nodes."""
        raise NotImplementedError

    @pytest.fixture
    def reader(self, world: ClusterWorld) -> ClusterReader:
        """Override: a reader of all kinds."""
        raise NotImplementedError

    async def test_what_exists_is_told_before_synced(self, world: ClusterWorld, reader: ClusterReader) -> None:
        for thing, _ in _THINGS:
            await world.put(thing)

        async with following(reader) as told:
            await told.until_synced()
            before = told.changes[: told.changes.index(Synced())]

        seen = [content(change.thing) for change in before if isinstance(change, Seen)]
        assert all(content(thing) in seen for thing, _ in _THINGS)
        assert told.changes.count(Synced()) == 1

    async def test_an_empty_cluster_is_synced_too(self, reader: ClusterReader) -> None:
        async with following(reader) as told:
            await told.until_synced()

        assert not any(isinstance(change, Gone) for change in told.changes)

    @pytest.mark.parametrize(("thing", "changed"), _THINGS, ids=_NAMES)
    async def test_a_beginning_a_change_and_an_end_are_told(
        self, world: ClusterWorld, reader: ClusterReader, thing: Thing, changed: Thing
    ) -> None:
        async with following(reader) as told:
            await told.until_synced()
            await world.put(thing)
            await told.until(lambda: told.knows(thing))
            await world.put(changed)
            await told.until(lambda: told.knows(changed))
            await world.remove(changed)
            await told.until(lambda: (type(thing), thing.key) not in told.things)

        assert all(told.batches), "a batch is never empty"

    async def test_a_successor_of_the_same_name_comes_after_the_end_of_its_predecessor(
        self, world: ClusterWorld, reader: ClusterReader
    ) -> None:
        first, second = builders.pod(uid="first"), builders.pod(uid="second", node="node-2")
        async with following(reader) as told:
            await told.until_synced()
            await world.put(first)
            await told.until(lambda: told.knows(first))
            await world.remove(first)
            await world.put(second)
            await told.until(lambda: told.knows(second))

        steps = [change for change in told.changes if isinstance(change, Seen | Gone) and _is_pod(change)]
        assert [kind for kind, _ in groupby(steps, type)] == [Seen, Gone, Seen]
        (gone,) = [step for step in steps if isinstance(step, Gone)]
        assert isinstance(steps[0], Seen)
        assert isinstance(steps[0].thing, Pod)
        assert gone.uid == steps[0].thing.uid

    async def test_once_closed_it_has_ended(self, reader: ClusterReader) -> None:
        stream = _stream(reader)
        async with asyncio.timeout(_PATIENCE_S):
            await anext(stream)
            await stream.aclose()

            with pytest.raises(StopAsyncIteration):
                await anext(stream)


def _stream(reader: ClusterReader) -> AsyncGenerator[Sequence[Change], None]:
    return cast("AsyncGenerator[Sequence[Change], None]", reader.changes())  # "closing the iterator" is in the contract


def _is_pod(change: Seen | Gone) -> bool:
    return (change.kind if isinstance(change, Gone) else type(change.thing)) is Pod
