"""The cluster as last seen: which pods a change concerns, and late news about assignments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from podidentity_core.model import (
    Assignment,
    Binding,
    Change,
    ExceptionRule,
    Gone,
    Identity,
    Key,
    Node,
    Pod,
    Seen,
    Synced,
    Thing,
    Unusable,
)
from podidentity_core.reasons import Reason, because
from podidentity_core.resource_ids import Host
from podidentity_core.testing.builders import (
    assignment,
    binding,
    exception_rule,
    identity,
    node,
    pod,
    scale_set,
    vm,
)
from podidentity_core.view import MOST_GONE, ClusterView

WEB, DB = pod("web"), pod("db", label="db", node="node-2")
LEFT = pod("left")
"""A pod that is gone, while its assignment is still stored."""
WORLD: tuple[Thing, ...] = (
    WEB,
    DB,
    node("node-1"),
    node("node-2"),
    identity("web"),
    identity("db"),
    binding("web"),
    binding("db", selector="db"),
    assignment(WEB),
    assignment(LEFT),
)
BAD = because(Reason.BAD_OBJECT, kind="X", name="x", problem="y")


@dataclass(frozen=True)
class Case:
    """A change to WORLD, and the pods that have to be planned again."""

    change: Change
    concerned: Sequence[Pod] = ()


CASES = {
    "the same pod": Case(Seen(WEB)),
    "a new pod": Case(Seen(pod("new")), [pod("new")]),
    "a pod of which something changed": Case(Seen(replace(WEB, uid="another")), [WEB]),
    "a pod that is gone": Case(Gone(Pod, WEB.key), [WEB]),
    "a pod that cannot be used": Case(Unusable(Pod, WEB.key, BAD), [WEB]),
    "a pod that nobody knew is gone": Case(Gone(Pod, Key("a", "b"))),
    "the same node": Case(Seen(node("node-1"))),
    "a node on another host": Case(Seen(node("node-1", host=scale_set())), [WEB, LEFT]),
    "a node without a host": Case(Seen(Node("node-1", None, "empty providerID")), [WEB, LEFT]),
    "a node that nobody uses": Case(Seen(node("node-3"))),
    "a node that is gone is still known": Case(Gone(Node, Key("", "node-1"))),
    "an edit that changes no content": Case(Seen(replace(identity("web"), resource_version="7"))),
    "an identity of which something changed": Case(Seen(replace(identity("web"), client_id="x")), [WEB]),
    "an identity that is gone": Case(Gone(Identity, identity("web").key), [WEB]),
    "an identity that cannot be used": Case(Unusable(Identity, identity("db").key, BAD), [DB]),
    "an identity that no binding names": Case(Seen(identity("new"))),
    "the same binding": Case(Seen(replace(binding("web"), resource_version="7"))),
    "a binding of which something changed": Case(Seen(binding("web", identity_name="db")), [WEB]),
    "a binding with another selector": Case(Seen(binding("web", selector="db")), [WEB, DB]),
    "a new binding": Case(Seen(binding("more", selector="db")), [DB]),
    "a new binding that selects nobody": Case(Seen(binding("more", selector="x"))),
    "a binding that is gone": Case(Gone(Binding, binding("db").key), [DB]),
    "an assignment that is gone": Case(Gone(Assignment, assignment(LEFT).key), [LEFT]),
    "an assignment that changed its pod": Case(Seen(replace(assignment(LEFT), pod=DB.key)), [LEFT, DB]),
    "an exception rule": Case(Seen(exception_rule())),
    "an exception rule that is gone": Case(Gone(ExceptionRule, exception_rule().key)),
    "all has been seen": Case(Synced()),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_pods_that_a_change_concerns(case: Case) -> None:
    view = ClusterView.of(WORLD)

    assert view.apply(case.change) == {concerned.key for concerned in case.concerned}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_change_that_comes_twice_concerns_nobody_anew(case: Case) -> None:
    view = ClusterView.of(WORLD)
    view.apply(case.change)
    again = view.apply(case.change)

    assert again <= {concerned.key for concerned in case.concerned if isinstance(case.change, Seen)}


def test_it_concerns_pods_that_exist_or_have_an_assignment() -> None:
    assert ClusterView.of(WORLD).concerned_pods() == {WEB.key, DB.key, LEFT.key}


def test_the_host_of_a_node_that_is_gone_is_still_known() -> None:
    view = ClusterView.of(WORLD)
    view.apply(Gone(Node, Key("", "node-1")))

    assert view.host("node-1") == vm("node-1")
    assert view.host("node-9") is None


PLACES = {
    "noted": ([], vm("noted"), vm("noted")),
    "noted, its node's name stands for another host by now": ([node("node-1")], vm("noted"), vm("noted")),
    "noted, its node has no host": ([Node("node-1", None, "empty providerID")], vm("noted"), vm("noted")),
    "not noted": ([node("node-1")], None, vm("node-1")),
    "not noted, its node is not known": ([node("node-2")], None, None),
    "not noted, its node has no host": ([Node("node-1", None, "empty providerID")], None, None),
}


@pytest.mark.parametrize(("nodes", "noted", "host"), PLACES.values(), ids=PLACES)
def test_the_host_of_an_assignment(nodes: Sequence[Node], noted: Host | None, host: Host | None) -> None:
    assert ClusterView.of(nodes).host_of(replace(assignment(WEB), host=noted)) == host


def test_the_host_of_an_assignment_that_notes_none_is_still_known_when_its_node_is_gone() -> None:
    view = ClusterView.of(WORLD)
    view.apply(Gone(Node, Key("", "node-1")))

    assert view.host_of(assignment(WEB)) == vm("node-1")


def test_a_node_exists_from_its_coming_until_its_going() -> None:
    view = ClusterView()
    seen = [view.has_node("node-1")]
    for change in (Seen(node("node-1")), Gone(Node, Key("", "node-1")), Seen(node("node-1"))):
        view.apply(change)
        seen.append(view.has_node("node-1"))

    assert seen == [False, True, False, True]
    assert not view.has_node("node-2")


def test_a_node_without_a_host_exists() -> None:
    assert ClusterView.of([Node("node-1", None, "empty providerID")]).has_node("node-1")


def test_bindings_of_one_selector_are_sorted_by_namespace_and_name() -> None:
    view = ClusterView.of([binding("b"), binding("a", namespace="z"), binding("a"), binding("c", selector="x")])

    assert [str(found.key) for found in view.bindings_by_selector["web"]] == ["default/a", "default/b", "z/a"]


def test_a_selector_without_bindings_takes_no_memory() -> None:
    view = ClusterView.of([binding()])
    view.apply(Gone(Binding, binding().key))

    assert view.bindings_by_selector == {}


class TestLateNews:
    """MIC sees its own writes at once; what the watch says about them comes later."""

    OLD, NEW = assignment(version=9), assignment(version=10)

    def test_an_older_version_does_not_undo_a_write(self) -> None:
        view = ClusterView.of([WEB, self.NEW])

        assert view.apply(Seen(self.OLD)) == set()
        assert view.assignments[self.NEW.key].resource_version == "10"

    def test_a_newer_version_counts(self) -> None:
        view = ClusterView.of([self.OLD])

        assert view.apply(Seen(self.NEW)) == {self.NEW.pod}
        assert view.assignments[self.NEW.key].resource_version == "10"

    def test_another_object_of_the_name_counts_whatever_its_version(self) -> None:
        view = ClusterView.of([self.NEW])
        successor = replace(self.OLD, uid="another")

        view.apply(Seen(successor))

        assert view.assignments[self.NEW.key].uid == "another"

    def test_what_we_have_deleted_does_not_come_back(self) -> None:
        view = ClusterView.of([self.OLD])
        view.mark_deleted(self.OLD)

        assert view.apply(Seen(self.NEW)) == set()
        assert view.assignments == {}

    def test_what_the_watch_has_told_to_be_gone_is_not_brought_back_by_a_late_answer(self) -> None:
        view = ClusterView.of([self.OLD])
        view.apply(Gone(Assignment, self.OLD.key, self.OLD.uid))

        assert view.apply(Seen(self.NEW)) == set()
        assert view.assignments == {}

    def test_only_so_many_that_are_gone_are_kept_in_mind(self) -> None:
        view = ClusterView()
        for number in range(MOST_GONE + 1):
            view.apply(Gone(Assignment, self.OLD.key, f"uid-{number}"))

        assert view.apply(Seen(replace(self.OLD, uid="uid-1"))) == set()
        assert view.apply(Seen(replace(self.OLD, uid="uid-0"))) == {self.OLD.pod}

    def test_the_farewell_of_the_former_object_does_not_take_the_successor_along(self) -> None:
        view = ClusterView.of([self.OLD])
        view.mark_deleted(self.OLD)
        view.apply(Seen(replace(self.NEW, uid="successor")))

        assert view.apply(Gone(Assignment, self.OLD.key, self.OLD.uid)) == set()
        assert view.assignments[self.OLD.key].uid == "successor"

    @pytest.mark.parametrize("uid", ["", "uid-of-web-0-default-web"], ids=["without a uid", "with its uid"])
    def test_the_farewell_of_this_object_counts(self, uid: str) -> None:
        view = ClusterView.of([self.NEW])

        assert view.apply(Gone(Assignment, self.NEW.key, uid)) == {self.NEW.pod}
        assert view.assignments == {}

    def test_what_an_update_may_have_changed_is_doubted_until_a_newer_version_is_seen(self) -> None:
        view = ClusterView.of([self.OLD])

        assert view.doubt(self.OLD) == {self.OLD.pod}
        before = view.is_doubted(self.OLD)
        view.apply(Seen(self.OLD))
        again = view.is_doubted(self.OLD)
        view.apply(Seen(self.NEW))

        assert (before, again, view.is_doubted(self.NEW)) == (True, True, False)
