"""The fakes behind a bad network: calls take time, fail, or do their work and lose the answer; news come late.

A request that is under way when its caller dies or gives up may still arrive.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from random import Random
from typing import Protocol, TypeVar

from podidentity_core.errors import Conflict, PermissionRefused, PodIdentityError, Throttled, TransientError
from podidentity_core.model import Assignment, AssignmentState, Change, Gone, Seen, Synced, Thing, Unusable
from podidentity_core.ports import HostState
from podidentity_core.resource_ids import Host, IdentityResource
from podidentity_core.testing.clock import FakeClock
from podidentity_core.testing.fakes import FakeCluster, FakeHosts, FakeLeaderLock
from tests.simulation.watch import Lane

T = TypeVar("T")

LATEST_S = 2.0
"""No request takes longer one way."""


class Network:
    """How bad it is: *api_trouble* and *arm_trouble* are the shares of requests that fail, *lag_s* how old news get.

    *late* is the share of requests under way that still arrive when their sender dies.
    """

    def __init__(self, clock: FakeClock, chance: Random, *, late: float) -> None:
        self.clock = clock
        self.chance = chance
        self.late = late
        self.failed_s = -1e9
        """When the last request to the API server failed."""
        self.calm()

    def calm(self) -> None:
        """Nothing fails any more."""
        self.api_trouble = self.arm_trouble = self.lag_s = 0.0

    async def delay(self) -> None:
        """One way of a request, or of news."""
        await self.clock.sleep(self.chance.choice((0.0, 0.0, 0.01, 0.2, LATEST_S)))


@dataclass
class Call:
    """A request: who sent it when, and since when nobody waits for its answer any more."""

    term: Term
    sent_s: float
    abandoned_s: float | None = None
    unanswered: bool = False


@dataclass
class Term:
    """One MIC's time as the leader, and what has reached it: *unread* are the times of news that have not."""

    number: int
    lock: FakeLeaderLock
    began_s: float
    ended: bool = False
    synced: bool = False
    unread: dict[int, float] = field(default_factory=dict)

    def knows_until_s(self, now_s: float) -> float:
        """MIC has taken in all that happened before this time."""
        return min(self.unread.values(), default=now_s) if self.synced else self.began_s - 1e9


class Witness(Protocol):
    """Whoever looks on."""

    def on_change_sent(self, call: Call, host: Host, remove: frozenset[IdentityResource]) -> None: ...

    def on_change_arrived(
        self, call: Call, host: Host, add: frozenset[IdentityResource], remove: frozenset[IdentityResource]
    ) -> None: ...

    def on_read(self, host: Host) -> None: ...

    def on_stored(self, call: Call, stored: Assignment, before: Assignment | None) -> None: ...


async def request(network: Network, term: Term, trouble: float, act: Callable[[Call], Awaitable[T]]) -> T:
    """Let *act* happen at the other end, whatever becomes of the caller; or not, or unknown to the caller.

    *trouble* is the share that fails.
    """
    call = Call(term, network.clock.monotonic_s())
    fate = network.chance.random()
    call.unanswered = fate < trouble
    arriving = asyncio.ensure_future(_arrive(network, call, fate < trouble / 3, act))
    try:
        if trouble / 3 <= fate < trouble / 2:
            await network.delay()
            raise TransientError("no answer in time; the request is still under way")
        result = await asyncio.shield(arriving)
    except BaseException:
        call.abandoned_s = network.clock.monotonic_s()
        arriving.add_done_callback(_forget)
        raise
    if trouble / 2 <= fate < trouble:
        await network.delay()
        raise TransientError("the answer was lost")
    return result


async def _arrive(network: Network, call: Call, lost: bool, act: Callable[[Call], Awaitable[T]]) -> T:
    await network.delay()
    if call.term.ended and network.chance.random() >= network.late:
        raise TransientError("it had not left yet when its sender died")
    if lost:
        raise network.chance.choice(
            (TransientError("the request was lost"), Conflict("somebody wrote"), PermissionRefused("not now"))
        )
    result = await act(call)
    await network.delay()
    return result


def _forget(arrived: asyncio.Future[T]) -> None:
    if not arrived.cancelled():
        arrived.exception()  # nobody waits for it


class FlakyCluster:
    """ClusterReader and AssignmentStore of one term. News of one kind come in order, news of different kinds do not."""

    def __init__(self, cluster: FakeCluster, network: Network, term: Term, witness: Witness) -> None:
        self._cluster = cluster
        self._network = network
        self._term = term
        self._witness = witness
        self._number = 0

    async def changes(self) -> AsyncIterator[Sequence[Change]]:
        arrived: asyncio.Queue[tuple[Sequence[int], Sequence[Change]]] = asyncio.Queue()
        lanes: dict[type[Thing], Lane] = {}
        async with aclosing(self._cluster.changes()) as source, asyncio.TaskGroup() as group:  # type: ignore[type-var]  # a generator
            with suppress(GeneratorExit):
                existing = await self._existing(source)
                for change in existing:
                    self._lane(change, lanes, arrived, group).note(change)
                group.create_task(self._sort(source, lanes, arrived, group))
                await self._network.delay()
                if existing:
                    yield existing
                yield [Synced()]
                self._term.synced = True
                while True:
                    numbers, news = await arrived.get()
                    if news:
                        yield news
                    for number in numbers:
                        del self._term.unread[number]

    async def _existing(self, source: AsyncIterator[Sequence[Change]]) -> list[Seen | Gone | Unusable]:
        existing: list[Seen | Gone | Unusable] = []
        async for batch in source:
            for change in batch:
                if isinstance(change, Synced):
                    return existing
                existing.append(change)
        raise AssertionError("the cluster has ended")

    def _lane(
        self,
        change: Seen | Gone | Unusable,
        lanes: dict[type[Thing], Lane],
        arrived: asyncio.Queue[tuple[Sequence[int], Sequence[Change]]],
        group: asyncio.TaskGroup,
    ) -> Lane:
        kind = type(change.thing) if isinstance(change, Seen) else change.kind
        if kind not in lanes:
            lanes[kind] = Lane(self._network)
            group.create_task(lanes[kind].carry(arrived))
        return lanes[kind]

    async def _sort(
        self,
        source: AsyncIterator[Sequence[Change]],
        lanes: dict[type[Thing], Lane],
        arrived: asyncio.Queue[tuple[Sequence[int], Sequence[Change]]],
        group: asyncio.TaskGroup,
    ) -> None:
        async for batch in source:
            for change in batch:
                assert not isinstance(change, Synced)
                self._number += 1
                self._term.unread[self._number] = self._network.clock.monotonic_s()
                self._lane(change, lanes, arrived, group).waiting.append((self._number, change))
            for lane in lanes.values():
                lane.wake.set()

    async def create(self, assignment: Assignment) -> Assignment:
        return await self._write(lambda: self._cluster.create(assignment))

    async def update(self, stored: Assignment, wanted: Assignment) -> Assignment:
        return await self._write(lambda: self._cluster.update(stored, wanted), before=stored)

    async def set_state(self, assignment: Assignment, state: AssignmentState) -> Assignment:
        return await self._write(lambda: self._cluster.set_state(assignment, state))

    async def explain(self, assignment: Assignment, reason: str, at_s: float) -> Assignment:
        return await self._write(lambda: self._cluster.explain(assignment, reason, at_s))

    async def delete(self, assignment: Assignment) -> None:
        """Two requests, as for every object with a finalizer."""

        async def mark(_: Call) -> None:
            current = self._cluster.assignments.get(assignment.key)
            if current is not None and current.uid == assignment.uid and not current.deleting:
                self._cluster.put(replace(current, deleting=True))

        await self._request(mark)
        await self._request(lambda _: self._cluster.delete(assignment))

    async def _write(
        self, write: Callable[[], Awaitable[Assignment]], *, before: Assignment | None = None
    ) -> Assignment:
        async def act(call: Call) -> Assignment:
            stored = await write()
            self._witness.on_stored(call, stored, before)
            return stored

        return await self._request(act)

    async def _request(self, act: Callable[[Call], Awaitable[T]]) -> T:
        try:
            return await request(self._network, self._term, self._network.api_trouble, act)
        except PodIdentityError:
            self._network.failed_s = self._network.clock.monotonic_s()
            raise


class FlakyHosts:
    """HostIdentities of one term."""

    def __init__(self, hosts: FakeHosts, network: Network, term: Term, witness: Witness) -> None:
        self._hosts = hosts
        self._network = network
        self._term = term
        self._witness = witness

    async def attached(self, host: Host) -> HostState:
        async def read(_: Call) -> HostState:
            state = await self._hosts.attached(host)
            self._witness.on_read(host)
            return state

        self._throttle()
        return await request(self._network, self._term, self._network.arm_trouble, read)

    async def change(
        self, host: Host, *, add: Collection[IdentityResource], remove: Collection[IdentityResource]
    ) -> HostState:
        added, removed = frozenset(add), frozenset(remove) - frozenset(add)
        self._witness.on_change_sent(Call(self._term, self._network.clock.monotonic_s()), host, removed)

        async def write(call: Call) -> HostState:
            self._witness.on_change_arrived(call, host, added, removed)
            return await self._hosts.change(host, add=added, remove=removed)

        self._throttle()
        return await request(self._network, self._term, self._network.arm_trouble, write)

    def _throttle(self) -> None:
        if self._network.chance.random() < self._network.arm_trouble / 4:
            raise Throttled("slowly", retry_after_s=self._network.chance.choice((1.0, 20.0, 600.0)))
