"""Which identity answers a token request (pkg/nmi/standard.go:51-166), and who is excepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import pytest

from podidentity_core.model import Assignment, AssignmentState, ExceptionRule, Identity, Pod
from podidentity_core.reasons import Reason, because
from podidentity_core.selection import Decision, Deny, Patience, Serve, Wait, is_excepted, select
from podidentity_core.testing.builders import assignment, client_id, exception_rule, identity, pod, resource
from podidentity_core.token_request import Selector, SelectorKind, TokenRequest

A, B = identity("a"), identity("b")
CREATED, ASSIGNED = AssignmentState.CREATED, AssignmentState.ASSIGNED
NO_STATE, LEAVING = AssignmentState.UNKNOWN, AssignmentState.UNASSIGNED


def of(who: Identity, state: AssignmentState = ASSIGNED) -> Assignment:
    return assignment(pod(), who, state=state)


def by_client(value: str) -> Selector:
    return Selector(SelectorKind.CLIENT_ID, value, value.lower())


def by_resource(value: str) -> Selector:
    return Selector(SelectorKind.RESOURCE_ID, value, value.lower())


@dataclass(frozen=True)
class Case:
    """The pod's assignments, the identity that is asked for, and the decision after *waited_s*."""

    has: Sequence[Assignment]
    decision: Decision
    asks: Selector | None = None
    waited_s: float = 0.0
    namespaced: bool = False


CLIENT_A, RESOURCE_A = by_client(client_id("a")), by_resource(str(resource("a")))
NONE_AT_ALL = Deny(because(Reason.NO_IDENTITY, pod="default/web-0"))
NOT_THIS = Deny(because(Reason.NO_SUCH_IDENTITY, pod="default/web-0", selector=str(CLIENT_A)))
TOO_LATE = Deny(because(Reason.NOT_ASSIGNED_YET, pod="default/web-0", waited_s="100", noted="nothing"))

CASES = {
    # TestGetIdentitiesStandardClient
    "no assignment: wait": Case([], Wait(80)),
    "no assignment, for long enough": Case([], NONE_AT_ALL, waited_s=80),
    "nothing asked, two without a state: the first by name": Case([of(B, NO_STATE), of(A, NO_STATE)], Serve(A)),
    "nothing asked, only Created: wait longer": Case([of(A, CREATED)], Wait(100)),
    "nothing asked, only Created, for long enough": Case([of(A, CREATED)], TOO_LATE, waited_s=100),
    "nothing asked, two Assigned: the first by name": Case([of(B), of(A)], Serve(A)),
    "an Assigned one is served before a Created one": Case([of(A, CREATED), of(B)], Serve(B)),
    "an Assigned one does not hide behind one without a state": Case([of(B, NO_STATE), of(A)], Serve(A)),
    "asked by client ID": Case([of(B), of(A)], Serve(A), CLIENT_A),
    "asked by client ID in other letters": Case([of(B), of(A)], Serve(A), by_client(client_id("a").upper())),
    "asked by resource ID": Case([of(B), of(A)], Serve(A), RESOURCE_A),
    "asked by resource ID in other letters": Case([of(B), of(A)], Serve(A), by_resource(str(resource("a")).upper())),
    "asked, the Created others do not count": Case([of(B, CREATED), of(A)], Serve(A), CLIENT_A),
    "only Created, MIC has noted why: its code, and nothing else of it": Case(
        [replace(of(A, CREATED), reason="PI501: Azure refuses 'secret things'")],
        Deny(because(Reason.NOT_ASSIGNED_YET, pod="default/web-0", waited_s="100", noted="PI501")),
        waited_s=100,
    ),
    "asked, only Created": Case([of(A, CREATED), of(B)], Wait(100), CLIENT_A),
    "asked, only Created, for long enough": Case([of(A, CREATED), of(B)], TOO_LATE, CLIENT_A, waited_s=100),
    "asked, not bound: it may still come": Case([of(B)], Wait(80), CLIENT_A),
    "asked, not bound, for long enough": Case([of(B)], NOT_THIS, CLIENT_A, waited_s=80),
    "asked, not bound, while others are Created": Case([of(B, CREATED)], NOT_THIS, CLIENT_A, waited_s=80),
    "a client ID is no resource ID": Case(
        [of(replace(B, client_id=str(resource("a")))), of(A, CREATED)], Wait(100), RESOURCE_A
    ),
    "a resource ID is no client ID": Case(
        [of(A)],
        Deny(because(Reason.NO_SUCH_IDENTITY, pod="default/web-0", selector=str(by_client(str(resource("a")))))),
        by_client(str(resource("a"))),
        waited_s=80,
    ),
    "an object ID is nobody's": Case(
        [of(A)],
        Deny(because(Reason.NO_SUCH_IDENTITY, pod="default/web-0", selector="object_id x")),
        Selector(SelectorKind.OBJECT_ID, "x", "x"),
        waited_s=80,
    ),
    "an empty client ID answers no request for one": Case([of(replace(A, client_id=""))], Wait(80), CLIENT_A),
    "an identity without a client ID is never served": Case(
        [of(replace(A, client_id=""))], Deny(because(Reason.NO_CLIENT_ID, identity="default/a"))
    ),
    "an identity without a client ID does not hide others": Case([of(replace(A, client_id="")), of(B)], Serve(B)),
    "an identity without a client ID does not hide those without a state": Case(
        [of(replace(A, client_id="")), of(B, NO_STATE)], Serve(B)
    ),
    "asked, an identity without a client ID does not hide others": Case(
        [of(replace(A, client_id="")), of(B)], Serve(B), by_client(client_id("b"))
    ),
    "asked by resource ID, an identity without a client ID is not served": Case(
        [of(replace(A, client_id="")), of(B)],
        Deny(because(Reason.NO_CLIENT_ID, identity="default/a")),
        RESOURCE_A,
    ),
    "Unassigned is on its way out": Case([of(A, LEAVING)], Wait(80)),
    "Unassigned is on its way out, for long enough": Case([of(A, LEAVING)], NONE_AT_ALL, waited_s=80),
    "asked, Unassigned": Case([of(A, LEAVING)], NOT_THIS, CLIENT_A, waited_s=80),
    "the wait for a change is what is left of it": Case([of(A, CREATED)], Wait(0.5), waited_s=99.5),
    # "namespaced, three Assigned, pod in testns: the one in testns"
    "namespaced: the one of the pod's namespace": Case(
        [of(identity("a", namespace="other")), of(identity("b", namespace="another")), of(identity("c"))],
        Serve(identity("c")),
        namespaced=True,
    ),
    "namespaced: none of the pod's namespace": Case(
        [of(identity("a", namespace="other"))], NONE_AT_ALL, namespaced=True, waited_s=80
    ),
    "namespaced by annotation": Case([of(identity("a", namespace="other", namespaced=True)), of(B)], Serve(B)),
    "not namespaced: any namespace": Case(
        [of(identity("a", namespace="other"))], Serve(identity("a", namespace="other"))
    ),
    "asked, namespaced elsewhere": Case(
        [of(identity("a", namespace="other"))], NOT_THIS, CLIENT_A, namespaced=True, waited_s=80
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_decision(case: Case) -> None:
    for order in permutations(case.has):
        assert _decide(case, order) == case.decision


def _decide(case: Case, has: Sequence[Assignment]) -> Decision:
    return select(
        pod(),
        has,
        TokenRequest("https://vault.azure.net", case.asks),
        namespaced=case.namespaced,
        waited_s=case.waited_s,
        patience=Patience(absent_s=80, created_s=100),
    )


def test_without_patience_nobody_waits() -> None:
    now = select(
        pod(), [], TokenRequest("x"), namespaced=False, waited_s=0.0, patience=Patience(absent_s=0, created_s=0)
    )

    assert now == NONE_AT_ALL


AGENT = pod(labels={"app": "agent", "tier": "Node"})
MIC = pod(namespace="default", owner_replica_set="mic-6b9f7c5d4")

EXCEPTIONS: dict[str, tuple[Pod, Sequence[ExceptionRule], bool]] = {
    # TestIsPodExcepted
    "no rule": (AGENT, [], False),
    "a label's value differs": (AGENT, [exception_rule(pod_labels={"app": "other"})], False),
    "the second of two rules": (AGENT, [exception_rule(pod_labels={"app": "other"}), exception_rule()], True),
    "one label of several": (AGENT, [exception_rule(pod_labels={"x": "y", "app": "agent"})], True),
    "the value in other letters": (AGENT, [exception_rule(pod_labels={"tier": "nODE"})], True),
    "the key in other letters": (AGENT, [exception_rule(pod_labels={"App": "agent"})], False),
    "a rule without labels": (AGENT, [exception_rule(pod_labels={})], False),
    "a rule of another namespace": (AGENT, [exception_rule(namespace="kube-system")], False),
    "MIC itself": (MIC, [], True),
    "MIC with a short digest": (replace(MIC, owner_replica_set="mic-7f"), [], True),
    "MIC's name in another namespace": (replace(MIC, namespace="shop"), [], False),
    "a name that only begins as MIC's": (replace(MIC, owner_replica_set="mic-evil-6b9f7c5d4"), [], False),
    "a name that only begins with mic": (replace(MIC, owner_replica_set="microservice-6b9f7c5d4"), [], False),
    "a name in other letters": (replace(MIC, owner_replica_set="MIC-6b9f7c5d4"), [], False),
    "a name with a line break": (replace(MIC, owner_replica_set="mic-6b9f7c5d4\n"), [], False),
}


@pytest.mark.parametrize(("who", "rules", "excepted"), EXCEPTIONS.values(), ids=EXCEPTIONS)
def test_exceptions(who: Pod, rules: Sequence[ExceptionRule], excepted: bool) -> None:
    assert is_excepted(who, rules, mic_namespace="default") is excepted
