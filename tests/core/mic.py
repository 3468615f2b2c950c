"""MIC's service over a cluster and an Azure in memory, which the test plays."""

from __future__ import annotations

import asyncio

from podidentity_core.model import Assignment, Node, Pod, Thing
from podidentity_core.ports import Event
from podidentity_core.resource_ids import Host
from podidentity_core.services.assignment import AssignmentPorts, AssignmentService, AssignmentSettings
from podidentity_core.testing.builders import vm
from podidentity_core.testing.clock import FakeClock, settle
from podidentity_core.testing.fakes import FakeCluster, FakeEvents, FakeHosts, FakeLeaderLock, FakeMeter

ARM_S = 2.0
"""How long a write to a host takes here."""


class Mic:
    """One MIC. The hosts of *things*' nodes exist, without any identity; `start` makes it lead."""

    def __init__(self, *things: Thing, settings: AssignmentSettings | None = None) -> None:
        self.clock = FakeClock()
        self.cluster = FakeCluster()
        self.hosts = FakeHosts(self.clock, duration_s=ARM_S)
        self.events = FakeEvents()
        self.meter = FakeMeter()
        self.lock = FakeLeaderLock()
        self.settings = settings or AssignmentSettings()
        self._work: asyncio.Task[None] | None = None
        self.put(*things)

    def put(self, *things: Thing) -> None:
        """Let *things* exist or be like this now."""
        for thing in things:
            if isinstance(thing, Node) and thing.host is not None and not self.has_host(thing.host):
                self.hosts.put(thing.host)
            self.cluster.put(thing)

    def remove(self, *things: Thing) -> None:
        """Let *things* be gone."""
        for thing in things:
            self.cluster.remove(thing)

    def has_host(self, host: Host) -> bool:
        try:
            return self.hosts.listed(host) is not None
        except KeyError:
            return False

    async def start(self) -> None:
        """Begin a term, and let everything happen that takes no time."""
        ports = AssignmentPorts(
            self.cluster, self.cluster, self.hosts, self.events, self.lock, self.clock, self.meter, lambda: 0.0
        )
        self.service = AssignmentService(ports, self.settings)
        self._work = asyncio.create_task(self.lock.lead(self.service.run))
        await settle()

    async def crash(self) -> None:
        """End the term at once; nothing is tidied up."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
            self._work = None

    async def after(self, seconds: float) -> None:
        """Let *seconds* pass; the work must have survived them."""
        await self.clock.advance(seconds)
        assert self._work is not None
        if self._work.done():
            self._work.result()

    @property
    def states(self) -> dict[str, str]:
        """The stored assignments by name, with their states."""
        return {key.name: stored.state.value for key, stored in sorted(self.cluster.assignments.items())}

    def stored(self, name: str) -> Assignment:
        """The one stored assignment of that name."""
        (found,) = (stored for stored in self.cluster.assignments.values() if stored.name == name)
        return found

    def on(self, host: Host | None = None) -> set[str]:
        """Names of the Azure identities that *host* lists."""
        return {resource.text.rpartition("/")[2] for resource in self.hosts.listed(host or vm())}

    @property
    def writes(self) -> list[str]:
        """What was asked of the API server: the operation and the state it asked for."""
        return [f"{call.operation} {call.state.value}" if call.state else call.operation for call in self.cluster.calls]

    @property
    def told(self) -> list[str]:
        """The reasons of the events at bindings and assignments, in order; `told_pods` has the others."""
        return [event.reason for event in self.events.published if event.kind is not Pod]

    @property
    def told_pods(self) -> list[tuple[str, str]]:
        """Pods that got an event, and what it says."""
        return [(event.key.name, event.message) for event in self.events.published if event.kind is Pod]

    def events_of(self, reason: str) -> list[Event]:
        return [event for event in self.events.published if event.reason == reason]
