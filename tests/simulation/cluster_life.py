"""A cluster that lives, MIC that works in it over a bad network and dies at any moment, and what must always hold.

Everything is drawn from one seed, so a run repeats exactly.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from random import Random

from podidentity_core.model import Assignment, AssignmentState, Binding, Identity, Key, Node, Pod, PodPhase, Thing
from podidentity_core.resource_ids import Host, HostKind, IdentityResource
from podidentity_core.services.assignment import AssignmentPorts, AssignmentService, AssignmentSettings
from podidentity_core.testing.builders import binding, identity, node, pod, resource, vmss_node
from podidentity_core.testing.clock import FakeClock, settle
from podidentity_core.testing.fakes import FakeCluster, FakeEvents, FakeHosts, FakeLeaderLock, FakeMeter
from tests.simulation.flaky import LATEST_S, FlakyCluster, FlakyHosts, Network

NODES = (
    vmss_node("n0", "pool", 0),
    vmss_node("n1", "POOL", 1),
    node("n2"),
    vmss_node("n3", "other", 0),
)
NAMES = ("a", "b", "c")
STRANGERS = ("stranger-1", "stranger-2")
"""Azure identities that only somebody else uses."""
SETTLED_S = 3 * LATEST_S
"""After this long MIC has heard of a change, and what it asked for before has arrived."""
LONG_S = 4000.0
"""Longer than every wait of MIC: back-off, quarantine, drift."""


class World:
    """Play with `step`, end with `converge`; both raise AssertionError when something does not hold."""

    def __init__(self, seed: int) -> None:
        self.chance = Random(seed)  # noqa: S311  # not for secrets
        self.clock = FakeClock()
        self.cluster = FakeCluster()
        self.hosts = FakeHosts(self.clock, duration_s=2.0)
        self.network = Network(self.clock, self.chance)
        self.trace: list[str] = []
        self.things: dict[tuple[type[Thing], Key], Thing] = {}
        self.foreign: dict[Host, set[IdentityResource]] = {}
        self._since: dict[tuple[Key, Host, IdentityResource], float] = {}
        self._disturbed_s: dict[Host, float] = {}
        self._mic: asyncio.Task[None] | None = None
        self._violations: list[str] = []

    async def begin(self) -> None:
        """Set the stage: hosts, of which some carry somebody else's identities, and MIC."""
        for one in NODES:
            self._put_node(one)
        for host in self.foreign:
            for name in (*NAMES, *STRANGERS):
                if self.chance.random() < 0.15:
                    self.foreign[host].add(resource(name))
            self.hosts.put(host, *self.foreign[host])
        for name in NAMES:
            self._put(identity(name))
            self._put(binding(name))
        await self._start_mic()

    async def end(self) -> None:
        """Leave nothing running."""
        await self._crash_mic()
        await self.clock.advance(10 * LATEST_S)

    async def step(self) -> None:
        """Let something happen, and some time pass."""
        happening = self.chance.choice(_HAPPENINGS)
        happening(self)
        self.network.trouble = self.chance.choice((0.0, 0.0, 0.1, 0.5))
        if self.chance.random() < 0.3:
            await self._crash()
        await self._pass(self.chance.choice((0.0, 0.01, 0.2, 1.0, 2.5, 30.0)))

    async def converge(self) -> None:
        """Let everything that hinders end, wait, and check that all is as it should be."""
        self.network.trouble = 0.0
        for name in (*NAMES, *STRANGERS):
            self.hosts.accept(resource(name))
        await self._pass(LONG_S)
        self._check_assignments()
        self._check_hosts()

    # What happens

    def put_pod(self) -> None:
        """A pod comes, or comes back elsewhere or with another label."""
        key, on = self._any_pod(), self._any(Node)
        if on is not None:
            label = self.chance.choice((*NAMES, "x", None))
            uid = f"uid-{len(self.trace)}"
            self._put(pod(key.name, namespace=key.namespace, uid=uid, node=on.name, label=label))

    def remove_pod(self) -> None:
        """A pod goes."""
        self._remove(self._any(Pod))

    def finish_pod(self) -> None:
        """A pod has done its work."""
        if (found := self._any(Pod)) is not None:
            self._put(replace(found, phase=self.chance.choice((PodPhase.SUCCEEDED, PodPhase.FAILED))))

    def put_binding(self) -> None:
        """A binding comes, or selects others, or names another identity."""
        names = self.chance.choice(NAMES), self.chance.choice(NAMES), self.chance.choice(NAMES)
        self._put(binding(names[0], identity_name=names[1], selector=names[2]))

    def remove_binding(self) -> None:
        """A binding goes."""
        self._remove(self._any(Binding))

    def put_identity(self) -> None:
        """An identity comes, or stands for another one of Azure, perhaps in other letters."""
        name = self.chance.choice(NAMES)
        self._put(identity(self.chance.choice(NAMES), resource_name=self.chance.choice((name, name.upper()))))

    def remove_identity(self) -> None:
        """An identity goes."""
        self._remove(self._any(Identity))

    def remove_node(self) -> None:
        """A node goes with its pods; its VM too, while a scale set stays."""
        if (found := self._any(Node)) is None:
            return
        for one in list(self.things.values()):
            if isinstance(one, Pod) and one.node == found.name:
                self._remove(one)
        self._remove(found)
        if found.host is not None and found.host.kind is HostKind.VM:
            self.hosts.remove(found.host)
            self.foreign.pop(found.host)

    def put_node(self) -> None:
        """A node comes back."""
        self._put_node(self.chance.choice(NODES))

    def take_off(self) -> None:
        """Somebody takes an identity off a host by hand."""
        host = self.chance.choice(sorted(self.foreign, key=str))
        ours = sorted(self.hosts.listed(host) - self.foreign[host], key=str)
        if ours:
            taken = self.chance.choice(ours)
            self.trace.append(f"take {taken.text[-1]} off {host.name}")
            self.hosts.put(host, *(self.hosts.listed(host) - {taken}))
            self._disturbed_s[host] = self.clock.monotonic_s()

    def refuse(self) -> None:
        """Azure refuses an identity from now on."""
        self.hosts.refuse(resource(self.chance.choice(NAMES)))

    def accept(self) -> None:
        """Azure takes an identity again."""
        self.hosts.accept(resource(self.chance.choice(NAMES)))

    def kubectl_delete(self) -> None:
        """Somebody deletes an assignment; MIC's finalizer keeps it for now."""
        stored = sorted(self.cluster.assignments.values(), key=lambda found: found.key)
        if stored:
            found = self.chance.choice(stored)
            self.trace.append(f"kubectl delete azureassignedidentity {found.name}")
            self.cluster.put(replace(found, deleting=True))

    # MIC

    async def _start_mic(self) -> None:
        flaky = FlakyCluster(self.cluster, self.network, self._on_stored)
        hosts = FlakyHosts(self.hosts, self.network, self._on_removal)
        ports = AssignmentPorts(
            flaky, flaky, hosts, FakeEvents(), lock := FakeLeaderLock(), self.clock, FakeMeter(), self.chance.random
        )
        service = AssignmentService(ports, AssignmentSettings())
        self._mic = asyncio.create_task(lock.lead(service.run))
        self.trace.append("MIC starts")

    async def _crash_mic(self) -> None:
        if self._mic is not None:
            self._mic.cancel()
            await asyncio.gather(self._mic, return_exceptions=True)
            self.trace.append("MIC crashes")

    async def _crash(self) -> None:
        """Let MIC die in the middle of something; another starts when all that it had sent has arrived."""
        await self._pass(self.chance.choice((0.0, 0.01, 0.2, 0.21, 0.4, 2.0, 2.2, 4.0, 4.2)))
        for _ in range(self.chance.randrange(40)):
            await asyncio.sleep(0)
        await self._crash_mic()
        await self.clock.advance(LATEST_S)
        await self._start_mic()

    async def _pass(self, seconds: float) -> None:
        await self.clock.advance(seconds)
        await settle()
        assert self._mic is not None
        if self._mic.done():
            self._mic.result()
        assert not self._violations, self._violations[0]

    # What must hold

    def _on_removal(self, host: Host, removed: frozenset[IdentityResource]) -> None:
        """What a pod needs stays, once MIC has had time to hear of it, and so does what somebody else put there."""
        now_s = self.clock.monotonic_s()
        for (key, where, what), since_s in self._since.items():
            if where == host and what in removed and now_s - since_s > SETTLED_S:
                self._violations.append(f"{what} leaves {host} while {key} has needed it for {now_s - since_s} s")
        if taken := removed & self.foreign.get(host, set()):
            self._violations.append(f"{sorted(map(str, taken))} of somebody else leaves {host}")

    def _on_stored(self, stored: Assignment) -> None:
        """`Assigned` means that the pod can use it."""
        what, where = stored.identity.host_resource, self._host(stored.node)
        if stored.state is not AssignmentState.ASSIGNED or what is None or where is None:
            return
        quiet_s = self.clock.monotonic_s() - self._disturbed_s.get(where, -LONG_S)
        if (stored.pod, where, what) in self._since and quiet_s > 400 and what not in self.hosts.usable(where):
            self._violations.append(f"{stored.name} is Assigned before {what} can be used on {where}")

    def _check_assignments(self) -> None:
        stored = {(found.pod, found.node, found.identity.host_resource) for found in self.cluster.assignments.values()}
        wanted = {(key, self._node_of(key), what) for key, _, what in self._needs()}
        assert stored == wanted, f"stored but not wanted: {stored - wanted}, wanted but not stored: {wanted - stored}"
        for found in self.cluster.assignments.values():
            assert found.state is AssignmentState.ASSIGNED, f"{found.name} is {found.state}"
            assert not found.deleting, f"{found.name} is being deleted"

    def _check_hosts(self) -> None:
        for host, foreign in self.foreign.items():
            needed = {what for _, where, what in self._needs() if where == host}
            listed = self.hosts.listed(host)
            assert listed == needed | foreign, (
                f"{host.name} carries {_letters(listed)}, needs {_letters(needed)}, of others {_letters(foreign)}"
            )

    # Bookkeeping

    def _needs(self) -> set[tuple[Key, Host, IdentityResource]]:
        """Who needs what where, by the rules that users know."""
        needs = set()
        for one in self.things.values():
            if not isinstance(one, Pod) or one.finished or (host := self._host(one.node)) is None:
                continue
            for link in self.things.values():
                if isinstance(link, Binding) and link.selector == one.label:
                    found = self.things.get((Identity, link.identity_key))
                    if isinstance(found, Identity) and found.host_resource is not None:
                        needs.add((one.key, host, found.host_resource))
        return needs

    def _put(self, thing: Thing) -> None:
        self.trace.append(f"put {thing}")
        self.things[type(thing), thing.key] = thing
        self.cluster.put(thing)
        self._note_needs()

    def _remove(self, thing: Thing | None) -> None:
        if thing is not None:
            self.trace.append(f"remove {type(thing).__name__} {thing.key}")
            del self.things[type(thing), thing.key]
            self.cluster.remove(thing)
            self._note_needs()

    def _note_needs(self) -> None:
        now_s = self.clock.monotonic_s()
        self._since = {need: self._since.get(need, now_s) for need in self._needs()}

    def _put_node(self, one: Node) -> None:
        assert one.host is not None
        if one.host not in self.foreign:
            self.foreign[one.host] = set()
            self.hosts.put(one.host)
        self._put(one)

    def _host(self, name: str) -> Host | None:
        found = self.things.get((Node, Key("", name)))
        return found.host if isinstance(found, Node) else None

    def _node_of(self, key: Key) -> str:
        found = self.things[Pod, key]
        assert isinstance(found, Pod)
        return found.node

    def _any(self, kind: type[Thing]) -> Thing | None:
        found = [thing for (its_kind, _), thing in sorted(self.things.items(), key=str) if its_kind is kind]
        return self.chance.choice(found) if found else None

    def _any_pod(self) -> Key:
        return Key(self.chance.choice(("default", "shop")), f"p{self.chance.randrange(4)}")


def _letters(resources: frozenset[IdentityResource] | set[IdentityResource]) -> list[str]:
    return sorted(one.key.rpartition("/")[2] for one in resources)


_HAPPENINGS: tuple[Callable[[World], None], ...] = (
    *[World.put_pod] * 6,
    *[World.remove_pod] * 4,
    World.finish_pod,
    *[World.put_binding] * 2,
    World.remove_binding,
    *[World.put_identity] * 2,
    World.remove_identity,
    World.remove_node,
    *[World.put_node] * 2,
    World.take_off,
    World.refuse,
    *[World.accept] * 2,
    World.kubectl_delete,
)


async def play(seed: int, *, steps: int = 30) -> World:
    """Play one run to its end; raises AssertionError when something does not hold. Returns the world for its trace."""
    world = World(seed)
    try:
        await world.begin()
        for _ in range(steps):
            await world.step()
        await world.converge()
    finally:
        await world.end()
    return world
