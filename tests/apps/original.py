"""Objects as the original's MIC 1.8.17 writes them, and what it reads of ours.

Source: aad-pod-identity pkg/crd/crd.go, pkg/apis/aadpodidentity/v1/conversion.go, pkg/mic/mic.go:736-935.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping
from typing import Any

from apps.sandbox.hosts import UserAssigned
from apps.sandbox.options import identity_id
from apps.sandbox.resources import PODS
from apps.sandbox.sandbox import Sandbox
from apps.sandbox.schema import admit
from apps.sandbox.status import StatusError
from tests.apps.stage import API

Body = dict[str, Any]

FINALIZER = "azureassignedidentity.finalizers.aadpodidentity.k8s.io"
NAMESPACED = {"aadpodidentity.k8s.io/Behavior": "namespaced"}
LOCK = "control-plane.alpha.kubernetes.io/leader"
OURS = frozenset(f"aadpodidentity.k8s.io/{name}" for name in ("host", "noted-for", "preexisting"))
"""Annotations that the original does not know."""
_MANAGED = [{"manager": "kubectl", "operation": "Update", "apiVersion": API, "fieldsType": "FieldsV1", "fieldsV1": {}}]


class OriginalMic:
    """Writes into a sandbox what the original would have written."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.cluster = sandbox.cluster
        self._renewals = 0

    def identity(self, name: str, *, namespace: str = "default", namespaced: bool = False) -> UserAssigned:
        """Let an identity, its AzureIdentity and a binding exist, as users of the original write them."""
        made = self.sandbox.azure.add_identity(identity_id(name))
        resource = made.resource_id.replace("/resourceGroups/", "/resourcegroups/")  # as `az identity show` prints it
        spec = {"type": 0, "resourceID": resource, "clientID": made.principal.client_id}
        annotations = NAMESPACED if namespaced else {}
        self.cluster.create(_thing("AzureIdentity", name, namespace, spec, annotations))
        self.cluster.create(
            _thing("AzureIdentityBinding", name, namespace, {"azureIdentity": name, "selector": name}, {})
        )
        return made

    def put_on(self, host_id: str, *names: str) -> None:
        """Let identities be on a host, as the original's PATCH has left them there."""
        self.sandbox.azure.attach(host_id, [identity_id(name) for name in names])

    def assign(
        self,
        pod: str,
        identity: str,
        state: str | None = "Assigned",
        *,
        node: str = "",
        namespace: str = "default",
        pod_namespace: str = "",
        **spec: Any,
    ) -> Body:
        """Write the assignment of *pod* to *identity*; the pod need not exist. *spec* replaces fields of its spec."""
        body = assignment(
            (pod_namespace or namespace, pod),
            node or self.sandbox.options.nodes[0].name,
            self._get("azureidentities", namespace, identity),
            self._get("azureidentitybindings", namespace, identity),
            state,
        )
        body["spec"].update(spec)
        return self.cluster.create({**body, "spec": {k: v for k, v in body["spec"].items() if v is not None}}).body

    def mark(self) -> None:
        """Write the mark of the type upgrade, which each cluster of the original has."""
        metadata = {"name": "aad-pod-identity-config", "namespace": "default"}
        data = {"type-upgrade-status": "v1.8.17"}
        self.cluster.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})

    def renew(self, holder: str, *, duration_s: int = 1, age_s: float = 0.0) -> None:
        """Write the lock as a leader does each quarter of its lease. Its times have whole seconds: ours run ahead."""
        self._renewals += 1
        renewed = time.gmtime(time.time() - age_s + self._renewals)
        record = {
            "holderIdentity": holder,
            "leaseDurationSeconds": duration_s,
            "acquireTime": "2026-01-01T00:00:00Z",
            "renewTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", renewed),
            "leaderTransitions": 0,
        }
        metadata = {"name": "aad-pod-identity-mic", "namespace": "default", "annotations": {LOCK: json.dumps(record)}}
        body = {"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata}
        try:
            self.cluster.create(body)
        except StatusError:
            self.cluster.replace(body)

    def move(self, name: str, node: str) -> None:
        """Update an assignment to another node, as the original does: it keeps the metadata, but for the label."""

        def edit(body: Body) -> None:
            body["metadata"]["labels"] = {"nodename": node}
            body["spec"]["nodename"] = node
            body["status"]["status"] = "Assigned"

        self.cluster.change("azureassignedidentities", "default", name, edit)

    def would_do(self, namespace: str, name: str) -> str:
        """What the original would do about a stored assignment of which it knows the pod: `nothing`, `update`,
        `assign` (put its identity on the host again), or `delete`.
        """
        stored = self._get("azureassignedidentities", namespace, name)
        spec, found = stored["spec"], self._wanted(stored)
        if found is None:
            return "delete"
        if _compared(spec) != _compared(found["spec"]):
            return "update"
        return "assign" if stored["status"]["status"] == "Created" else "nothing"

    def counterpart(self, ours: Body) -> Body:
        """The object that the original would have written for the pod, the identity and the binding of *ours*, as the
        API server would have stored it.
        """
        found = self._wanted(ours)
        assert found is not None, f"the original would delete {ours}"
        admit(self.cluster.registry.of(ours), found)
        return found

    def _wanted(self, stored: Body) -> Body | None:
        spec = stored["spec"]
        identity, binding = (spec[ref]["metadata"] for ref in ("azureIdentityRef", "azureBindingRef"))
        try:
            pod = self.sandbox.store.get(PODS, spec["podNamespace"], spec["pod"]).body
            known_identity = self._get("azureidentities", identity["namespace"], identity["name"])
            known_binding = self._get("azureidentitybindings", binding["namespace"], binding["name"])
        except StatusError:
            return None
        key = (spec["podNamespace"], spec["pod"])
        wanted = assignment(key, pod["spec"]["nodeName"], known_identity, known_binding, "Assigned")
        return wanted if wanted["metadata"]["name"] == stored["metadata"]["name"] else None

    def _get(self, plural: str, namespace: str, name: str) -> Body:
        return self.sandbox.store.get(self.cluster.registry.named(plural), namespace, name).body


def assignment(pod: tuple[str, str], node: str, identity: Body, binding: Body, state: str | None) -> Body:
    """The AzureAssignedIdentity of *pod* (namespace, name); *state* None is one from before there were states."""
    names = identity["metadata"]
    in_namespace = names.get("annotations") == NAMESPACED
    body: Body = {
        "apiVersion": API,
        "kind": "AzureAssignedIdentity",
        "metadata": {
            "name": f"{pod[1]}-{pod[0]}-{names['name']}",
            "namespace": names["namespace"] if in_namespace else "default",
            "labels": {"nodename": node},
            "finalizers": [FINALIZER],
        },
        "spec": {
            "metadata": {"creationTimestamp": None},
            "azureIdentityRef": _embedded(identity),
            "azureBindingRef": _embedded(binding),
            "pod": pod[1],
            "podNamespace": pod[0],
            "nodename": node,
        },
    }
    if state is not None:
        body["status"] = {"metadata": {"creationTimestamp": None}, "availableReplicas": 1}
        body["status"] |= {"status": state} if state else {}
    return body


def _embedded(source: Body) -> Body:
    """The whole object, managedFields too; zero values are left out, and clientPassword never is."""
    held = copy.deepcopy(source)
    held["metadata"]["managedFields"] = _MANAGED
    spec = {name: value for name, value in held["spec"].items() if value}
    if held["kind"] == "AzureIdentity":
        spec.setdefault("clientPassword", {})
    held["spec"] = {"metadata": {"creationTimestamp": None}, **spec}
    held["status"] = {"metadata": {"creationTimestamp": None}}
    return held


def _thing(kind: str, name: str, namespace: str, spec: Mapping[str, Any], annotations: Mapping[str, str]) -> Body:
    metadata = {"name": name, "namespace": namespace, **({"annotations": dict(annotations)} if annotations else {})}
    return {"apiVersion": API, "kind": kind, "metadata": metadata, "spec": dict(spec)}


def _compared(spec: Body) -> tuple[str, ...]:
    """By what the original tells two assignments apart. Source: aad-pod-identity pkg/mic/mic.go:736-852."""
    refs = [spec[ref]["metadata"] for ref in ("azureBindingRef", "azureIdentityRef")]
    return (
        *(ref[field] for ref in refs for field in ("name", "resourceVersion")),
        *(spec[field] for field in ("pod", "podNamespace", "nodename")),
    )
