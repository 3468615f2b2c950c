"""Objects as served, and what the core makes of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from podidentity_core.model import (
    Assignment,
    AssignmentState,
    Binding,
    ExceptionRule,
    Identity,
    IdentityKind,
    Key,
    Node,
    Pod,
    PodPhase,
    Seen,
    Thing,
    Unusable,
)
from podidentity_core.reasons import Reason
from podidentity_core.testing import builders
from podidentity_k8s.convert import assignment_of, identity_of, labelled_pod_of, node_of, pod_of
from podidentity_k8s.resources import Read, Resource, mic_resources, nmi_resources
from podidentity_k8s.wire import FINALIZER, WireAssignment, WireNode, WirePod

RESOURCE_ID = builders.resource().text


def read(kind: type[Thing], *objects: Any) -> tuple[Read, ...]:
    """Read *objects* as a page of a list."""
    page = {"metadata": {"resourceVersion": "7"}, "items": list(objects)}
    return resource_of(kind).read_page(json.dumps(page).encode()).objects


def resource_of(kind: type[Thing]) -> Resource:
    return next(one for one in (*mic_resources(), *nmi_resources("node-1")) if one.kind is kind)


def identity(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "aadpodidentity.k8s.io/v1",
        "kind": "AzureIdentity",
        "metadata": {"namespace": "default", "name": "web", "uid": "u1", "resourceVersion": "5"},
        "spec": {"type": 0, "resourceID": RESOURCE_ID, "clientID": "c1", **spec},
    }


POD = {
    "metadata": {
        "namespace": "shop",
        "name": "web-0",
        "uid": "u",
        "labels": {"aadpodidbinding": "web", "app": "shop"},
        "ownerReferences": [{"kind": "Job", "name": "other"}, {"kind": "replicaSet", "name": "web-5f"}],
        "managedFields": [{"manager": "kubelet"}],
    },
    "spec": {"nodeName": "node-1", "hostNetwork": True, "serviceAccountName": "shop", "containers": []},
    "status": {"phase": "Running", "podIP": "10.0.0.5", "podIPs": [{"ip": "10.0.0.5"}, {"ip": "fd00::5"}]},
}


def test_nmi_reads_a_pod_whole() -> None:
    assert pod_of(WirePod.model_validate(POD)) == Pod(
        namespace="shop",
        name="web-0",
        uid="u",
        node="node-1",
        label="web",
        phase=PodPhase.RUNNING,
        ips=("10.0.0.5", "fd00::5"),
        host_network=True,
        service_account="shop",
        labels={"aadpodidbinding": "web", "app": "shop"},
        owner_replica_set="web-5f",
    )


def test_mic_reads_of_a_pod_only_what_it_needs() -> None:
    pod = labelled_pod_of(WirePod.model_validate(POD))

    assert (pod.label, pod.node, pod.phase) == ("web", "node-1", PodPhase.RUNNING)
    assert (pod.labels, pod.ips) == ({}, ())


@pytest.mark.parametrize(
    ("status", "phase", "ips"),
    [
        pytest.param({}, PodPhase.PENDING, (), id="just created"),
        pytest.param({"phase": "Strange"}, PodPhase.UNKNOWN, (), id="a phase of the future"),
        pytest.param({"phase": "Running", "podIP": "10.0.0.9"}, PodPhase.RUNNING, ("10.0.0.9",), id="no podIPs"),
        pytest.param({"phase": "Failed", "podIP": None, "podIPs": None}, PodPhase.FAILED, (), id="nulls"),
    ],
)
def test_a_pod_without_much(status: dict[str, Any], phase: PodPhase, ips: tuple[str, ...]) -> None:
    pod = pod_of(WirePod.model_validate({"metadata": {"namespace": "n", "name": "p"}, "spec": {}, "status": status}))

    assert (pod.phase, pod.ips, pod.node, pod.label) == (phase, ips, "", None)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        pytest.param({}, "spec.providerID is empty, so the node names no VM or scale set", id="none"),
        pytest.param({"providerID": "kind://docker/a/b"}, "spec.providerID names no VM or scale set", id="elsewhere"),
    ],
)
def test_a_node_that_names_no_host_says_which_field_to_look_at(spec: dict[str, str], problem: str) -> None:
    node = node_of(WireNode.model_validate({"metadata": {"name": "node-1"}, "spec": spec}))

    assert node.host is None
    assert node.problem.startswith(problem)


def test_a_node_of_a_scale_set() -> None:
    provider_id = f"azure://{builders.scale_set().resource_id}/virtualMachines/3"

    node = node_of(WireNode.model_validate({"metadata": {"name": "node-1"}, "spec": {"providerID": provider_id}}))

    assert node == Node("node-1", builders.scale_set())


def test_an_identity_keeps_the_object_it_was_read_from_without_managed_fields() -> None:
    raw = identity()
    raw["metadata"] |= {"managedFields": [1], "annotations": {"aadpodidentity.k8s.io/Behavior": "namespaced"}}

    made = identity_of(raw)

    assert isinstance(made, Identity)
    assert made.namespaced
    assert made.host_resource == builders.resource()
    assert (made.client_id, made.uid, made.resource_version) == ("c1", "u1", "5")
    assert "managedFields" not in made.origin["metadata"]
    assert made.origin["spec"] == raw["spec"]


@pytest.mark.parametrize("behavior", ["Namespaced", "", "cluster"])
def test_the_behavior_annotation_is_compared_exactly(behavior: str) -> None:
    raw = identity()
    raw["metadata"]["annotations"] = {"aadpodidentity.k8s.io/Behavior": behavior}

    made = identity_of(raw)

    assert isinstance(made, Identity)
    assert not made.namespaced


def test_a_service_principal_needs_nothing_on_a_host() -> None:
    secret = {"name": "s", "namespace": "vault"}
    made = identity_of(identity(type=1, resourceID="", clientPassword=secret, tenantID="t", auxiliaryTenantIDs=["a"]))

    assert isinstance(made, Identity)
    assert made.kind is IdentityKind.SERVICE_PRINCIPAL
    assert made.host_resource is None
    assert (made.secret, made.tenant_id, made.auxiliary_tenant_ids) == (Key("vault", "s"), "t", ("a",))


def test_an_identity_without_client_id_is_left_to_nmi() -> None:
    made = identity_of(identity(clientID=""))

    assert isinstance(made, Identity)
    assert made.client_id == ""


@pytest.mark.parametrize(
    ("spec", "reason", "field"),
    [
        pytest.param({"resourceID": "/subscriptions/x"}, Reason.BAD_RESOURCE_ID, "spec.resourceID", id="malformed ID"),
        pytest.param({"resourceID": None}, Reason.BAD_RESOURCE_ID, "spec.resourceID", id="no ID"),
        pytest.param({"type": 9}, Reason.BAD_OBJECT, "spec.type", id="unknown type"),
        pytest.param({"type": "msi"}, Reason.BAD_OBJECT, "spec.type", id="a type that is no number"),
        pytest.param({"auxiliaryTenantIDs": "t"}, Reason.BAD_OBJECT, "spec.auxiliaryTenantIDs", id="no list"),
    ],
)
def test_a_bad_identity_is_unusable_and_names_object_field_and_remedy(
    spec: dict[str, Any], reason: Reason, field: str
) -> None:
    (found,) = read(Identity, identity(**spec))

    change = found.change
    assert isinstance(change, Unusable)
    assert (change.kind, change.key, change.uid) == (Identity, Key("default", "web"), "u1")
    assert change.explanation.reason is reason
    text = str(change.explanation)
    assert "AzureIdentity default/web" in text
    assert field in text
    assert reason.remedy in text


def test_one_odd_object_hides_none_of_the_others() -> None:
    odd = {"metadata": {"namespace": "default", "name": "odd", "uid": "o"}, "spec": {"podLabels": {"app": 5}}}
    good = {"metadata": {"namespace": "default", "name": "good"}, "spec": {"podLabels": {"app": "agent"}}}

    first, second = read(ExceptionRule, odd, good)

    assert isinstance(first.change, Unusable)
    assert first.key == Key("default", "odd")
    assert "spec.podLabels.app" in str(first.change.explanation)
    assert second.change == Seen(ExceptionRule("default", "good", {"app": "agent"}))


@pytest.mark.parametrize("junk", [None, 5, "text", [], {"metadata": 7}, {"metadata": {"name": 3}}])
@pytest.mark.parametrize("kind", [Pod, Node, Identity, Binding, Assignment, ExceptionRule])
def test_whatever_is_in_a_list_it_can_be_read(kind: type[Thing], junk: Any) -> None:
    (found,) = read(kind, junk)

    assert isinstance(found.change, Unusable)


def assignment(**spec: Any) -> WireAssignment:
    return WireAssignment.model_validate(
        {
            "metadata": {"namespace": "default", "name": "a", "uid": "u", "finalizers": [FINALIZER]},
            "spec": {
                "azureIdentityRef": identity(),
                "azureBindingRef": {
                    "metadata": {"namespace": "default", "name": "b"},
                    "spec": {"azureIdentity": "web", "selector": "s"},
                },
                "pod": "web-0",
                "podNamespace": "shop",
                "nodename": "node-1",
                **spec,
            },
            "status": {"status": "Assigned", "availableReplicas": 1},
        }
    )


def test_an_assignment_carries_identity_and_binding() -> None:
    made = assignment_of(assignment())

    assert isinstance(made, Assignment)
    assert (made.pod, made.node, made.state) == (Key("shop", "web-0"), "node-1", AssignmentState.ASSIGNED)
    assert made.identity.key == Key("default", "web")
    assert made.identity.host_resource == builders.resource()
    assert made.binding == Binding("default", "b", identity_name="web", selector="s")
    assert not made.deleting


@pytest.mark.parametrize("reference", ["azureIdentityRef", "azureBindingRef"])
@pytest.mark.parametrize("value", [None, {}], ids=["missing", "empty"])
def test_an_assignment_without_a_reference_is_seen_so_that_mic_can_write_it_anew(reference: str, value: Any) -> None:
    made = assignment_of(assignment(**{reference: value}))

    nameless = made.identity if reference == "azureIdentityRef" else made.binding
    whole = assignment_of(assignment())
    assert (made.key, made.pod) == (whole.key, whole.pod)
    assert nameless.name == ""


def test_an_assignment_with_a_bad_resource_id_can_still_be_deleted() -> None:
    made = assignment_of(assignment(azureIdentityRef=identity(resourceID="nonsense")))

    assert made.identity.host_resource is None


def test_a_state_that_nobody_knows_serves_nobody() -> None:
    wire = WireAssignment.model_validate({**assignment().model_dump(by_alias=True), "status": {"status": "Strange"}})

    assert assignment_of(wire).state is AssignmentState.UNASSIGNED


@pytest.mark.parametrize("status", [None, {}, {"status": None}])
def test_an_assignment_of_an_old_mic_has_no_known_state(status: Any) -> None:
    wire = WireAssignment.model_validate({**assignment().model_dump(by_alias=True), "status": status})

    made = assignment_of(wire)

    assert made.state is AssignmentState.UNKNOWN


def test_equal_copies_of_one_identity_take_memory_once() -> None:
    first, second = assignment_of(assignment(pod="a")), assignment_of(assignment(pod="b"))

    assert first.identity is second.identity
    assert first.binding is second.binding
    assert first.origin is second.origin
