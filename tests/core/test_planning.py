"""The planner: by its decision table, and by properties that hold in every cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from podidentity_core.matching import matches
from podidentity_core.model import (
    Assignment,
    AssignmentState,
    Binding,
    Gone,
    IdentityKind,
    Key,
    Node,
    Pod,
    Seen,
    Thing,
)
from podidentity_core.planning import HostNeeds, Planner, PodPlan, Rules, Update, plan, plan_pod
from podidentity_core.reasons import Explanation, Reason, because
from podidentity_core.resource_ids import Host, HostKind
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
from podidentity_core.view import ClusterView
from tests.core.worlds import Worlds, carried_out, things_of

SEEDS = range(60)
POD, NODE, IDENTITY, BINDING = pod(), node(), identity(), binding()
WANTED = assignment(POD, state=AssignmentState.CREATED)
STORED = assignment(POD)
WEB = frozenset({resource()})
SECRET = identity(kind=IdentityKind.SERVICE_PRINCIPAL)


def unsaved(wanted: Assignment) -> Assignment:
    """*wanted* as a plan shows it: without what only the server knows."""
    return replace(wanted, uid="", resource_version="")


@dataclass(frozen=True)
class Case:
    """Things, and the parts of the pod's plan that are not empty."""

    things: Sequence[Thing]
    create: Sequence[Assignment] = ()
    update: Sequence[Update] = ()
    keep: Sequence[Assignment] = ()
    delete: Sequence[Assignment] = ()
    skipped: Sequence[Explanation] = ()


NEW_ID = identity(resource_name="new")
NO_HOST = Node("node-1", None, "the providerID is empty")
NO_NODE = because(Reason.HOST_UNKNOWN, pod="default/web-0", node="node-1", problem="the node does not exist")
BAD_NODE = because(Reason.HOST_UNKNOWN, pod="default/web-0", node="node-1", problem="the providerID is empty")
ELSEWHERE = replace(STORED, node="node-2")
FOREIGN = replace(STORED, preexisting=True)
OTHER = binding("other", identity_name="web")
RULES_THE_SAME = replace(IDENTITY, resource_version="99")

CASES = {
    "not stored, wanted": Case([POD, NODE, IDENTITY, BINDING], create=[unsaved(WANTED)]),
    "stored, not wanted": Case([NODE, IDENTITY, BINDING, STORED], delete=[STORED]),
    "stored, without binding": Case(
        [POD, NODE, IDENTITY, STORED],
        delete=[STORED],
        skipped=[because(Reason.NO_BINDING, pod="default/web-0", label="web")],
    ),
    "the same content": Case([POD, NODE, IDENTITY, BINDING, STORED], keep=[STORED]),
    "the same content, whatever its state": Case([POD, NODE, IDENTITY, BINDING, WANTED], keep=[WANTED]),
    "an edit that changes no content": Case([POD, NODE, RULES_THE_SAME, BINDING, STORED], keep=[STORED]),
    # TestUpdateAssignedIdentities
    "the identity has another resource ID": Case(
        [POD, NODE, NEW_ID, BINDING, STORED],
        update=[Update(STORED, unsaved(replace(WANTED, identity=NEW_ID)))],
    ),
    "the pod is on another node": Case(
        [POD, NODE, node("node-2"), IDENTITY, BINDING, ELSEWHERE],
        update=[Update(ELSEWHERE, unsaved(WANTED))],
    ),
    "through another binding": Case(
        [POD, NODE, IDENTITY, OTHER, STORED],
        update=[Update(STORED, unsaved(replace(WANTED, binding=OTHER)))],
    ),
    "being deleted, wanted": Case(
        [POD, NODE, IDENTITY, BINDING, replace(STORED, deleting=True)],
        create=[unsaved(WANTED)],
        delete=[replace(STORED, deleting=True)],
    ),
    "a foreign identity stays foreign on its host": Case(
        [POD, NODE, IDENTITY, OTHER, FOREIGN],
        update=[
            Update(
                FOREIGN,
                unsaved(replace(WANTED, binding=OTHER, preexisting=True)),
            )
        ],
    ),
    "a foreign identity is not foreign on another host": Case(
        [POD, NODE, node("node-2"), IDENTITY, BINDING, replace(FOREIGN, node="node-2")],
        update=[Update(replace(FOREIGN, node="node-2"), unsaved(WANTED))],
    ),
    "another identity is not foreign": Case(
        [POD, NODE, NEW_ID, BINDING, FOREIGN],
        update=[Update(FOREIGN, unsaved(replace(WANTED, identity=NEW_ID)))],
    ),
    "noted on the node's host": Case(
        [POD, NODE, IDENTITY, BINDING, replace(STORED, host=vm("NODE-1"))],
        keep=[replace(STORED, host=vm("NODE-1"))],
    ),
    "the node's name stands for another host by now": Case(
        [POD, NODE, IDENTITY, BINDING, replace(FOREIGN, host=vm("noted"))],
        update=[Update(replace(FOREIGN, host=vm("noted")), unsaved(WANTED))],
    ),
    "noted, and the node is not known": Case(
        [POD, IDENTITY, BINDING, replace(STORED, host=vm("noted"))], keep=[replace(STORED, host=vm("noted"))]
    ),
    "no node": Case([POD, IDENTITY, BINDING], skipped=[NO_NODE]),
    "no node, stored for another binding": Case([POD, IDENTITY, OTHER, STORED], keep=[STORED], skipped=[NO_NODE]),
    "no node, stored for another node": Case(
        [POD, IDENTITY, BINDING, ELSEWHERE], delete=[ELSEWHERE], skipped=[NO_NODE]
    ),
    "no node, stored with what the identity was": Case(
        [POD, NEW_ID, BINDING, STORED], delete=[STORED], skipped=[NO_NODE]
    ),
    "a node without a host": Case([POD, NO_HOST, IDENTITY, BINDING], skipped=[BAD_NODE]),
    "a node without a host, nothing is needed there": Case(
        [POD, NO_HOST, SECRET, BINDING], create=[unsaved(assignment(POD, SECRET, state=AssignmentState.CREATED))]
    ),
    "nothing at all": Case([]),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_plan_of_one_pod(case: Case) -> None:
    got = plan_pod(ClusterView.of(case.things), POD.key, namespaced=False)

    assert got == PodPlan(
        tuple(case.create), tuple(case.update), tuple(case.keep), tuple(case.delete), tuple(case.skipped)
    )


ON_POOL = [vmss_node("n1", instance=1), vmss_node("n2", instance=2), vmss_node("n3", "POOL", instance=3)]
P1, P2 = pod("p1", node="n1"), pod("p2", node="n2")


def needs(things: Sequence[Thing], host: Host, rules: Rules = Rules()) -> HostNeeds:
    found = [need for need in plan(ClusterView.of(things), rules).hosts if need.host == host]
    return found[0] if found else HostNeeds(host)


def test_nodes_of_one_scale_set_share_its_needs_whatever_their_letters() -> None:
    third = pod("p3", node="n3")
    got = needs([*ON_POOL, P1, P2, IDENTITY, BINDING, assignment(P2), assignment(third)], scale_set())

    assert got == HostNeeds(scale_set(), needed=WEB, planned=WEB, leaving=WEB)


def test_a_scale_set_and_a_vm_of_one_name_do_not_mix() -> None:
    things: list[Thing] = [node("n1", host=vm("pool")), *ON_POOL[1:], P1, IDENTITY, BINDING, assignment(P2)]

    assert needs(things, vm("pool")) == HostNeeds(vm("pool"), planned=WEB)
    assert needs(things, scale_set()) == HostNeeds(scale_set(), leaving=WEB)


def test_scale_sets_of_one_name_in_two_groups_do_not_mix() -> None:
    other = Host(HostKind.SCALE_SET, scale_set().subscription, "another-group", "pool")
    things: list[Thing] = [ON_POOL[0], node("n2", host=other), P1, IDENTITY, BINDING]

    assert needs(things, scale_set()).planned == {resource()}
    assert needs(things, other) == HostNeeds(other)


def test_pods_of_one_name_in_two_namespaces_do_not_mix() -> None:
    """The original's defect 1: deleting one took the identity from the other."""
    stays, went = pod("web-0", namespace="a"), pod("web-0", namespace="b")
    got = needs([NODE, stays, IDENTITY, BINDING, assignment(stays), assignment(went)], vm())

    assert got == HostNeeds(vm(), needed=WEB, leaving=WEB)


def test_two_identities_for_one_azure_identity_on_one_pod() -> None:
    """The original's defect 2: deleting one took the identity from the other."""
    alias = identity("alias", resource_name="WEB")
    got = needs([NODE, POD, IDENTITY, BINDING, STORED, assignment(POD, alias, binding("alias"))], vm())

    assert got == HostNeeds(vm(), needed=WEB, leaving=WEB)


@pytest.mark.parametrize(
    ("immutable", "kept"),
    [(set(), False), ({client_id("db"), resource("db").key}, False), ({client_id()}, True), ({resource().key}, True)],
    ids=["none", "others", "by client ID", "by resource ID"],
)
def test_immutable_identities_are_kept(immutable: set[str], kept: bool) -> None:
    upper = identity(client=client_id().upper(), resource_name="WEB")
    got = needs([NODE, assignment(POD, upper)], vm(), Rules(immutable=frozenset(immutable)))

    assert bool(got.kept) is kept


def test_a_foreign_identity_is_kept() -> None:
    assert needs([NODE, FOREIGN], vm()) == HostNeeds(vm(), leaving=WEB, kept=WEB)


def test_an_assignment_on_a_node_that_nobody_knows_has_no_say() -> None:
    assert plan(ClusterView.of([STORED])).hosts == ()


@pytest.mark.parametrize("things", [[], [NODE], [NO_HOST]], ids=["unknown", "on another host", "without a host"])
def test_an_assignment_has_a_say_on_the_host_that_it_notes_whatever_its_node_is_by_now(things: list[Thing]) -> None:
    noted = replace(STORED, host=vm("noted"))

    assert plan(ClusterView.of([*things, noted])).hosts == (HostNeeds(vm("noted"), leaving=WEB),)


def test_an_assignment_whose_node_has_another_host_by_now_leaves_the_one_for_the_other() -> None:
    """A scale set was made anew under another name, with nodes of the former names."""
    things: list[Thing] = [POD, NODE, IDENTITY, BINDING, replace(STORED, host=vm("noted"))]

    assert needs(things, vm("noted")) == HostNeeds(vm("noted"), leaving=WEB)
    assert needs(things, vm()) == HostNeeds(vm(), planned=WEB)


def test_an_update_lets_the_former_identity_leave() -> None:
    got = needs([POD, NODE, NEW_ID, BINDING, STORED], vm())

    assert got == HostNeeds(vm(), planned=frozenset({resource("new")}), leaving=WEB)


def test_an_identity_is_needed_once_its_assignment_is_stored() -> None:
    things: list[Thing] = [POD, NODE, IDENTITY, BINDING]

    assert needs(things, vm()) == HostNeeds(vm(), planned=WEB)
    assert needs([*things, STORED], vm()) == HostNeeds(vm(), needed=WEB)


@pytest.mark.parametrize("namespaced", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_carrying_a_plan_out_reaches_what_should_be_and_leaves_nothing_to_do(seed: int, namespaced: bool) -> None:
    view = ClusterView.of(Worlds(seed).things())
    rules = Rules(namespaced=namespaced)
    first = plan(view, rules)

    after = ClusterView.of(carried_out(first, things_of(view)))
    second = plan(after, rules)

    assert (second.create, second.update, second.delete) == ((), (), ())
    assert second.skipped == first.skipped
    assert _uses(after) == _desired(after, namespaced=namespaced)


def _uses(view: ClusterView) -> set[tuple[Key, Key, Key]]:
    """Who has what through which binding, of pods on nodes with a host."""
    return {
        (found.pod, found.identity.key, found.binding.key)
        for found in view.assignments.values()
        if _is_placed(view, found.pod)
    }


def _desired(view: ClusterView, *, namespaced: bool) -> set[tuple[Key, Key, Key]]:
    return {
        (one.key, match.identity.key, match.binding.key)
        for one in view.pods.values()
        for match in matches(one, view.bindings_by_selector, view.identities, namespaced=namespaced).found
        if _is_placed(view, one.key)
    }


def _is_placed(view: ClusterView, key: Key) -> bool:
    return key not in view.pods or view.host(view.pods[key].node) is not None


@pytest.mark.parametrize("seed", SEEDS)
def test_a_host_needs_what_its_pods_may_use_and_loses_nothing_of_it(seed: int) -> None:
    view = ClusterView.of(Worlds(seed).things())
    got = plan(view)

    for need in got.hosts:
        for one in view.pods.values():
            for match in matches(one, view.bindings_by_selector, view.identities, namespaced=False).found:
                if view.host(one.node) == need.host and match.identity.host_resource is not None:
                    assert match.identity.host_resource in need.needed | need.planned
        assert need.kept <= need.needed | need.planned | need.leaving


@pytest.mark.parametrize("seed", SEEDS)
def test_the_order_of_what_comes_in_does_not_matter(seed: int) -> None:
    worlds = Worlds(seed)
    things = worlds.things()

    assert plan(ClusterView.of(worlds.shuffled(things))) == plan(ClusterView.of(things))


@pytest.mark.parametrize("namespaced", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_plan_that_is_kept_up_to_date_equals_a_new_one(seed: int, namespaced: bool) -> None:
    _live(seed, changes=25, namespaced=namespaced)


@pytest.mark.parametrize("seed", range(150, 156))
def test_a_plan_that_is_kept_up_to_date_through_a_long_history_equals_a_new_one(seed: int) -> None:
    _live(seed, changes=500, namespaced=seed % 2 == 0)


def _live(seed: int, *, changes: int, namespaced: bool) -> None:
    """Play a history, in which nodes change hosts and MIC's own deletions are seen early, and look after each step."""
    worlds = Worlds(seed)
    rules = Rules(namespaced=namespaced, immutable=frozenset({client_id("mq")}))
    view = ClusterView.of(worlds.things())
    planner = Planner(view, rules)
    planner.refresh(view.concerned_pods())

    for _ in range(changes):
        deleted = worlds.chance.choice([*view.assignments.values(), None])
        early = deleted is not None and worlds.chance.random() < 0.1
        planner.refresh(view.mark_deleted(deleted) if deleted and early else view.apply(worlds.change()))

        seen_anew = ClusterView.of(things_of(view))
        fresh = Planner(seen_anew, rules)
        fresh.refresh(seen_anew.concerned_pods())
        assert planner.plan() == fresh.plan() == plan(view, rules)
        assert {host: set(planner.pods_on(host)) for host in planner.hosts()} == {
            host: set(fresh.pods_on(host)) for host in fresh.hosts()
        }
        assert set(planner.planned_pods()) == set(fresh.planned_pods())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_refresh_names_every_host_whose_needs_have_changed(seed: int) -> None:
    worlds = Worlds(seed)
    view = ClusterView.of(worlds.things())
    planner = Planner(view)
    planner.refresh(view.concerned_pods())

    for _ in range(25):
        before = {host: planner.host_needs(host) for host in planner.hosts()}
        touched = planner.refresh(view.apply(worlds.change()))
        after = {host: planner.host_needs(host) for host in planner.hosts()}

        changed = {host for host in before.keys() | after.keys() if before.get(host) != after.get(host)}
        assert changed <= touched


@pytest.mark.parametrize("seed", SEEDS)
def test_a_bad_object_changes_nothing_for_others(seed: int) -> None:
    worlds = Worlds(seed)
    view = ClusterView.of(worlds.things())
    before = {key: plan_pod(view, key, namespaced=False) for key in view.concerned_pods()}

    for change in (_spoilt(thing) for thing in worlds.shuffled(things_of(view))[:5]):
        concerned = view.apply(change)
        after = {key: plan_pod(view, key, namespaced=False) for key in view.concerned_pods()}

        assert {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)} <= concerned
        before = after


def _spoilt(thing: Thing) -> Seen | Gone:
    match thing:
        case Node(name, _):
            return Seen(Node(name, None, "the providerID is 'x'"))
        case Binding() as found:
            return Seen(replace(found, identity_name="does-not-exist"))
        case Pod() as found:
            return Seen(replace(found, label=""))
        case _:
            return Gone(type(thing), thing.key)


def test_a_planner_that_nobody_needs_any_more_is_empty() -> None:
    view = ClusterView.of([POD, NODE, IDENTITY, BINDING, STORED])
    planner = Planner(view)
    planner.refresh(view.concerned_pods())
    for thing in (POD, STORED):
        planner.refresh(view.apply(Gone(type(thing), thing.key)))

    assert (planner.planned_pods(), planner.hosts(), planner.pods_on(vm())) == ((), (), ())
    assert planner.host_needs(vm()) == HostNeeds(vm())
    assert planner.pod_plan(POD.key) == PodPlan()
