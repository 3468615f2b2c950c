"""The exact form of what we write: old and new NMI read both MICs' objects."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from podidentity_core.model import Assignment, AssignmentState, Identity, IdentityKind, Key
from podidentity_core.testing import builders
from podidentity_k8s.bodies import (
    embedded_binding,
    embedded_identity,
    new_assignment,
    new_reason,
    node_label,
    replacement,
)
from podidentity_k8s.convert import assignment_of, binding_of, identity_of
from podidentity_k8s.wire import WireAssignment

IDENTITY = {
    "apiVersion": "aadpodidentity.k8s.io/v1",
    "kind": "AzureIdentity",
    "metadata": {"name": "web", "namespace": "default", "uid": "i1", "resourceVersion": "5", "annotations": {"a": "b"}},
    "spec": {"type": 0, "resourceID": builders.resource().text, "clientID": "c1", "adResourceID": "kept"},
}
BINDING = {
    "metadata": {"name": "bind", "namespace": "default", "uid": "b1", "resourceVersion": "6"},
    "spec": {"azureIdentity": "web", "selector": "sel", "weight": 3},
}


def planned() -> Assignment:
    identity = identity_of(IDENTITY)
    assert isinstance(identity, Identity)
    return Assignment(
        namespace="default",
        name="web-0-shop-web",
        pod=Key("shop", "web-0"),
        node="node-1",
        identity=identity,
        binding=binding_of(BINDING),
    )


def test_a_new_assignment() -> None:
    assert new_assignment(planned()) == {
        "apiVersion": "aadpodidentity.k8s.io/v1",
        "kind": "AzureAssignedIdentity",
        "metadata": {
            "name": "web-0-shop-web",
            "namespace": "default",
            "labels": {"nodename": "node-1"},
            "finalizers": ["azureassignedidentity.finalizers.aadpodidentity.k8s.io"],
        },
        "spec": {
            "metadata": {},
            "azureIdentityRef": {
                "apiVersion": "aadpodidentity.k8s.io/v1",
                "kind": "AzureIdentity",
                "metadata": IDENTITY["metadata"],
                "spec": {
                    "metadata": {},
                    "resourceID": builders.resource().text,
                    "clientID": "c1",
                    "clientPassword": {},
                    "adResourceID": "kept",
                },
                "status": {"metadata": {}},
            },
            "azureBindingRef": {
                "apiVersion": "aadpodidentity.k8s.io/v1",
                "kind": "AzureIdentityBinding",
                "metadata": BINDING["metadata"],
                "spec": {"metadata": {}, "azureIdentity": "web", "selector": "sel", "weight": 3},
                "status": {"metadata": {}},
            },
            "pod": "web-0",
            "podNamespace": "shop",
            "nodename": "node-1",
        },
        "status": {"metadata": {}, "status": "Created", "availableReplicas": 1},
    }


def noted(node: str) -> dict[str, str]:
    """What our notes are true for."""
    return {"aadpodidentity.k8s.io/noted-for": f"{node} {builders.resource()}"}


def test_a_preexisting_identity_is_noted_as_an_annotation() -> None:
    body = new_assignment(replace(planned(), preexisting=True, state=AssignmentState.ASSIGNED))

    assert body["metadata"]["annotations"] == {"aadpodidentity.k8s.io/preexisting": "true", **noted("node-1")}
    assert body["status"]["status"] == "Assigned"


@pytest.mark.parametrize(
    ("kind", "type_"), [(IdentityKind.USER_ASSIGNED, None), (IdentityKind.SERVICE_PRINCIPAL, 1)], ids=["zero", "one"]
)
def test_a_zero_type_is_not_written(kind: IdentityKind, type_: int | None) -> None:
    assert embedded_identity(builders.identity(kind=kind))["spec"].get("type") == type_


def test_a_value_without_an_origin_is_written_from_its_fields() -> None:
    identity = replace(
        builders.identity(namespaced=True, kind=IdentityKind.SERVICE_PRINCIPAL),
        secret=Key("vault", "s"),
        auxiliary_tenant_ids=("a",),
    )

    body = embedded_identity(identity)

    assert body["metadata"]["annotations"] == {"aadpodidentity.k8s.io/Behavior": "namespaced"}
    assert body["spec"]["clientPassword"] == {"name": "s", "namespace": "vault"}
    assert body["spec"]["auxiliaryTenantIDs"] == ["a"]
    assert body["metadata"]["uid"] == identity.uid
    assert embedded_binding(builders.binding())["spec"] == {"metadata": {}, "azureIdentity": "web", "selector": "web"}


def stored(**metadata: Any) -> Assignment:
    body = new_assignment(planned())
    body["metadata"] |= {"uid": "a1", "resourceVersion": "9", **metadata}
    made = assignment_of(WireAssignment.model_validate(body))
    assert isinstance(made, Assignment)
    return made


def test_a_replacement_keeps_the_stored_metadata_but_the_label() -> None:
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "p1"}
    before = stored(
        annotations={"team": "shop"},
        finalizers=["azureassignedidentity.finalizers.aadpodidentity.k8s.io", "example.com/audit"],
        ownerReferences=[owner],
        labels={"nodename": "node-1", "other": "label"},
    )

    body = replacement(before, replace(planned(), node="node-2", preexisting=True))

    assert body["metadata"] == {
        "name": "web-0-shop-web",
        "namespace": "default",
        "uid": "a1",
        "resourceVersion": "9",
        "labels": {"nodename": "node-2"},
        "annotations": {"team": "shop", "aadpodidentity.k8s.io/preexisting": "true", **noted("node-2")},
        "finalizers": ["azureassignedidentity.finalizers.aadpodidentity.k8s.io", "example.com/audit"],
        "ownerReferences": [owner],
    }
    assert body["spec"]["nodename"] == "node-2"


def test_a_replacement_takes_the_note_away_when_it_no_longer_holds() -> None:
    before = stored(annotations={"aadpodidentity.k8s.io/preexisting": "true"})
    assert before.preexisting

    assert "annotations" not in replacement(before, planned())["metadata"]


def test_a_short_node_name_is_its_own_label() -> None:
    assert node_label("aks-pool-1.example.com") == "aks-pool-1.example.com"
    assert node_label("n" * 63) == "n" * 63


def test_a_long_node_name_has_a_label_of_its_own_that_kubernetes_accepts() -> None:
    long, other = "node-" * 20 + "a", "node-" * 20 + "b"

    labels = node_label(long), node_label(other)

    assert labels[0] != labels[1]
    assert all(len(label) == 63 and re.fullmatch(r"[a-z0-9]([-a-z0-9_.]*[a-z0-9])?", label) for label in labels)
    assert node_label(long) == labels[0]


@pytest.mark.parametrize(
    "moved",
    [{"nodename": "node-2"}, {"azureIdentityRef": embedded_identity(builders.identity(resource_name="other"))}],
    ids=["to another node", "to another identity"],
)
def test_our_notes_are_not_believed_once_somebody_else_has_moved_the_assignment(moved: dict[str, Any]) -> None:
    """The original keeps annotations that it does not know."""
    body = new_assignment(replace(planned(), preexisting=True, host=builders.vm()))
    body["metadata"] |= {"uid": "a1", "resourceVersion": "9"}
    as_it_was = assignment_of(WireAssignment.model_validate(body))
    body["spec"] |= moved
    found = assignment_of(WireAssignment.model_validate(body))

    assert (as_it_was.preexisting, as_it_was.host) == (True, builders.vm())
    assert (found.preexisting, found.host) == (False, None)


def test_a_reason_has_its_time_and_is_not_longer_than_readers_can_bear() -> None:
    assert new_reason("PI502: " + "x" * 5000, 1_700_000_000.9) == {
        "metadata": {
            "annotations": {
                "aadpodidentity.k8s.io/reason": "PI502: " + "x" * 1017,
                "aadpodidentity.k8s.io/reason-time": "2023-11-14T22:13:20Z",
            }
        }
    }
