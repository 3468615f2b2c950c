"""What the simulation has found, each with as little as it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from podidentity_core.errors import Throttled, TransientError
from podidentity_core.model import Assignment, AssignmentState, Change, Gone, Node, Seen
from podidentity_core.planning import Rules
from podidentity_core.ports import HostState
from podidentity_core.resource_ids import Host, IdentityResource
from podidentity_core.services.assignment import AssignmentSettings
from podidentity_core.services.hosts import HostLimits
from podidentity_core.testing.builders import assignment, binding, client_id, identity, node, pod, resource, vm
from podidentity_core.testing.fakes import Call
from tests.core.mic import ARM_S, Mic

IMMUTABLE = AssignmentSettings(rules=Rules(immutable=frozenset({client_id("web")})))
EDITED = identity(resource_name="new")
"""The AzureIdentity `web`, after somebody has made it stand for another identity of Azure."""


def served(mic: Mic) -> set[str]:
    """Names of the Azure identities of which NMI would hand out tokens."""
    ready = (AssignmentState.ASSIGNED, AssignmentState.UNKNOWN)
    found = [stored.identity.host_resource for stored in mic.cluster.assignments.values() if stored.state in ready]
    return {what.text.rpartition("/")[2] for what in found if what is not None}


async def test_an_immutable_identity_stays_when_its_pod_goes_while_it_is_being_put_there() -> None:
    mic = Mic(node(), identity(), binding(), pod(), settings=IMMUTABLE)
    await mic.start()
    await mic.after(0.5 * ARM_S)
    mic.remove(pod())
    await mic.after(600)
    await mic.crash()
    assert (mic.on(), mic.states) == ({"web"}, {})


async def test_an_immutable_identity_stays_when_its_pod_has_gone_before_the_first_look() -> None:
    other = identity("db"), binding("db", selector="db"), pod("other", label="db")
    mic = Mic(node(), identity(), binding(), assignment(pod()), *other, settings=IMMUTABLE)
    mic.hosts.put(vm(), resource("web"))
    at_once = mic.cluster._called

    async def called(call: Call) -> None:
        await mic.clock.sleep(1.0 if call.operation == "create" else 0.1)
        await at_once(call)

    mic.cluster._called = called  # type: ignore[method-assign]
    await mic.start()
    await mic.after(600)
    await mic.crash()
    assert (mic.on(), mic.states) == ({"web", "db"}, {"other-default-db": "Assigned"})


async def test_a_pod_on_a_node_without_a_host_is_not_served_by_what_its_identity_was() -> None:
    mic = Mic(node(), identity(), binding(), pod())
    await mic.start()
    await mic.after(2 * ARM_S)
    assert served(mic) == {"web"}
    mic.put(Node("node-1", None, "spec.providerID is empty"), EDITED)
    await mic.after(600)
    await mic.crash()
    assert served(mic) == set()


async def test_a_pod_on_a_host_that_does_not_answer_is_not_served_by_what_its_identity_was() -> None:
    mic = Mic(node(), identity(), binding(), assignment(pod(), host=vm()), pod())
    mic.hosts.put(vm(), resource("web"))
    mic.hosts.fail_next(Throttled("too many requests", retry_after_s=600))
    await mic.start()
    mic.put(EDITED)
    await mic.after(60)
    await mic.crash()
    assert served(mic) == set()


class _LateNews:
    """Holds news of assignments back, and loses the answer to an update that has been made."""

    def __init__(self, mic: Mic) -> None:
        self._held: list[Sequence[Change]] = []
        self._tell = mic.cluster._tell
        self._update = mic.cluster.update
        mic.cluster._tell = self._hold  # type: ignore[method-assign]
        mic.cluster.update = self._lose  # type: ignore[method-assign]
        self._mic = mic

    def _hold(self, changes: Sequence[Change]) -> None:
        kinds = {
            change.kind if isinstance(change, Gone) else type(change.thing)
            for change in changes
            if isinstance(change, Seen | Gone)
        }
        if Assignment in kinds:
            self._held.append(changes)
        else:
            self._tell(changes)

    async def _lose(self, stored: Assignment, wanted: Assignment) -> Assignment:
        await self._update(stored, wanted)
        raise TransientError("the answer was lost")

    def arrive(self) -> None:
        """Let the news come, and everything be as usual from now on."""
        self._mic.cluster._tell = self._tell  # type: ignore[method-assign]
        self._mic.cluster.update = self._update  # type: ignore[method-assign]
        for changes in self._held:
            self._tell(changes)


async def test_a_pod_that_is_back_before_a_lost_update_was_seen_leaves_nothing_behind() -> None:
    first, second = pod("web-0"), pod("web-1")
    stored = [assignment(one, host=vm()) for one in (first, second)]
    mic = Mic(node(), node("node-2"), identity(), binding(), first, second, *stored)
    mic.hosts.put(vm(), resource("web"))
    await mic.start()
    news = _LateNews(mic)
    mic.put(pod("web-0", uid="moved", node="node-2"))
    await mic.after(0)
    mic.put(pod("web-0", uid="back"))
    mic.remove(second)
    await mic.after(0)
    news.arrive()
    await mic.after(600)
    mic.remove(first)
    await mic.after(600)
    await mic.crash()
    assert (mic.on(vm()), mic.on(vm("node-2")), mic.states) == (set(), set(), {})


async def test_what_a_dead_leader_asked_for_does_not_stay_when_it_comes_after_the_next_leaders_first_look() -> None:
    settings = AssignmentSettings(limits=HostLimits(grace_s=60.0))
    mic = Mic(node(), identity(), binding(), pod(), settings=settings)
    change, arrival = mic.hosts.change, asyncio.Event()
    under_way: list[asyncio.Task[HostState]] = []

    async def arrive(host: Host, add: Collection[IdentityResource], remove: Collection[IdentityResource]) -> HostState:
        await arrival.wait()
        return await change(host, add=add, remove=remove)

    async def slow(host: Host, *, add: Collection[IdentityResource], remove: Collection[IdentityResource]) -> HostState:
        under_way.append(asyncio.create_task(arrive(host, add, remove)))
        return await asyncio.shield(under_way[-1])

    mic.hosts.change = slow  # type: ignore[method-assign]
    await mic.start()
    await mic.crash()
    mic.hosts.change = change  # type: ignore[method-assign]
    mic.remove(pod())
    await mic.start()
    await mic.after(1.0)
    arrival.set()
    await mic.after(3600)
    await mic.crash()
    assert len(under_way) == 1
    assert (mic.on(), mic.states) == (set(), {})


async def test_an_assignment_that_is_gone_before_the_answer_to_its_creation_comes_is_created_again() -> None:
    mic = Mic(node(), identity(), binding(), pod())
    create = mic.cluster.create

    async def slow(wanted: Assignment) -> Assignment:
        mic.cluster.create = create  # type: ignore[method-assign]
        stored = await create(wanted)
        mic.cluster.remove(stored)  # somebody deletes it, finalizer and all
        await mic.clock.sleep(1.0)
        return stored

    mic.cluster.create = slow  # type: ignore[method-assign]
    await mic.start()
    await mic.after(600)
    await mic.crash()
    assert mic.states == {"web-0-default-web": "Assigned"}
