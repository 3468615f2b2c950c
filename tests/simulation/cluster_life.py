"""A life of a cluster: MIC works in it over a bad network, loses its lead and dies at any moment.

Everything is drawn from one seed, so a run repeats exactly.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from random import Random

from podidentity_core.model import Node, Pod
from podidentity_core.planning import Rules
from podidentity_core.services.assignment import AssignmentPorts, AssignmentService, AssignmentSettings
from podidentity_core.services.hosts import HostLimits
from podidentity_core.testing.builders import binding, identity, resource
from podidentity_core.testing.clock import RestlessClock, settle
from podidentity_core.testing.fakes import FakeEvents, FakeLeaderLock, FakeMeter
from tests.simulation import happenings
from tests.simulation.flaky import LATEST_S, FlakyCluster, FlakyHosts, Network, Term
from tests.simulation.invariants import Invariants
from tests.simulation.order import AnyOrderLoop
from tests.simulation.originals import leave_originals
from tests.simulation.world import ALL, FORMS, NAMES, NODES, World, letters, same_client

STEPS = 30
LONG_S = 4300.0
"""Longer than every wait of MIC: back-off, quarantine, grace, drift."""


class Life:
    """Play with `begin`, `step` and `converge`; they raise AssertionError when something does not hold."""

    def __init__(self, seed: int) -> None:
        self.chance = chance = Random(seed)  # noqa: S311  # not for secrets
        immutable = chance.choice((None, None, *NAMES))
        self.settings = AssignmentSettings(
            rules=Rules(
                namespaced=chance.random() < 0.25,
                immutable=frozenset({same_client(immutable)} if immutable else ()),
            ),
            limits=HostLimits(grace_s=chance.choice((0.0, 3.0, 3.0, 60.0, 300.0))),
            parallel_writes=chance.choice((1, 3, 20)),
        )
        self.world = World(
            chance,
            namespaced=self.settings.rules.namespaced,
            immutable=frozenset({resource(immutable)} if immutable else ()),
        )
        # Without a grace time a successor believes its first look at a host: docs/configuration.md says so.
        late = 0.7 if self.settings.limits.grace_s else 0.0
        self.network = Network(self.world.clock, chance, late=late)
        self.invariants = Invariants(self.world, self.network)
        self._clock = chance.choice((self.world.clock, RestlessClock(self.world.clock)))
        self.term: Term | None = None
        self.service: AssignmentService | None = None
        self._seat = asyncio.Lock()
        self._terms = 0
        self._mics: list[tuple[FakeLeaderLock, asyncio.Task[None]]] = []

    async def begin(self) -> None:
        """Set the stage: hosts, of which some carry others' identities, what the original has left, and two MICs."""
        asyncio.get_running_loop().set_exception_handler(self._on_bug)
        world = self.world
        for one in NODES:
            world.put(one)
        for host, foreign in world.foreign.items():
            foreign.update(what for what in ALL if self.chance.random() < 0.15)
            world.hosts.put(host, *foreign, system_assigned=True)
        for name in NAMES:
            world.put(identity(name, client=same_client(name)))
            world.put(binding(name, selector=name))
        for _ in range(self.chance.randrange(5)):
            happenings.put_pod(world)
        leave_originals(world)
        world.disturbed_s.clear()
        world.note(f"{self.settings}, others' are {[(h.name, letters(f)) for h, f in world.foreign.items()]}")
        self._start_mic()
        self._start_mic()

    async def end(self) -> None:
        """Leave nothing running."""
        for _, task in self._mics:
            await _stop(task)
        await self.world.clock.advance(10 * LATEST_S)

    async def step(self) -> None:
        """Let something happen, and some time pass."""
        for _ in range(self.chance.choice((1, 1, 1, 2, 4))):
            self.chance.choice(happenings.HAPPENINGS)(self.world)
            await self._moment()
        network = self.network
        network.api_trouble = self.chance.choice((0.0, 0.0, 0.0, 0.1, 0.5))
        network.arm_trouble = self.chance.choice((0.0, 0.0, 0.1, 0.5, 1.0))
        network.lag_s = self.chance.choice((0.0, 0.0, 0.0, 5.0, 60.0))
        if self.chance.random() < 0.4:
            await self._pass(self.chance.choice((0.0, 0.01, 0.2, 0.21, 0.4, 2.0, 2.2, 4.0, 4.2)))
            await self._moment()
            await self._change_leader()
        await self._pass(self.chance.choice((0.0, 0.01, 0.2, 1.0, 2.5, 30.0, 200.0)))
        self.invariants.after_step(self.term)
        self._raise()

    async def converge(self) -> None:
        """Let everything that hinders end, wait, and check that all is as it should be, and stays so without writes."""
        self.network.calm()
        self._repair()
        self.world.note("converge")
        if self.chance.random() < 0.5:
            await self._look_for_drift_once()
        await self._pass(100.0)
        self.invariants.after_step(self.term)
        await self._pass(LONG_S)
        self.invariants.after_step(self.term)
        self.invariants.check_end()
        self._raise()
        before = self.world.hosts.writes, len(self.world.cluster.calls)
        await self._pass(LONG_S)
        after = self.world.hosts.writes, len(self.world.cluster.calls)
        assert before == after, f"writes go on without end: {before}, {after}"

    def seen(self) -> Counter[str]:
        """How often what came to pass in this life."""
        counts = Counter({f"left behind: {why}": count for why, count in self.world.left_behind.items()})
        return counts + Counter({"terms": self._terms, "late writes": self.invariants.late_writes})

    # MIC

    def _start_mic(self) -> None:
        lock = FakeLeaderLock(self._seat)
        self._mics.append((lock, asyncio.create_task(lock.lead(lambda: self._work(lock)))))

    async def _work(self, lock: FakeLeaderLock) -> None:
        self._terms += 1
        term = self.term = Term(self._terms, lock, self.world.now_s)
        self.world.note(f"term {term.number} begins")
        cluster = FlakyCluster(self.world.cluster, self.network, term, self.invariants)
        hosts = FlakyHosts(self.world.hosts, self.network, term, self.invariants)
        ports = AssignmentPorts(
            cluster, cluster, hosts, FakeEvents(), lock, self._clock, FakeMeter(), self.chance.random
        )
        self.service = AssignmentService(ports, self.settings)
        try:
            await self.service.run()
        finally:
            term.ended = True
            self.world.note(f"term {term.number} ends")

    async def _look_for_drift_once(self) -> None:
        """Let new MICs look at all hosts, and then no more: they must forget nothing that is still to be done."""
        self.settings = replace(self.settings, drift_interval_s=0.0, resync_interval_s=0.0)
        await self._replace(list(self._mics))
        await self.world.clock.advance(10 * LATEST_S)
        assert self.service is not None
        self.service._look_at_hosts()

    async def _change_leader(self) -> None:
        """The leader loses its lead, or dies; the other one goes on at once. Or both die, and new ones come later."""
        dying = [mic for mic in self._mics if mic[0].is_held()]
        kind = self.chance.choice(("lose", "die", "all die"))
        if kind == "lose":
            for lock, _ in dying:
                lock.lose()
            return
        await self._replace(list(self._mics) if kind == "all die" else dying)

    async def _replace(self, dying: list[tuple[FakeLeaderLock, asyncio.Task[None]]]) -> None:
        for mic in dying:
            self._mics.remove(mic)
            await _stop(mic[1])
        if not self._mics:
            await self.world.clock.advance(self.chance.choice((0.0, 0.1, LATEST_S, 20.0)))
        for _ in dying:
            self._start_mic()

    # Time

    async def _moment(self) -> None:
        """Let a few things run of those that can, and stop in the midst of them."""
        for _ in range(self.chance.randrange(40)):
            await asyncio.sleep(0)

    async def _pass(self, seconds: float) -> None:
        await self.world.clock.advance(seconds)
        await settle()
        for _, task in self._mics:
            if task.done():
                task.result()
        self._raise()

    def _raise(self) -> None:
        assert not self.invariants.violations, self.invariants.violations[0]

    def _on_bug(self, _: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        self.invariants.say(f"asyncio: {context.get('message')}: {context.get('exception')!r}")

    def _repair(self) -> None:
        """Let Azure take all identities, and every pod stand on a node whose host is known."""
        world = self.world
        for what in ALL:
            world.hosts.accept(what)
        for one in world.every(Node):
            if isinstance(one, Node) and one.host in world.condemned:
                world.remove(one)
        for host in sorted(world.condemned, key=str):
            world.remove_host(host)
        for one in world.every(Node):
            if isinstance(one, Node) and one.host is None:
                world.put(FORMS[one.name][0])
        for one in world.every(Pod):
            if isinstance(one, Pod) and world.host(one.node) is None:
                world.remove(one)


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _play(life: Life) -> None:
    try:
        await life.begin()
        for _ in range(STEPS):
            await life.step()
        await life.converge()
    finally:
        await life.end()


def loop_for(seed: int) -> asyncio.AbstractEventLoop:
    """The loop that a life runs in: one in three keeps asyncio's own order."""
    return AnyOrderLoop(seed, shuffled=seed % 3 != 0)


def play(seed: int) -> Life:
    """Play one life to its end; raises AssertionError when something does not hold. Returns it for what it has seen."""

    async def main() -> Life:
        life = Life(seed)
        await _play(life)
        return life

    with asyncio.Runner(loop_factory=lambda: loop_for(seed)) as runner:
        return runner.run(main())
