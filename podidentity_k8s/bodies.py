"""From the core's values to the objects that we write, in the form in which the original writes them.

Zero values are left out (`type: 0`, empty strings and lists), `clientPassword` never is, and an embedded object
carries apiVersion, kind and its whole metadata but for managedFields, which nobody reads there.

Source: aad-pod-identity pkg/apis/aadpodidentity/v1/{types,conversion}.go, pkg/crd/crd.go.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from podidentity_core.model import Assignment, AssignmentState, Binding, Identity
from podidentity_k8s.convert import StoredMeta, noted_for
from podidentity_k8s.events import rfc3339
from podidentity_k8s.wire import (
    BEHAVIOR_ANNOTATION,
    FINALIZER,
    GROUP_VERSION,
    HOST_ANNOTATION,
    NAMESPACED,
    NODE_LABEL,
    NOTED_FOR_ANNOTATION,
    PREEXISTING_ANNOTATION,
    REASON_ANNOTATION,
    REASON_TIME_ANNOTATION,
)

_LABEL_CHARS = 63
_DIGEST_CHARS = 8
_REASON_CHARS = 1024  # Azure's errors can be long, and each reader of the object pays for them


def node_label(node: str) -> str:
    """The label value that stands for *node*: its name, or of a name that is too long the beginning and a digest.

    The writer (MIC) and the selector (NMI) must agree on it. The original writes long names as they are, and fails.
    """
    if len(node) <= _LABEL_CHARS:
        return node
    digest = hashlib.sha256(node.encode()).hexdigest()[:_DIGEST_CHARS]
    return f"{node[: _LABEL_CHARS - _DIGEST_CHARS - 1]}-{digest}"


def new_assignment(assignment: Assignment) -> dict[str, Any]:
    """The object to POST."""
    return _assignment(assignment, assignment, StoredMeta(annotations={}, finalizers=(FINALIZER,)))


def replacement(stored: Assignment, wanted: Assignment) -> dict[str, Any]:
    """The object to PUT: *stored*'s metadata with the label of *wanted*'s node, and *wanted*'s content."""
    kept = stored.origin if isinstance(stored.origin, StoredMeta) else StoredMeta({}, (FINALIZER,))
    body = _assignment(stored, wanted, kept)
    body["metadata"] |= {"uid": stored.uid, "resourceVersion": stored.resource_version}
    return body


def _assignment(named: Assignment, content: Assignment, kept: StoredMeta) -> dict[str, Any]:
    annotations = dict(kept.annotations)
    if content.preexisting:
        annotations[PREEXISTING_ANNOTATION] = "true"
    if content.host is not None:
        annotations[HOST_ANNOTATION] = content.host.resource_id
    if content.preexisting or content.host is not None:
        annotations[NOTED_FOR_ANNOTATION] = noted_for(content.node, content.identity)
    metadata = {
        "name": named.name,
        "namespace": named.namespace,
        "labels": {NODE_LABEL: node_label(content.node)},
        "annotations": annotations,
        "finalizers": list(kept.finalizers),
        "ownerReferences": list(kept.owner_references),
    }
    return {
        "apiVersion": GROUP_VERSION,
        "kind": "AzureAssignedIdentity",
        "metadata": {name: value for name, value in metadata.items() if value},
        "spec": {
            "metadata": {},
            "azureIdentityRef": embedded_identity(content.identity),
            "azureBindingRef": embedded_binding(content.binding),
            "pod": content.pod.name,
            "podNamespace": content.pod.namespace,
            "nodename": content.node,
        },
        "status": status(content.state),
    }


def without_finalizer(stored: bytes) -> dict[str, Any] | None:
    """The object *stored* without our finalizer; None when it has none, or is no object but a Status."""
    raw: dict[str, Any] = json.loads(stored)
    metadata = raw.get("metadata") or {}
    finalizers = metadata.get("finalizers") or []
    if FINALIZER not in finalizers:
        return None
    return {**raw, "metadata": {**metadata, "finalizers": [one for one in finalizers if one != FINALIZER]}}


def status(state: AssignmentState) -> dict[str, Any]:
    """The status of an assignment."""
    return {"metadata": {}, "status": state.value, "availableReplicas": 1}


def new_state(state: AssignmentState) -> dict[str, Any]:
    """The merge patch that gives an assignment a state, which ends the reason for the former one."""
    return {"metadata": _reason(None, None), "status": status(state)}


def new_reason(reason: str, at_s: float) -> dict[str, Any]:
    """The merge patch that notes why an assignment has not got further."""
    return {"metadata": _reason(reason[:_REASON_CHARS], rfc3339(at_s))}


def _reason(reason: str | None, at: str | None) -> dict[str, Any]:
    return {"annotations": {REASON_ANNOTATION: reason, REASON_TIME_ANNOTATION: at}}


def embedded_identity(identity: Identity) -> dict[str, Any]:
    """The copy of an AzureIdentity that an assignment holds."""
    origin = _origin(identity.origin)
    secret = identity.secret
    known = {
        "type": int(identity.kind),
        "resourceID": identity.host_resource.text if identity.host_resource else "",
        "clientID": identity.client_id,
        "tenantID": identity.tenant_id,
        "auxiliaryTenantIDs": list(identity.auxiliary_tenant_ids),
        "adEndpoint": identity.ad_endpoint,
    }
    spec = {**(origin.get("spec") or {}), **{name: value for name, value in known.items() if value}}
    annotations = {BEHAVIOR_ANNOTATION: NAMESPACED} if identity.namespaced else {}
    return {
        "apiVersion": GROUP_VERSION,
        "kind": "AzureIdentity",
        "metadata": origin.get("metadata") or _metadata(identity, annotations),
        "spec": {
            **{name: value for name, value in spec.items() if value},
            "metadata": {},
            "clientPassword": {"name": secret.name, "namespace": secret.namespace} if secret else {},
        },
        "status": origin.get("status") or {"metadata": {}},
    }


def embedded_binding(binding: Binding) -> dict[str, Any]:
    """The copy of an AzureIdentityBinding that an assignment holds."""
    origin = _origin(binding.origin)
    spec = {
        **(origin.get("spec") or {}),
        "azureIdentity": binding.identity_name,
        "selector": binding.selector,
    }
    return {
        "apiVersion": GROUP_VERSION,
        "kind": "AzureIdentityBinding",
        "metadata": origin.get("metadata") or _metadata(binding, {}),
        "spec": {**{name: value for name, value in spec.items() if value}, "metadata": {}},
        "status": origin.get("status") or {"metadata": {}},
    }


def _origin(origin: Any) -> Mapping[str, Any]:
    """The object that a value was read from; empty for a value that was made otherwise."""
    return origin if isinstance(origin, Mapping) else {}


def _metadata(thing: Identity | Binding, annotations: Mapping[str, str]) -> dict[str, Any]:
    every = {
        "name": thing.name,
        "namespace": thing.namespace,
        "uid": thing.uid,
        "resourceVersion": thing.resource_version,
        "annotations": dict(annotations),
    }
    return {name: value for name, value in every.items() if value}
