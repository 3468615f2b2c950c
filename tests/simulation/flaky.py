"""The fakes behind a bad network: calls take time, fail, or do their work and lose the answer; news come late.

A request that is under way when its caller dies still arrives.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from random import Random
from typing import TypeVar

from podidentity_core.errors import Throttled, TransientError
from podidentity_core.model import Assignment, AssignmentState, Change, Seen, Synced, Thing
from podidentity_core.ports import HostState
from podidentity_core.resource_ids import Host, IdentityResource
from podidentity_core.testing.clock import FakeClock
from podidentity_core.testing.fakes import FakeCluster, FakeHosts

T = TypeVar("T")

LATEST_S = 2.0
"""No request takes longer one way, and no news come later."""


class Network:
    """How bad it is: *trouble* is the share of requests that fail."""

    def __init__(self, clock: FakeClock, chance: Random) -> None:
        self.clock = clock
        self.chance = chance
        self.trouble = 0.0

    async def delay(self) -> None:
        await self.clock.sleep(self.chance.choice((0.0, 0.0, 0.01, 0.2, LATEST_S)))

    async def request(self, act: Callable[[], Awaitable[T]]) -> T:
        """Let *act* happen at the other end, whatever becomes of the caller."""
        return await asyncio.shield(asyncio.ensure_future(self._request(act)))

    async def _request(self, act: Callable[[], Awaitable[T]]) -> T:
        await self.delay()
        fate = self.chance.random()
        if fate < self.trouble / 2:
            raise TransientError("the request was lost")
        result = await act()
        await self.delay()
        if fate < self.trouble:
            raise TransientError("the answer was lost")
        return result


class FlakyCluster:
    """ClusterReader and AssignmentStore. News of one kind come in order, news of different kinds do not."""

    def __init__(self, cluster: FakeCluster, network: Network, stored: Callable[[Assignment], None]) -> None:
        self._cluster = cluster
        self._network = network
        self._on_stored = stored

    async def changes(self) -> AsyncIterator[Sequence[Change]]:
        arrived: asyncio.Queue[Sequence[Change]] = asyncio.Queue()
        lanes: dict[type[Thing], asyncio.Queue[Change]] = {}
        source = self._cluster.changes()
        async with asyncio.TaskGroup() as group:
            with suppress(GeneratorExit):
                async for batch in source:
                    yield batch
                    if any(isinstance(change, Synced) for change in batch):
                        break
                group.create_task(self._sort(source, lanes, arrived, group))
                while True:
                    yield await arrived.get()

    async def _sort(
        self,
        source: AsyncIterator[Sequence[Change]],
        lanes: dict[type[Thing], asyncio.Queue[Change]],
        arrived: asyncio.Queue[Sequence[Change]],
        group: asyncio.TaskGroup,
    ) -> None:
        async for batch in source:
            for change in batch:
                assert not isinstance(change, Synced)
                kind = type(change.thing) if isinstance(change, Seen) else change.kind
                if kind not in lanes:
                    lanes[kind] = asyncio.Queue()
                    group.create_task(self._carry(lanes[kind], arrived))
                lanes[kind].put_nowait(change)

    async def _carry(self, lane: asyncio.Queue[Change], arrived: asyncio.Queue[Sequence[Change]]) -> None:
        while True:
            news = [await lane.get()]
            await self._network.delay()
            while not lane.empty():
                news.append(lane.get_nowait())
            arrived.put_nowait(news)

    async def create(self, assignment: Assignment) -> Assignment:
        return await self._network.request(lambda: self._seen(self._cluster.create(assignment)))

    async def update(self, stored: Assignment, wanted: Assignment) -> Assignment:
        return await self._network.request(lambda: self._seen(self._cluster.update(stored, wanted)))

    async def set_state(self, assignment: Assignment, state: AssignmentState) -> Assignment:
        return await self._network.request(lambda: self._seen(self._cluster.set_state(assignment, state)))

    async def delete(self, assignment: Assignment) -> None:
        await self._network.request(lambda: self._cluster.delete(assignment))

    async def _seen(self, write: Awaitable[Assignment]) -> Assignment:
        stored = await write
        self._on_stored(stored)
        return stored


class FlakyHosts:
    """HostIdentities. *on_removal* is told of each removal just when it begins."""

    def __init__(
        self,
        hosts: FakeHosts,
        network: Network,
        on_removal: Callable[[Host, frozenset[IdentityResource]], None],
    ) -> None:
        self._hosts = hosts
        self._network = network
        self._on_removal = on_removal

    async def attached(self, host: Host) -> HostState:
        return await self._network.request(lambda: self._hosts.attached(host))

    async def change(
        self, host: Host, *, add: Collection[IdentityResource], remove: Collection[IdentityResource]
    ) -> HostState:
        if self._network.chance.random() < self._network.trouble / 4:
            raise Throttled("slowly", retry_after_s=self._network.chance.choice((1.0, 20.0)))
        return await self._network.request(lambda: self._begin(host, frozenset(add), frozenset(remove)))

    async def _begin(
        self, host: Host, add: frozenset[IdentityResource], remove: frozenset[IdentityResource]
    ) -> HostState:
        self._on_removal(host, remove - add)
        return await self._hosts.change(host, add=add, remove=remove)
