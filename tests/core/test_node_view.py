"""One node as NMI sees it: who sends from an address, and what a change touches."""

from __future__ import annotations

from dataclasses import replace

import pytest

from podidentity_core.model import Assignment, ExceptionRule, Gone, Key, Pod, PodPhase, Seen, Synced, Unusable
from podidentity_core.node_view import SYNCED, NodeView
from podidentity_core.reasons import Reason, because
from podidentity_core.testing.builders import assignment, exception_rule, identity, pod

WEB = pod(ips=("10.0.0.7", "fd00::7"))


@pytest.mark.parametrize("address", WEB.ips)
def test_a_pod_is_found_by_each_of_its_addresses(address: str) -> None:
    view = NodeView()

    assert view.apply(Seen(WEB)) == set(WEB.ips)
    assert view.pods_at(address) == (WEB,)
    assert view.pods_at("10.0.0.8") == ()


SILENT = {
    "succeeded": replace(WEB, phase=PodPhase.SUCCEEDED),
    "failed": replace(WEB, phase=PodPhase.FAILED),
    "of unknown phase": replace(WEB, phase=PodPhase.UNKNOWN),
    "in the node's network": replace(WEB, host_network=True),
    "without an address": replace(WEB, ips=()),
}


@pytest.mark.parametrize("silent", SILENT.values(), ids=SILENT)
def test_a_pod_sends_no_longer(silent: Pod) -> None:
    view = NodeView()
    view.apply(Seen(WEB))

    assert view.apply(Seen(silent)) == set(WEB.ips)
    assert view.pods_at("10.0.0.7") == ()


def test_a_pod_that_waits_for_its_containers_may_send() -> None:
    view = NodeView()
    view.apply(Seen(replace(WEB, phase=PodPhase.PENDING)))

    assert len(view.pods_at("10.0.0.7")) == 1


@pytest.mark.parametrize(
    "farewell",
    [Gone(Pod, WEB.key), Unusable(Pod, WEB.key, because(Reason.BAD_OBJECT, kind="Pod", name="x", problem="y"))],
    ids=["gone", "unusable"],
)
def test_a_pod_that_is_gone_sends_no_longer(farewell: Gone | Unusable) -> None:
    view = NodeView()
    view.apply(Seen(WEB))

    assert view.apply(farewell) == set(WEB.ips)
    assert view.pods_at("10.0.0.7") == ()
    assert view.apply(farewell) == set()


def test_an_address_moves_to_another_pod() -> None:
    view = NodeView()
    successor = pod("next", ips=("10.0.0.7",))
    view.apply(Seen(WEB))
    view.apply(Seen(successor))

    both = view.pods_at("10.0.0.7")
    view.apply(Seen(replace(WEB, phase=PodPhase.SUCCEEDED)))

    assert sorted(found.name for found in both) == ["next", "web-0"]
    assert view.pods_at("10.0.0.7") == (successor,)


def test_a_pod_of_the_same_name_inherits_no_address() -> None:
    view = NodeView()
    view.apply(Seen(WEB))

    touched = view.apply(Seen(pod(uid="another", ips=("10.0.0.9",))))

    assert touched == {*WEB.ips, "10.0.0.9"}
    assert view.pods_at("10.0.0.7") == ()


def test_assignments_are_found_by_their_pod() -> None:
    view = NodeView()
    web, other = assignment(), assignment(pod("other"))

    assert view.apply(Seen(web)) == {WEB.key}
    assert view.apply(Seen(other)) == {Key("default", "other")}
    assert list(view.assignments_of(WEB)) == [web]


def test_an_assignment_that_changes_its_pod_touches_both() -> None:
    view = NodeView()
    view.apply(Seen(assignment()))
    moved = replace(assignment(), pod=Key("default", "other"))

    assert view.apply(Seen(moved)) == {WEB.key, Key("default", "other")}
    assert list(view.assignments_of(WEB)) == []


def test_an_assignment_that_is_gone_serves_nobody() -> None:
    view = NodeView()
    view.apply(Seen(assignment()))
    view.apply(Seen(assignment(pod(), identity("b"))))

    assert view.apply(Gone(Assignment, assignment().key)) == {WEB.key}
    assert [a.identity.name for a in view.assignments_of(WEB)] == ["b"]


def test_exception_rules_come_and_go() -> None:
    view = NodeView()
    view.apply(Seen(exception_rule("a")))
    view.apply(Seen(exception_rule("b")))
    view.apply(Seen(exception_rule("a", pod_labels={"x": "y"})))
    view.apply(Gone(ExceptionRule, exception_rule("b").key))

    assert list(view.rules()) == [exception_rule("a", pod_labels={"x": "y"})]


def test_it_is_synced_once_everything_has_been_seen() -> None:
    view = NodeView()
    before = view.synced

    assert view.apply(Synced()) == {SYNCED}
    assert (before, view.synced) == (False, True)
