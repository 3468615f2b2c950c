"""A cluster in memory: what MIC and NMI read from it and write to it, its events, and its leader's lock."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from podidentity_core.errors import Conflict, NotFound
from podidentity_core.model import (
    Assignment,
    AssignmentState,
    Binding,
    Change,
    Gone,
    Identity,
    Key,
    Pod,
    Seen,
    Synced,
    Thing,
    Unusable,
)
from podidentity_core.ports import AssignmentStore, ClusterReader, Event, EventSink, LeaderLock, PodReader

T = TypeVar("T", bound="Thing | Unusable")


class Call(NamedTuple):
    """A call that was made to the fake: `create`, `update`, `set_state`, `delete` (with the state) or `pods`."""

    operation: str
    key: Key
    state: AssignmentState | None = None


class FakeCluster:
    """ClusterReader, PodReader and AssignmentStore in memory: versions, conflicts, failures on request.

    Tests play the rest of the cluster with `put` and `remove`. Every reader sees every change, in order.
    """

    def __init__(self, *things: Thing, node: str = "") -> None:
        self._node = node
        self.calls: list[Call] = []
        self._things: dict[tuple[type[Thing], Key], Thing | Unusable] = {}
        self._readers: list[asyncio.Queue[Sequence[Change]]] = []
        self._failures: deque[tuple[str, Exception]] = deque()
        self._version = 0
        for thing in things:
            self.put(thing)

    def put(self, thing: T) -> T:
        """Let *thing* exist, or be like this from now on; return it with the uid and version that it was given."""
        kind, key = _place(thing)
        before = self._things.get((kind, key))
        stored = self._numbered(thing, before)
        self._things[kind, key] = stored
        changes: list[Change] = [stored if isinstance(stored, Unusable) else Seen(stored)]
        if before is not None and _uid(before) != _uid(stored):
            changes.insert(0, Gone(kind, key, _uid(before)))
        self._tell(changes)
        return stored

    def remove(self, thing: Thing | Unusable) -> None:
        """Let *thing* vanish at once, whatever version of it is given."""
        kind, key = _place(thing)
        if (before := self._things.pop((kind, key), None)) is not None:
            self._tell([Gone(kind, key, _uid(before))])

    def fail_next(self, error: Exception, *, operation: str = "") -> None:
        """Let the next write (or the next *operation*) raise *error* and change nothing. Further ones queue up."""
        self._failures.append((operation, error))

    @property
    def assignments(self) -> Mapping[Key, Assignment]:
        """The assignments that are stored now."""
        return {key: thing for (_, key), thing in self._things.items() if isinstance(thing, Assignment)}

    async def pods(self) -> Sequence[Pod]:
        """All pods of the node that it was made for, or of all nodes; *calls* has each such look."""
        await self._called(Call("pods", Key("", "")))
        pods = [thing for thing in self._things.values() if isinstance(thing, Pod)]
        return [pod for pod in pods if self._node in ("", pod.node)]

    async def changes(self) -> AsyncIterator[Sequence[Change]]:
        """Yield all that exists, `Synced`, and then each change."""
        news: asyncio.Queue[Sequence[Change]] = asyncio.Queue()
        self._readers.append(news)
        existing = [thing if isinstance(thing, Unusable) else Seen(thing) for thing in self._things.values()]
        try:
            if existing:
                yield existing
            yield [Synced()]
            while True:
                yield await news.get()
        finally:
            self._readers.remove(news)

    async def create(self, assignment: Assignment) -> Assignment:
        """Store it, unless its name is taken."""
        await self._called(Call("create", assignment.key, assignment.state))
        if (Assignment, assignment.key) in self._things:
            raise Conflict(f"AzureAssignedIdentity {assignment.key} already exists")
        return self.put(replace(assignment, uid="", resource_version=""))

    async def update(self, stored: Assignment, wanted: Assignment) -> Assignment:
        """Replace the content, if *stored* is the newest version."""
        await self._called(Call("update", stored.key, wanted.state))
        current = self._current(stored.key)
        if (current.uid, current.resource_version) != (stored.uid, stored.resource_version):
            raise Conflict(f"AzureAssignedIdentity {stored.key} has changed")
        content = replace(wanted, namespace=stored.namespace, name=stored.name, uid=current.uid)
        return self.put(replace(content, deleting=current.deleting))

    async def set_state(self, assignment: Assignment, state: AssignmentState) -> Assignment:
        """Change the state of whatever is stored under the name."""
        await self._called(Call("set_state", assignment.key, state))
        return self.put(replace(self._current(assignment.key), state=state, reason=""))

    async def explain(self, assignment: Assignment, reason: str, at_s: float) -> Assignment:  # noqa: ARG002
        """Note the reason at whatever is stored under the name."""
        await self._called(Call("explain", assignment.key))
        return self.put(replace(self._current(assignment.key), reason=reason))

    async def delete(self, assignment: Assignment) -> None:
        """Remove this very object; one that is gone, or was replaced by another of its name, is success."""
        await self._called(Call("delete", assignment.key))
        current = self._things.get((Assignment, assignment.key))
        if current is not None and assignment.uid in ("", _uid(current)):
            self.remove(current)

    async def _called(self, call: Call) -> None:
        self.calls.append(call)
        await asyncio.sleep(0)  # as over a network, others run before the answer
        for index, (operation, error) in enumerate(self._failures):
            if operation in ("", call.operation):
                del self._failures[index]
                raise error

    def _current(self, key: Key) -> Assignment:
        current = self._things.get((Assignment, key))
        if not isinstance(current, Assignment):
            raise NotFound(f"AzureAssignedIdentity {key} does not exist")
        return current

    def _numbered(self, thing: T, before: Thing | Unusable | None) -> T:
        self._version += 1
        uid = _uid(thing) or (_uid(before) if before is not None else "") or f"uid-{self._version}"
        if isinstance(thing, Identity | Binding | Assignment):
            return replace(thing, uid=uid, resource_version=str(self._version))
        return thing

    def _tell(self, changes: Sequence[Change]) -> None:
        for news in self._readers:
            news.put_nowait(changes)


def _place(thing: Thing | Unusable) -> tuple[type[Thing], Key]:
    return (thing.kind if isinstance(thing, Unusable) else type(thing)), thing.key


def _uid(thing: Thing | Unusable) -> str:
    return getattr(thing, "uid", "")  # nodes and exception rules have none


class FakeEvents:
    """Keeps what was published."""

    def __init__(self) -> None:
        self.published: list[Event] = []

    def publish(self, event: Event) -> None:
        """Append *event*."""
        self.published.append(event)


class FakeLeaderLock:
    """A LeaderLock within one process: those that are given the same *seat* lead one at a time."""

    def __init__(self, seat: asyncio.Lock | None = None) -> None:
        self._seat = seat or asyncio.Lock()
        self._lost = asyncio.Event()
        self._held = False

    async def lead(self, work: Callable[[], Awaitable[None]]) -> None:
        """Wait for the seat, work, leave the seat, and queue again; for ever."""
        while True:
            async with self._seat:
                await self._work(work)
            await asyncio.sleep(0)

    async def _work(self, work: Callable[[], Awaitable[None]]) -> None:
        self._lost.clear()
        self._held = True
        working = asyncio.ensure_future(work())
        losing = asyncio.ensure_future(self._lost.wait())
        try:
            await asyncio.wait({working, losing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._held = self._held and not self._lost.is_set()
            losing.cancel()
            working.cancel()
            await asyncio.wait({working, losing})
            self._held = False
        if not working.cancelled():
            working.result()

    def lose(self) -> None:
        """Let the leader lose the lock, as after a network failure."""
        self._held = False
        self._lost.set()

    def is_held(self) -> bool:
        """Whether this one leads now."""
        return self._held


if TYPE_CHECKING:
    _reader: type[ClusterReader] = FakeCluster
    _pods: type[PodReader] = FakeCluster
    _store: type[AssignmentStore] = FakeCluster
    _sink: type[EventSink] = FakeEvents
    _lock: type[LeaderLock] = FakeLeaderLock
