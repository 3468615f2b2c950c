"""MIC's work, scenario by scenario (the original's tests, and the defects that it had)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from itertools import count

import pytest

from podidentity_core.errors import Conflict, PermissionRefused, PodIdentityError, Throttled, TransientError
from podidentity_core.model import AssignmentState, Binding, IdentityKind, Key, Pod, PodPhase, Thing, Unusable
from podidentity_core.planning import PodPlan, Rules
from podidentity_core.ports import HostState, Severity
from podidentity_core.reasons import Reason, because
from podidentity_core.resource_ids import Host, IdentityResource
from podidentity_core.services.assignment import AssignmentSettings
from podidentity_core.services.hosts import HostLimits
from podidentity_core.testing.builders import (
    assignment,
    binding,
    client_id,
    identity,
    node,
    pod,
    resource,
    scale_set,
    vm,
    vmss_node,
)
from tests.core.mic import ARM_S, Mic

POD, NODE, IDENTITY, BINDING = pod(), node(), identity(), binding()
ALL: tuple[Thing, ...] = (POD, NODE, IDENTITY, BINDING)
NAME = "web-0-default-web"
SOON_S = ARM_S + 0.1
DEFAULTS = AssignmentSettings()

Start = Callable[..., AbstractAsyncContextManager[Mic]]


@pytest.fixture
def mic() -> Start:
    @asynccontextmanager
    async def start(
        *things: Thing, settings: AssignmentSettings = DEFAULTS, before: Callable[[Mic], None] | None = None
    ) -> AsyncIterator[Mic]:
        mic = Mic(*things, settings=settings)
        if before is not None:
            before(mic)
        await mic.start()
        yield mic
        await mic.crash()
        assert mic.clock.next_wake_s() is None, "something still sleeps"

    return start


class TestTheWholePath:
    """TestSimpleMICClient, and what a user sees of it."""

    async def test_a_pod_gets_its_identity_when_the_host_is_done(self, mic: Start) -> None:
        async with mic(*ALL) as it:
            await it.after(ARM_S - 0.01)
            before = (it.states, it.told)
            await it.after(0.01)

            assert before == ({NAME: "Created"}, [])
            assert (it.states, it.on(), it.told) == ({NAME: "Assigned"}, {"web"}, ["binding applied"])
            assert it.writes == ["create Created", "set_state Assigned"]

    async def test_pods_whose_write_has_ended_do_not_wait_for_the_next(self, mic: Start) -> None:
        async with mic(*ALL) as it:
            await it.after(ARM_S / 2)
            it.put(identity("db"), binding("db", selector="db"), pod("db-0", label="db"))
            await it.after(ARM_S / 2 + 0.1)

            assert it.states == {NAME: "Assigned", "db-0-default-db": "Created"}
            assert len(it.hosts.changes) == 2

    async def test_a_thousand_pods_on_a_host_are_not_looked_at_for_each_of_them(self, mic: Start) -> None:
        pods = [pod(f"web-{number}") for number in range(1000)]
        async with mic(NODE, IDENTITY, BINDING) as it:
            looks, look = count(), it.service._pod_worker.can_go_on

            def counted(plan: PodPlan) -> bool:
                next(looks)
                return look(plan)

            it.service._pod_worker.can_go_on = counted  # type: ignore[method-assign]
            for group in range(0, 1000, 10):
                it.put(*pods[group : group + 10])
                await it.after(0.05)
            await it.after(SOON_S)
            assigned = sum(state == "Assigned" for state in it.states.values())
            for one in pods:
                it.remove(one)
            await it.after(2 * SOON_S)

            assert assigned == 1000
            assert (it.states, it.on()) == ({}, set())
            assert next(looks) < 10 * len(pods)

    async def test_what_is_stored_says_all_that_nmi_needs(self, mic: Start) -> None:
        async with mic(*ALL) as it:
            await it.after(SOON_S)
            stored = it.stored(NAME)

        assert (stored.namespace, stored.pod, stored.node) == ("default", POD.key, "node-1")
        assert (stored.identity, stored.binding, stored.preexisting) == (IDENTITY, BINDING, False)

    async def test_the_event_is_at_the_binding(self, mic: Start) -> None:
        async with mic(*ALL) as it:
            await it.after(SOON_S)
            (event,) = it.events.published

        assert (event.kind, event.key, event.uid) == (Binding, BINDING.key, BINDING.uid)
        assert event.severity is Severity.NORMAL
        assert event.message == f"Binding web applied on node node-1 for pod {NAME}"

    async def test_a_deleted_pod_gives_its_identity_back_before_the_record_of_it_goes(self, mic: Start) -> None:
        async with mic(*ALL) as it:
            await it.after(SOON_S)
            it.cluster.calls.clear()
            it.remove(POD)
            await it.after(ARM_S - 0.01)
            before = it.states
            await it.after(0.02)

            assert before == {NAME: "Unassigned"}  # so that nobody is served by it any more
            assert (it.states, it.on()) == ({}, set())
            assert it.writes == ["set_state Unassigned", "delete"]

    async def test_an_identity_that_is_on_the_host_costs_one_write_and_one_event(self, mic: Start) -> None:
        async with mic(*ALL) as it:
            await it.after(SOON_S)
            it.cluster.calls.clear()
            it.events.published.clear()
            it.put(pod("second"))
            await it.after(0)

            assert it.states == {NAME: "Assigned", "second-default-web": "Assigned"}
            assert (it.writes, it.told) == (["create Assigned"], ["binding applied"])
            assert len(it.hosts.changes) == 1

    async def test_pods_that_come_while_the_host_is_busy_share_the_next_write(self, mic: Start) -> None:
        names = [f"id{n}" for n in range(20)]
        async with mic(NODE, POD, IDENTITY, BINDING) as it:
            await it.after(0.5)
            for name in names:
                it.put(identity(name), binding(name, selector=name), pod(name, label=name))
            await it.after(2 * ARM_S)

            assert set(it.states.values()) == {"Assigned"}
            assert it.on() == {"web", *names}
            assert len(it.hosts.changes) == 2

    async def test_additions_and_removals_share_a_write(self, mic: Start) -> None:
        async with mic(*ALL) as it:
            await it.after(SOON_S)
            it.put(identity("db"), binding("db", selector="db"), pod("db-0", label="db"))
            it.remove(POD)
            await it.after(2 * SOON_S)

            assert (it.states, it.on()) == ({"db-0-default-db": "Assigned"}, {"db"})

    async def test_an_identity_that_needs_nothing_on_the_host_is_assigned_at_once(self, mic: Start) -> None:
        async with mic(POD, NODE, identity(kind=IdentityKind.SERVICE_PRINCIPAL), BINDING) as it:
            await it.after(0)
            assigned = (it.states, it.on(), it.writes)
            it.remove(POD)
            await it.after(0)

            assert assigned == ({NAME: "Assigned"}, set(), ["create Assigned"])
            assert (it.states, it.hosts.changes) == ({}, [])

    @pytest.mark.parametrize("phase", [PodPhase.SUCCEEDED, PodPhase.FAILED])
    async def test_a_finished_pod_gives_its_identity_back(self, mic: Start, phase: PodPhase) -> None:
        async with mic(*ALL) as it:
            await it.after(SOON_S)
            it.put(replace(POD, phase=phase))
            await it.after(SOON_S)

            assert (it.states, it.on()) == ({}, set())

    async def test_nothing_happens_before_everything_has_been_seen(self) -> None:
        mic = Mic(NODE, IDENTITY, BINDING, assignment(POD), POD)
        mic.hosts.put(vm(), resource())
        await mic.start()
        await mic.after(1000)
        await mic.crash()

        assert (mic.states, mic.writes) == ({NAME: "Assigned"}, [])


class TestWhoNeedsIt:
    """An identity stays while anybody on the host needs it."""

    async def test_two_pods_deleted_and_a_third_created_with_one_azure_identity(self, mic: Start) -> None:
        """TestAddDelMICClient."""
        ids = [identity(f"id{n}", resource_name="one") for n in (1, 2, 3)]
        bindings = [binding(f"id{n}", selector=f"s{n}") for n in (1, 2, 3)]
        one, two, three = (pod(f"p{n}", label=f"s{n}") for n in (1, 2, 3))
        async with mic(NODE, *ids, *bindings, one, two) as it:
            await it.after(SOON_S)
            it.put(three)
            it.remove(one, two)
            await it.after(10 * ARM_S)

            assert (it.states, it.on()) == ({"p3-default-id3": "Assigned"}, {"one"})
            assert len(it.hosts.changes) == 1

    async def test_scale_sets(self, mic: Start) -> None:
        """TestMicAddDelVMSS."""
        nodes = [vmss_node("n1", "vmss1", 1), vmss_node("n2", "VMSS1", 2), vmss_node("n3", "vmss2", 3)]
        pods = [pod(f"p{n}", node=f"n{n}") for n in (1, 2, 3)]
        first, second = scale_set("vmss1"), scale_set("vmss2")
        async with mic(*nodes, IDENTITY, BINDING, *pods) as it:
            await it.after(SOON_S)
            seen = [(it.on(first), it.on(second))]
            for gone in pods[:2]:
                it.remove(gone)
                await it.after(SOON_S)
                seen.append((it.on(first), it.on(second)))

            assert seen == [({"web"}, {"web"}), ({"web"}, {"web"}), (set(), {"web"})]
            assert it.states == {"p3-default-web": "Assigned"}

    @pytest.mark.parametrize("immutable", [client_id(), resource().key], ids=["by client ID", "by resource ID"])
    async def test_an_immutable_identity_stays_everywhere(self, mic: Start, immutable: str) -> None:
        """TestMicAddDelVMSSWithImmutableIdentities."""
        settings = AssignmentSettings(rules=Rules(immutable=frozenset({immutable})))
        async with mic(*ALL, settings=settings) as it:
            await it.after(SOON_S)
            it.remove(POD)
            await it.after(SOON_S)

            assert (it.states, it.on()) == ({}, {"web"})

    async def test_pods_of_one_name_in_two_namespaces(self, mic: Start) -> None:
        """The original's defect 1."""
        a, b = pod("web-0", namespace="a"), pod("web-0", namespace="b")
        async with mic(NODE, IDENTITY, BINDING, a, b) as it:
            await it.after(SOON_S)
            it.remove(a)
            await it.after(SOON_S)

            assert (it.states, it.on()) == ({"web-0-b-web": "Assigned"}, {"web"})

    async def test_a_pod_that_comes_back_while_its_identity_leaves(self, mic: Start) -> None:
        async with mic(*ALL) as it:
            await it.after(SOON_S)
            it.remove(POD)
            await it.after(ARM_S / 2)
            it.put(replace(POD, uid="next"))
            await it.after(5 * ARM_S)

            assert (it.states, it.on()) == ({NAME: "Assigned"}, {"web"})

    async def test_a_pod_that_comes_back_after_its_deletion_failed_halfway_is_assigned_again(self, mic: Start) -> None:
        """The original's defect 7: for ever `Unassigned`."""
        async with mic(*ALL) as it:
            await it.after(SOON_S)
            it.remove(POD)
            for _ in range(3):  # the first attempt's echo in the watch brings the second at once
                it.cluster.fail_next(TransientError("no"), operation="delete")
            await it.after(ARM_S)
            halfway = it.states
            it.put(replace(POD, uid="next"))
            await it.after(10)

            assert halfway == {NAME: "Unassigned"}
            assert (it.states, it.on()) == ({NAME: "Assigned"}, {"web"})

    async def test_an_assignment_that_was_never_assigned_leaves_nothing_on_the_host(self, mic: Start) -> None:
        """The original's defect 8."""
        async with mic(*ALL) as it:
            it.cluster.fail_next(TransientError("no"), operation="set_state")
            await it.after(ARM_S)
            before = (it.states, it.on())
            it.remove(POD)
            await it.after(10)

            assert before == ({NAME: "Created"}, {"web"})
            assert (it.states, it.on()) == ({}, set())

    async def test_an_identity_that_an_administrator_put_there_stays(self, mic: Start) -> None:
        """The original's defect 11."""
        async with mic(*ALL, before=lambda it: it.hosts.put(vm(), resource())) as it:
            await it.after(0)
            stored = it.stored(NAME)
            it.remove(POD)
            await it.after(SOON_S)

            assert (stored.state, stored.preexisting) == (AssignmentState.ASSIGNED, True)
            assert (it.states, it.on(), it.hosts.changes) == ({}, {"web"}, [])

    async def test_other_identities_of_the_host_are_not_touched(self, mic: Start) -> None:
        before = lambda it: it.hosts.put(vm(), resource("other"), system_assigned=True)  # noqa: E731
        async with mic(*ALL, before=before) as it:
            await it.after(SOON_S)
            with_pod = it.on()
            it.remove(POD)
            await it.after(SOON_S)

            assert (with_pod, it.on(), it.hosts.has_system_assigned(vm())) == ({"other", "web"}, {"other"}, True)

    async def test_assignments_of_the_original_count_as_our_own(self, mic: Start) -> None:
        before = lambda it: it.hosts.put(vm(), resource())  # noqa: E731
        async with mic(NODE, IDENTITY, BINDING, assignment(POD), before=before) as it:
            await it.after(SOON_S)

            assert (it.states, it.on()) == ({}, set())


class TestUpdates:
    """TestUpdateAssignedIdentities, TestAddUpdateDel."""

    async def test_an_identity_with_a_new_resource_id(self, mic: Start) -> None:
        async with mic(*ALL) as it:
            await it.after(SOON_S)
            it.put(identity(resource_name="new"))
            await it.after(10 * ARM_S)

            assert (it.states, it.on()) == ({NAME: "Assigned"}, {"new"})
            assert it.stored(NAME).identity.host_resource == resource("new")

    async def test_a_pod_on_another_node(self, mic: Start) -> None:
        async with mic(*ALL, node("node-2")) as it:
            await it.after(SOON_S)
            it.put(replace(POD, node="node-2", uid="next"))
            await it.after(10 * ARM_S)

            assert (it.states, it.on(), it.on(vm("node-2"))) == ({NAME: "Assigned"}, set(), {"web"})
            assert it.stored(NAME).node == "node-2"

    async def test_an_edit_that_changes_no_content_costs_nothing(self, mic: Start) -> None:
        """The original's defect 24."""
        async with mic(*ALL) as it:
            await it.after(SOON_S)
            it.cluster.calls.clear()
            it.put(replace(IDENTITY, resource_version="99"), replace(BINDING, resource_version="99"))
            await it.after(SOON_S)

            assert it.writes == []

    async def test_one_update_one_creation_and_one_deletion(self, mic: Start) -> None:
        two = pod("two", label="two")
        things = [identity("two"), binding("two", selector="two"), two, identity("three"), pod("three", label="three")]
        async with mic(*ALL, *things) as it:
            await it.after(SOON_S)
            it.put(identity(resource_name="new"), binding("three", selector="three"))
            it.remove(two)
            await it.after(10 * ARM_S)

            assert it.states == {"three-default-three": "Assigned", NAME: "Assigned"}
            assert it.on() == {"new", "three"}

    async def test_an_azure_identity_in_other_letters_is_the_same(self, mic: Start) -> None:
        """The original's defect 15: removed or kept by chance."""
        async with mic(*ALL) as it:
            await it.after(SOON_S)
            it.put(identity(resource_name="WEB", client=client_id()))
            await it.after(10 * ARM_S)

            assert (it.states, it.on(), len(it.hosts.changes)) == ({NAME: "Assigned"}, {"web"}, 1)

    async def test_a_failing_update_is_tried_again_and_leaves_nothing_behind(self, mic: Start) -> None:
        async with mic(*ALL) as it:
            await it.after(SOON_S)
            for _ in range(4):
                it.cluster.fail_next(TransientError("no"), operation="update")
            it.put(identity(resource_name="new"))
            await it.after(200)

            assert (it.states, it.on()) == ({NAME: "Assigned"}, {"new"})
            assert len(it.events_of("binding apply error")) == 4


class TestNamespaces:
    async def test_equal_names_in_two_namespaces(self, mic: Start) -> None:
        """TestForceNamespaced."""
        pods = [pod(f"p{ns}", namespace=ns) for ns in "ab"]
        things = [made(namespace=ns) for ns in "ab" for made in (identity, binding)]
        async with mic(NODE, *pods, *things, settings=AssignmentSettings(rules=Rules(namespaced=True))) as it:
            await it.after(SOON_S)

            assert set(it.cluster.assignments) == {Key("a", "pa-a-web"), Key("b", "pb-b-web")}
            assert set(it.states.values()) == {"Assigned"}

    async def test_the_alphabetically_first_namespace_wins(self, mic: Start) -> None:
        """e2e name_conflict."""
        things = [made(namespace=ns) for ns in "ba" for made in (identity, binding)]
        async with mic(NODE, pod("p", namespace="a"), *things) as it:
            await it.after(SOON_S)

            assert it.stored("p-a-web").identity.namespace == "a"


class TestNodesThatGo:
    async def test_pods_whose_nodes_and_hosts_vanish(self, mic: Start) -> None:
        """TestSyncNodeNotFound."""
        nodes = [node(f"n{i}") for i in range(10)]
        pods = [pod(f"p{i}", node=f"n{i}") for i in range(10)]
        async with mic(*nodes, *pods, IDENTITY, BINDING) as it:
            await it.after(SOON_S)
            for gone, its_pod in zip(nodes[:5], pods[:5], strict=True):
                it.hosts.remove(vm(gone.name))
                it.remove(gone, its_pod)
            it.put(pod("new", node="n7"))
            await it.after(100)

            assert len(it.states) == 6
            assert set(it.states.values()) == {"Assigned"}
            assert len(it.events_of("binding removed")) == 5

    async def test_the_last_pod_of_a_node_that_was_scaled_in_leaves_nothing_on_its_scale_set(self, mic: Start) -> None:
        """The original's defect 9."""
        gone = vmss_node("n1", instance=1)
        only = pod(node="n1")
        async with mic(gone, vmss_node("n2", instance=2), only, IDENTITY, BINDING) as it:
            await it.after(SOON_S)
            it.remove(gone, only)
            await it.after(SOON_S)

            assert (it.states, it.on(scale_set())) == ({}, set())

    async def test_the_same_while_mic_was_away(self, mic: Start) -> None:
        gone = vmss_node("n1", instance=1)
        only = pod(node="n1")
        async with mic(gone, vmss_node("n2", instance=2), only, IDENTITY, BINDING) as it:
            await it.after(SOON_S)
            await it.crash()
            it.remove(gone, only)
            await it.start()
            await it.after(SOON_S)

            assert (it.states, it.on(scale_set())) == ({}, set())

    async def test_a_pod_that_comes_before_its_node(self, mic: Start) -> None:
        async with mic(POD, IDENTITY, BINDING) as it:
            await it.after(10)
            before = it.states
            it.put(NODE)
            await it.after(SOON_S)

            assert (before, it.states) == ({}, {NAME: "Assigned"})


class TestHostsThatFail:
    @pytest.mark.parametrize(
        "error",
        [TransientError("no"), PermissionRefused("no")],
        ids=lambda error: type(error).__name__,
    )
    async def test_it_is_told_at_the_binding_and_tried_again(self, mic: Start, error: PodIdentityError) -> None:
        async with mic(*ALL) as it:
            it.hosts.fail_next(error, after_write=True)
            await it.after(ARM_S)
            before = (it.states, it.told)
            await it.after(30)

            assert before == ({NAME: "Created"}, ["binding apply error"])
            assert (it.states, it.on()) == ({NAME: "Assigned"}, {"web"})
            assert it.told == ["binding apply error", "binding applied"]

    async def test_why_an_assignment_waits_is_noted_at_it_when_that_does_not_pass(self, mic: Start) -> None:
        """One write for all tries; the state that it reaches in the end takes the reason away."""

        def fail(it: Mic) -> None:
            change, tries = it.hosts.change, count()

            async def failing(host: Host, **what: Collection[IdentityResource]) -> HostState:
                if (number := next(tries)) < 9:
                    raise TransientError(f"Azure is away, request {number}")
                return await change(host, **what)

            it.hosts.change = failing  # type: ignore[assignment]

        async with mic(*ALL, before=fail) as it:
            await it.after(0.5 + 1)
            passing = it.stored(NAME).reason
            await it.after(30)
            lasting = it.stored(NAME).reason
            await it.after(600)

            assert passing == ""
            assert lasting.startswith(
                "PI502: the identities of node-1 could not be changed: Azure is away, request 3; "
            )
            assert (it.states, it.stored(NAME).reason) == ({NAME: "Assigned"}, "")
            assert it.writes == ["create Created", "explain", "set_state Assigned"]

    async def test_a_refused_identity_is_noted_at_once_and_only_at_its_own_assignments(self, mic: Start) -> None:
        things = (*ALL, identity("bad"), binding("bad", selector="web"))
        async with mic(*things, before=lambda it: it.hosts.refuse(resource("bad"))) as it:
            await it.after(SOON_S + 2)

            assert it.stored(NAME).reason == ""
            assert it.stored("web-0-default-bad").reason.startswith(
                "PI501: Azure refuses to put AzureIdentity default/bad"
            )

    async def test_the_event_names_binding_node_pod_problem_and_remedy(self, mic: Start) -> None:
        async with mic(*ALL, before=lambda it: it.hosts.fail_next(PermissionRefused("no right"))) as it:
            await it.after(0)
            (event,) = it.events_of("binding apply error")
            told_pods = it.told_pods

        assert event.severity is Severity.WARNING
        assert event.message.startswith(
            "failed to apply binding default/web node node-1 for pod default/web-0, error: no right"
        )
        assert "PI502" in event.message
        assert [(name, "default/web: no right (PI502" in message) for name, message in told_pods] == [("web-0", True)]

    async def test_a_removal_that_fails_is_tried_again(self, mic: Start) -> None:
        """TestMICStateFlow, TestSyncRetryLoop."""
        async with mic(*ALL) as it:
            await it.after(SOON_S)
            it.hosts.fail_next(TransientError("no"))
            it.remove(POD)
            await it.after(0)
            before = (it.states, it.on())
            await it.after(10)

            assert before == ({NAME: "Unassigned"}, {"web"})
            assert (it.states, it.on()) == ({}, set())

    async def test_a_record_stays_while_its_identity_is_being_removed(self, mic: Start) -> None:
        """Nobody else remembers the identity, should the removal fail."""
        async with mic(*ALL) as it:
            await it.after(SOON_S)
            it.hosts.fail_next(TransientError("no"), after_write=True)
            it.remove(POD)
            await it.after(ARM_S / 2)
            it.put(replace(it.stored(NAME), origin="somebody has edited it"))
            await it.after(0)
            meanwhile = it.states
            it.hosts.put(vm(), resource())
            await it.after(60)

            assert meanwhile == {NAME: "Unassigned"}
            assert (it.states, it.on()) == ({}, set())

    async def test_a_throttled_host_is_left_alone_until_then_whatever_happens(self, mic: Start) -> None:
        async with mic(*ALL, before=lambda it: it.hosts.fail_next(Throttled("slow", retry_after_s=60))) as it:
            for n in range(5):
                it.put(pod(f"p{n}"))
                await it.after(10)
            before = list(it.hosts.changes)
            await it.after(20)

            assert before == []
            assert set(it.states.values()) == {"Assigned"}

    async def test_a_slow_host_delays_nobody_else(self, mic: Start) -> None:
        async with mic(*ALL) as it:
            it.hosts.duration_s = 900
            it.put(node("slow"), pod("slow", node="slow"))
            await it.after(0)
            it.hosts.duration_s = ARM_S
            it.put(node("fast"), pod("fast", node="fast"))
            await it.after(SOON_S)

            assert it.states["fast-default-web"] == "Assigned"
            assert it.states["slow-default-web"] == "Created"

    async def test_a_lost_answer_makes_nothing_foreign(self, mic: Start) -> None:
        async with mic(*ALL) as it:
            it.hosts.fail_next(TransientError("lost"), after_write=True)
            await it.after(60)
            with_pod = (it.states, it.stored(NAME).preexisting)
            it.remove(POD)
            await it.after(SOON_S)

            assert with_pod == ({NAME: "Assigned"}, False)
            assert (it.states, it.on()) == ({}, set())

    async def test_a_write_of_somebody_else_that_replaces_ours(self, mic: Start) -> None:
        async with mic(*ALL) as it:
            await it.after(ARM_S / 2)
            it.hosts.preempt(vm(), resource("theirs"))
            await it.after(1.0 + ARM_S)
            with_pod = (it.states, it.on(), it.told)
            it.remove(POD)
            await it.after(60)

            assert with_pod == ({NAME: "Assigned"}, {"theirs", "web"}, ["binding applied"])
            assert (it.states, it.on()) == ({}, {"theirs"})

    async def test_a_host_that_is_gone_while_its_pods_are_not(self, mic: Start) -> None:
        async with mic(*ALL) as it:
            await it.after(SOON_S)
            it.hosts.remove(vm())
            it.put(identity("db"), binding("db"))
            await it.after(10)
            failed = it.told[-1]
            it.remove(POD)
            await it.after(600)

            assert failed == "binding apply error"
            assert it.states == {}


class TestRefusedIdentities:
    """TestCloudProviderRetryLoop."""

    BOTH = (*ALL, identity("bad"), binding("bad"))

    async def test_one_does_not_stop_the_others(self, mic: Start) -> None:
        async with mic(*self.BOTH, before=lambda it: it.hosts.refuse(resource("bad"))) as it:
            await it.after(SOON_S + 1)

            assert it.states == {"web-0-default-bad": "Created", NAME: "Assigned"}
            assert it.on() == {"web"}
            (event,) = it.events_of("binding apply error")
            assert (event.key.name, "PI501" in event.message) == ("bad", True)

    async def test_it_is_asked_for_again_ever_less_often_and_assigned_in_the_end(self, mic: Start) -> None:
        async with mic(*self.BOTH, before=lambda it: it.hosts.refuse(resource("bad"))) as it:
            await it.after(3600)
            refusals = len(it.events_of("binding apply error"))
            it.hosts.accept(resource("bad"))
            await it.after(3700)

            assert 3 <= refusals < 6
            assert set(it.states.values()) == {"Assigned"}
            assert it.on() == {"bad", "web"}

    async def test_editing_its_azure_identity_ends_its_wait(self, mic: Start) -> None:
        async with mic(*self.BOTH, before=lambda it: it.hosts.refuse(resource("bad"))) as it:
            await it.after(10)
            it.hosts.accept(resource("bad"))
            it.put(identity("bad"))
            await it.after(SOON_S)

            assert set(it.states.values()) == {"Assigned"}

    async def test_one_that_azure_does_not_name_is_found_and_the_others_are_assigned_in_the_same_round(
        self, mic: Start
    ) -> None:
        others = [thing for n in range(20) for thing in (identity(f"id-{n}"), binding(f"id-{n}"))]

        def refuse(it: Mic) -> None:
            it.hosts.refuse(resource("bad"), named=False)

        async with mic(*self.BOTH, *others, before=refuse) as it:
            await it.after(10 * (ARM_S + 1))

            assert [name for name, state in it.states.items() if state != "Assigned"] == ["web-0-default-bad"]
            assert it.hosts.writes <= 12
            (event,) = it.events_of("binding apply error")
            assert event.key.name == "bad"

    async def test_its_pod_may_go_without_ado(self, mic: Start) -> None:
        async with mic(*self.BOTH, before=lambda it: it.hosts.refuse(resource("bad"))) as it:
            await it.after(10)
            it.remove(POD)
            await it.after(SOON_S)

            assert (it.states, it.on()) == ({}, set())

    async def test_several_pods_have_one_refused_identity(self, mic: Start) -> None:
        async with mic(*self.BOTH, pod("p2"), before=lambda it: it.hosts.refuse(resource("bad"))) as it:
            await it.after(SOON_S + 1)

            assert len(it.events_of("binding apply error")) == 2
            assert [state for name, state in it.states.items() if name.endswith("-web")] == ["Assigned", "Assigned"]


class TestTheApiServerFails:
    @pytest.mark.parametrize("operation", ["create", "set_state"])
    @pytest.mark.parametrize("error", [TransientError("no"), Conflict("no"), PermissionRefused("no")])
    async def test_a_write_is_tried_again(self, mic: Start, operation: str, error: PodIdentityError) -> None:
        async with mic(*ALL, before=lambda it: it.cluster.fail_next(error, operation=operation)) as it:
            await it.after(30)

            assert (it.states, it.on()) == ({NAME: "Assigned"}, {"web"})
            assert len(it.told) == 2

    async def test_a_deletion_that_fails_does_not_keep_others_from_being_assigned(self, mic: Start) -> None:
        """TestMICStateFlow."""
        async with mic(*ALL) as it:
            await it.after(SOON_S)
            for _ in range(3):
                it.cluster.fail_next(TransientError("no"), operation="delete")
            it.put(pod("new"))
            it.remove(POD)
            await it.after(0.1)
            before = it.states
            it.remove(pod("new"))
            await it.after(60)

            assert before == {"new-default-web": "Assigned", NAME: "Unassigned"}
            assert (it.states, it.on()) == ({}, set())

    async def test_one_assignment_that_fails_does_not_stop_the_pod_s_other(self, mic: Start) -> None:
        before = lambda it: it.cluster.fail_next(PermissionRefused("no"), operation="create")  # noqa: E731
        async with mic(*ALL, identity("a"), binding("a"), before=before) as it:
            assert (it.states[NAME], it.told) == ("Created", ["binding apply error"])

            await it.after(ARM_S + SOON_S)

            assert set(it.states.values()) == {"Assigned"}

    async def test_somebody_deletes_an_assignment(self, mic: Start) -> None:
        """`kubectl delete azureassignedidentity`: the finalizer keeps it until MIC has seen it."""
        async with mic(*ALL) as it:
            await it.after(SOON_S)
            it.put(replace(it.stored(NAME), deleting=True))
            await it.after(SOON_S)
            back = (it.states, it.stored(NAME).deleting, it.stored(NAME).preexisting)
            it.remove(POD)
            await it.after(SOON_S)

            assert back == ({NAME: "Assigned"}, False, False)
            assert (it.states, it.on()) == ({}, set())

    async def test_an_assignment_is_gone_behind_our_back(self, mic: Start) -> None:
        async with mic(*ALL) as it:
            await it.after(SOON_S)
            it.remove(it.stored(NAME))
            await it.after(SOON_S)

            assert it.states == {NAME: "Assigned"}

    async def test_an_assignment_goes_while_its_state_is_written(self, mic: Start) -> None:
        async with mic(*ALL) as it:
            it.cluster._tell = lambda _: None  # type: ignore[method-assign]  # the watch is late
            it.remove(it.stored(NAME))
            await it.after(30)

            assert it.states == {NAME: "Assigned"}
            assert it.told == ["binding applied"]


class TestDrift:
    async def test_an_identity_that_was_taken_off_by_hand_is_put_back(self, mic: Start) -> None:
        """e2e single_identity."""
        async with mic(*ALL) as it:
            await it.after(SOON_S)
            it.hosts.put(vm())
            await it.after(180)
            await it.after(SOON_S)

            assert (it.states, it.on()) == ({NAME: "Assigned"}, {"web"})

    async def test_it_is_switched_off_by_zero(self, mic: Start) -> None:
        settings = AssignmentSettings(drift_interval_s=0, resync_interval_s=0)
        async with mic(*ALL, settings=settings) as it:
            await it.after(SOON_S)
            it.hosts.put(vm())
            await it.after(10_000)

            assert it.on() == set()

    async def test_one_host_that_fails_does_not_stop_the_others(self, mic: Start) -> None:
        """The original's defect 26."""
        nodes = [node(f"n{i}") for i in range(3)]
        async with mic(*nodes, *(pod(f"p{i}", node=f"n{i}") for i in range(3)), IDENTITY, BINDING) as it:
            await it.after(SOON_S)
            it.hosts.remove(vm("n0"))
            for i in (1, 2):
                it.hosts.put(vm(f"n{i}"))
            await it.after(180 + SOON_S)

            assert [it.on(vm(f"n{i}")) for i in (1, 2)] == [{"web"}, {"web"}]


class TestTellMeWhy:
    """Events at the pod, and measures, for those who wait for an identity."""

    async def test_a_pod_without_a_binding_is_told_once(self, mic: Start) -> None:
        async with mic(*ALL, pod("lost", label="nobody")) as it:
            await it.after(SOON_S)
            it.put(pod("lost", label="nobody", labels={"edited": "yes"}))
            await it.after(3600)

            assert [name for name, _ in it.told_pods] == ["lost"]
            assert "no AzureIdentityBinding selects pod default/lost" in it.told_pods[0][1]
            assert it.meter.gauges["mic_skipped_pods:PI102"] == 1

    async def test_when_the_reason_goes_it_counts_no_more(self, mic: Start) -> None:
        async with mic(*ALL, pod("lost", label="nobody")) as it:
            await it.after(SOON_S)
            it.put(binding("late", identity_name="web", selector="nobody"))
            await it.after(SOON_S)

            assert it.meter.gauges["mic_skipped_pods:PI102"] == 0
            assert it.states["lost-default-web"] == "Assigned"

    @pytest.mark.parametrize("waiting", [pod("new", node=""), pod("done", phase=PodPhase.SUCCEEDED)])
    async def test_what_is_nobody_s_fault_is_no_event(self, mic: Start, waiting: Pod) -> None:
        async with mic(*ALL, waiting) as it:
            await it.after(SOON_S)

            assert it.told_pods == []

    async def test_the_time_from_pod_to_identity_is_measured(self, mic: Start) -> None:
        async with mic(*ALL) as it:
            await it.after(10)
            it.put(pod("second"))
            it.put(replace(POD, labels={"edited": "yes"}))
            await it.after(10)

            (first_s, second_s) = it.meter.observed["mic_assignment_duration_seconds"]
            assert ARM_S <= first_s <= SOON_S
            assert second_s == 0

    async def test_what_waits_for_a_host_is_measured_when_somebody_looks(self, mic: Start) -> None:
        async with mic(*ALL) as it:
            await it.after(ARM_S - 0.5)
            it.service.measure()
            waiting = (it.meter.gauges["mic_waiting_assignments:node-1"], it.meter.gauges["mic_waiting_seconds:node-1"])
            await it.after(10)
            it.service.measure()

            assert waiting == (1, ARM_S - 0.5)
            assert it.meter.gauges["mic_waiting_assignments:node-1"] == 0


class TestGrace:
    """Identities stay on their host for a while when their last pod has gone."""

    SETTINGS = AssignmentSettings(limits=HostLimits(grace_s=60.0))

    async def test_a_pod_that_is_replaced_costs_azure_nothing(self, mic: Start) -> None:
        async with mic(*ALL, settings=self.SETTINGS) as it:
            await it.after(SOON_S)
            it.remove(POD)
            await it.after(30)
            between = it.states
            it.put(replace(POD, uid="another"))
            await it.after(0)

            assert between == {NAME: "Unassigned"}
            assert it.states == {NAME: "Assigned"}
            assert len(it.hosts.changes) == 1

    async def test_it_leaves_in_the_end_and_its_record_with_it(self, mic: Start) -> None:
        async with mic(*ALL, settings=self.SETTINGS) as it:
            await it.after(SOON_S)
            it.remove(POD)
            await it.after(59)
            before = (it.states, it.on())
            await it.after(1 + SOON_S)

            assert before == ({NAME: "Unassigned"}, {"web"})
            assert (it.states, it.on()) == ({}, set())

    async def test_a_revoked_binding_ends_service_at_once(self, mic: Start) -> None:
        async with mic(*ALL, settings=self.SETTINGS) as it:
            await it.after(SOON_S)
            it.remove(BINDING)
            await it.after(0)

            assert it.states == {NAME: "Unassigned"}

    async def test_a_successor_waits_anew_and_finishes_the_work(self, mic: Start) -> None:
        async with mic(*ALL, settings=self.SETTINGS) as it:
            await it.after(SOON_S)
            it.remove(POD)
            await it.after(30)
            await it.crash()
            await it.start()
            await it.after(59)
            before = it.on()
            await it.after(1 + SOON_S)

            assert before == {"web"}
            assert (it.states, it.on()) == ({}, set())


class TestLeadership:
    async def test_a_host_is_not_written_to_once_the_lead_is_lost(self, mic: Start) -> None:
        async with mic(*ALL) as it:
            await it.after(SOON_S)
            it.lock._held = False
            it.remove(POD)
            await it.after(60)

            assert (it.on(), len(it.hosts.changes)) == ({"web"}, 1)

    async def test_a_successor_goes_on(self, mic: Start) -> None:
        async with mic(*ALL) as it:
            await it.after(ARM_S / 2)
            await it.crash()
            await it.start()
            await it.after(2 * ARM_S)

            assert (it.states, it.on()) == ({NAME: "Assigned"}, {"web"})
            assert it.stored(NAME).preexisting is False


class TestObjectsThatCannotBeUsed:
    async def test_an_identity_becomes_unusable(self, mic: Start) -> None:
        bad = because(Reason.BAD_RESOURCE_ID, identity="default/web", problem="no")
        async with mic(*ALL, identity("db"), binding("db")) as it:
            await it.after(SOON_S)
            it.cluster.put(Unusable(type(IDENTITY), IDENTITY.key, bad))
            await it.after(SOON_S)

            assert (it.states, it.on()) == ({"web-0-default-db": "Assigned"}, {"db"})
