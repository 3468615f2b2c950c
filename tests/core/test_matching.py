"""Which identities a pod may use, and the reason for each that it may not (pkg/mic/mic.go:574)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from podidentity_core.matching import Matches, assignment_key, bounded_name, matches
from podidentity_core.model import Binding, Identity, IdentityKind, Key, Pod, PodPhase
from podidentity_core.reasons import Explanation, Reason, because
from podidentity_core.testing.builders import binding, identity, pod
from podidentity_core.view import ClusterView


@dataclass(frozen=True)
class Case:
    """A pod among these identities and bindings, and what it may use: *found* as (identity, binding)."""

    pod: Pod
    identities: Sequence[Identity] = (identity(),)
    bindings: Sequence[Binding] = (binding(),)
    found: Sequence[tuple[str, str]] = ()
    skipped: Sequence[Explanation] = field(default_factory=tuple)
    namespaced: bool = False


MATCHED = [("default/web", "default/web")]
IDENTITIES_IN_A_AND_B = (identity(namespace="b"), identity(namespace="a"))
BINDINGS_IN_A_AND_B = (binding(namespace="b"), binding(namespace="a"))

CASES = {
    "one of each": Case(pod(), found=MATCHED),
    "a pod that waits for its containers": Case(pod(phase=PodPhase.PENDING), found=MATCHED),
    "a pod of unknown phase": Case(pod(phase=PodPhase.UNKNOWN), found=MATCHED),
    "a pod in the node's network": Case(pod(host_network=True), found=MATCHED),
    "a pod that is not scheduled": Case(pod(node=""), skipped=[because(Reason.NOT_SCHEDULED, pod="default/web-0")]),
    "a pod with an empty label": Case(pod(label=""), skipped=[because(Reason.EMPTY_LABEL, pod="default/web-0")]),
    "a pod without the label": Case(pod(label=None), skipped=[because(Reason.EMPTY_LABEL, pod="default/web-0")]),
    "an empty selector is nobody's": Case(
        pod(label=""), bindings=[binding(selector="")], skipped=[because(Reason.EMPTY_LABEL, pod="default/web-0")]
    ),
    "a pod that has succeeded": Case(
        pod(phase=PodPhase.SUCCEEDED), skipped=[because(Reason.POD_FINISHED, pod="default/web-0", phase="Succeeded")]
    ),
    "a pod that has failed": Case(
        pod(phase=PodPhase.FAILED), skipped=[because(Reason.POD_FINISHED, pod="default/web-0", phase="Failed")]
    ),
    "no binding": Case(pod(), bindings=[], skipped=[because(Reason.NO_BINDING, pod="default/web-0", label="web")]),
    "a selector in another letter case": Case(
        pod(),
        bindings=[binding(selector="Web")],
        skipped=[because(Reason.NO_BINDING, pod="default/web-0", label="web")],
    ),
    "a selector that only begins like the label": Case(
        pod(label="web-1"), skipped=[because(Reason.NO_BINDING, pod="default/web-0", label="web-1")]
    ),
    "a binding to an identity that does not exist": Case(
        pod(),
        identities=[],
        skipped=[because(Reason.IDENTITY_MISSING, binding="default/web", identity="default/web")],
    ),
    "an identity lives with its binding": Case(
        pod(),
        identities=[identity(namespace="b")],
        bindings=[binding(namespace="a")],
        skipped=[because(Reason.IDENTITY_MISSING, binding="a/web", identity="a/web")],
    ),
    "an identity's name in another letter case": Case(
        pod(),
        identities=[identity("Web")],
        skipped=[because(Reason.IDENTITY_MISSING, binding="default/web", identity="default/web")],
    ),
    "two identities through two bindings": Case(
        pod(),
        identities=[identity("a"), identity("b")],
        bindings=[binding("y", identity_name="a"), binding("x", identity_name="b")],
        found=[("default/b", "default/x"), ("default/a", "default/y")],
    ),
    "one missing identity does not stop the other": Case(
        pod(),
        identities=[identity("b")],
        bindings=[binding("a"), binding("b")],
        found=[("default/b", "default/b")],
        skipped=[because(Reason.IDENTITY_MISSING, binding="default/a", identity="default/a")],
    ),
    "two bindings for one identity: the first, without complaint": Case(
        pod(),
        bindings=[binding("z", identity_name="web"), binding("a", identity_name="web")],
        found=[("default/web", "default/a")],
    ),
    "another namespace": Case(
        pod(namespace="shop"),
        found=MATCHED,
    ),
    "another namespace, namespaced": Case(
        pod(namespace="shop"),
        namespaced=True,
        skipped=[
            because(Reason.OTHER_NAMESPACE, binding="default/web", identity="default/web", pod="shop/web-0"),
        ],
    ),
    "another namespace, namespaced by annotation": Case(
        pod(namespace="shop"),
        identities=[identity(namespaced=True)],
        skipped=[
            because(Reason.OTHER_NAMESPACE, binding="default/web", identity="default/web", pod="shop/web-0"),
        ],
    ),
    "the same namespace, namespaced": Case(pod(), namespaced=True, found=MATCHED),
    "the same namespace, namespaced by annotation": Case(pod(), identities=[identity(namespaced=True)], found=MATCHED),
    # e2e name_conflict: two namespaces with equal names, the pod in the first
    "one name in two namespaces: the alphabetically first": Case(
        pod(namespace="b"),
        found=[("a/web", "a/web")],
        skipped=[because(Reason.NAME_TAKEN, pod="b/web-0", identity="b/web", holder="a/web")],
        identities=IDENTITIES_IN_A_AND_B,
        bindings=BINDINGS_IN_A_AND_B,
    ),
    # TestForceNamespaced
    "one name in two namespaces, namespaced: its own": Case(
        pod(namespace="b"),
        namespaced=True,
        found=[("b/web", "b/web")],
        skipped=[because(Reason.OTHER_NAMESPACE, binding="a/web", identity="a/web", pod="b/web-0")],
        identities=IDENTITIES_IN_A_AND_B,
        bindings=BINDINGS_IN_A_AND_B,
    ),
    "one name in two namespaces, one namespaced by annotation: both, since their assignments live apart": Case(
        pod(namespace="b"),
        identities=[identity(namespace="a"), identity(namespace="b", namespaced=True)],
        bindings=[binding(namespace="a"), binding(namespace="b")],
        found=[("a/web", "a/web"), ("b/web", "b/web")],
    ),
    "an identity that needs nothing on the host": Case(
        pod(), identities=[identity(kind=IdentityKind.SERVICE_PRINCIPAL)], found=MATCHED
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_matches_of_one_pod(case: Case) -> None:
    view = ClusterView.of([*case.identities, *case.bindings])

    got = matches(case.pod, view.bindings_by_selector, view.identities, namespaced=case.namespaced)

    assert [(str(match.identity.key), str(match.binding.key)) for match in got.found] == list(case.found)
    assert list(got.skipped) == list(case.skipped)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_order_of_arrival_does_not_matter(case: Case) -> None:
    there = ClusterView.of([*case.identities, *case.bindings])
    back = ClusterView.of([*reversed(case.bindings), *reversed(case.identities)])

    assert _matches(case, there) == _matches(case, back)


def _matches(case: Case, view: ClusterView) -> Matches:
    return matches(case.pod, view.bindings_by_selector, view.identities, namespaced=case.namespaced)


@pytest.mark.parametrize(
    ("of", "namespaced", "key"),
    [
        (identity("db", namespace="a"), False, Key("default", "web-0-shop-db")),
        (identity("db", namespace="shop"), True, Key("shop", "web-0-shop-db")),
        (identity("db", namespace="shop", namespaced=True), False, Key("shop", "web-0-shop-db")),
    ],
    ids=["in default", "namespaced by flag", "namespaced by annotation"],
)
def test_the_name_of_an_assignment(of: Identity, namespaced: bool, key: Key) -> None:
    assert assignment_key(Key("shop", "web-0"), of, namespaced=namespaced) == key


@pytest.mark.parametrize("length", [1, 252, 253])
def test_a_name_that_fits_is_kept(length: int) -> None:
    assert bounded_name("a" * length) == "a" * length


@pytest.mark.parametrize("name", ["a" * 254, "a" * 400, "a" * 200 + "." * 100, "-".join(["ab"] * 100)])
def test_a_longer_name_is_cut_to_a_valid_one(name: str) -> None:
    short = bounded_name(name)

    assert len(short) <= 253
    assert name.startswith(short.rpartition("-")[0])
    assert short[0].isalnum()
    assert short[-1].isalnum()
    assert ".-" not in short


def test_two_long_names_stay_apart() -> None:
    assert bounded_name("a" * 300 + "b") != bounded_name("a" * 300 + "c")
