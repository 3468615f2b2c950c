"""From wire models to the core's values. An object that cannot be used becomes `Unusable`: the field, the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from sys import intern
from typing import Any

from pydantic import ValidationError

from podidentity_core.model import (
    BINDING_LABEL,
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
    Thing,
    Unusable,
)
from podidentity_core.reasons import Reason, because
from podidentity_core.resource_ids import (
    Host,
    IdentityResource,
    InvalidResourceId,
    host_of,
    parse_host,
    parse_identity_resource,
)
from podidentity_k8s.wire import (
    BEHAVIOR_ANNOTATION,
    FINALIZER,
    HOST_ANNOTATION,
    NAMESPACED,
    NOTED_FOR_ANNOTATION,
    PREEXISTING_ANNOTATION,
    REASON_ANNOTATION,
    REASON_TIME_ANNOTATION,
    Bare,
    WireAssignment,
    WireBinding,
    WireExceptionRule,
    WireIdentity,
    WireNode,
    WirePod,
)

KINDS: Mapping[type[Thing], str] = {
    Pod: "Pod",
    Node: "Node",
    Identity: "AzureIdentity",
    Binding: "AzureIdentityBinding",
    Assignment: "AzureAssignedIdentity",
    ExceptionRule: "AzurePodIdentityException",
}
"""The API's names of the kinds."""

_PHASES = {phase.value: phase for phase in PodPhase}
_STATES = {state.value: state for state in AssignmentState}
_UNHEARD_OF = AssignmentState.UNASSIGNED
"""Nobody is served by a state that nobody knows, and MIC sets it right. Source: aad-pod-identity pkg/crd/crd.go:717."""
_IDENTITY_KINDS: Mapping[int, IdentityKind] = {kind.value: kind for kind in IdentityKind}
_NO_LABELS: Mapping[str, str] = {}


def pod_of(wire: WirePod) -> Pod:
    """A pod with all that NMI asks for."""
    return _pod(wire, labels=wire.metadata.labels or _NO_LABELS, ips=_addresses(wire))


def labelled_pod_of(wire: WirePod) -> Pod:
    """A pod as MIC needs it: without addresses, and of its labels only the binding's. There are many of them."""
    return _pod(wire, labels=_NO_LABELS, ips=())


def _pod(wire: WirePod, *, labels: Mapping[str, str], ips: tuple[str, ...]) -> Pod:
    meta = wire.metadata
    label = (meta.labels or _NO_LABELS).get(BINDING_LABEL)
    return Pod(
        namespace=intern(meta.namespace),
        name=meta.name,
        uid=meta.uid,
        node=intern(wire.spec.node),
        label=None if label is None else intern(label),
        phase=_PHASES.get(wire.status.phase, PodPhase.UNKNOWN),
        ips=ips,
        host_network=bool(wire.spec.host_network),
        service_account=intern(wire.spec.service_account),
        labels=labels,
        owner_replica_set=next((o.name for o in meta.owners or () if o.kind.lower() == "replicaset"), ""),
    )


def _addresses(wire: WirePod) -> tuple[str, ...]:
    """All addresses, the main one first; a server that knows no `podIPs` still sends `podIP`."""
    every = [wire.status.ip, *(address.ip for address in wire.status.ips or ())]
    return tuple(dict.fromkeys(address for address in every if address))


def node_of(wire: WireNode) -> Node:
    """A node. One whose providerID names no host is kept, with the problem: its pods shall hear of it."""
    name, provider_id = intern(wire.metadata.name), wire.spec.provider_id
    if not provider_id:
        return Node(name, host=None, problem="spec.providerID is empty, so the node names no VM or scale set")
    try:
        return Node(name, host=host_of(provider_id))
    except InvalidResourceId as error:
        return Node(name, host=None, problem=f"spec.providerID names no VM or scale set: {error}")


def identity_of(raw: dict[str, Any]) -> Identity | Unusable:
    """An AzureIdentity, with the object itself as its origin.

    An empty clientID passes: NMI refuses to serve by it, and says so to the pod.
    """
    wire = WireIdentity.model_validate(raw)
    key = Key(wire.metadata.namespace, wire.metadata.name)
    kind = wire.spec.type or 0
    if kind not in _IDENTITY_KINDS:
        problem = f"spec.type is {kind}, must be 0 (user-assigned), 1 (service principal) or 2 (certificate)"
        return _bad(Identity, key, wire.metadata.uid, problem)
    resource = None
    if kind == IdentityKind.USER_ASSIGNED:
        try:
            resource = parse_identity_resource(wire.spec.resource_id)
        except InvalidResourceId as error:
            explanation = because(Reason.BAD_RESOURCE_ID, identity=str(key), problem=f"spec.resourceID: {error}")
            return Unusable(Identity, key, explanation, wire.metadata.uid)
    return _identity(wire, _IDENTITY_KINDS[kind], resource, origin=_without_managed_fields(raw))


def _identity(
    wire: WireIdentity, kind: IdentityKind, resource: IdentityResource | None, *, origin: Mapping[str, Any] | None
) -> Identity:
    meta, spec = wire.metadata, wire.spec
    secret = spec.client_password
    return Identity(
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        resource_version=meta.resource_version,
        kind=kind,
        client_id=spec.client_id,
        host_resource=resource,
        namespaced=(meta.annotations or {}).get(BEHAVIOR_ANNOTATION) == NAMESPACED,
        tenant_id=spec.tenant_id,
        # Only for this kind they mean anything (pkg/auth/auth.go:135).
        auxiliary_tenant_ids=tuple(spec.auxiliary_tenant_ids or ()) if kind is IdentityKind.SERVICE_PRINCIPAL else (),
        secret=Key(secret.namespace, secret.name) if secret is not None and secret.name else None,
        ad_endpoint=spec.ad_endpoint,
        origin=origin,
    )


def _without_managed_fields(raw: dict[str, Any]) -> Mapping[str, Any]:
    meta = raw.get("metadata") or {}
    return {**raw, "metadata": {name: value for name, value in meta.items() if name != "managedFields"}}


def binding_of(raw: dict[str, Any]) -> Binding:
    """An AzureIdentityBinding, with the object itself as its origin."""
    return _binding(WireBinding.model_validate(raw), origin=_without_managed_fields(raw))


def _binding(wire: WireBinding, *, origin: Mapping[str, Any] | None) -> Binding:
    return Binding(
        namespace=wire.metadata.namespace,
        name=wire.metadata.name,
        uid=wire.metadata.uid,
        resource_version=wire.metadata.resource_version,
        identity_name=wire.spec.azure_identity,
        selector=intern(wire.spec.selector),
        origin=origin,
    )


@dataclass(frozen=True, slots=True)
class StoredMeta:
    """What a replacement of a stored assignment must carry on: a field left out would be removed."""

    annotations: Mapping[str, str]
    finalizers: tuple[str, ...]
    owner_references: tuple[Mapping[str, Any], ...] = ()


_AS_CREATED = StoredMeta(annotations={}, finalizers=(FINALIZER,))


def assignment_of(wire: WireAssignment) -> Assignment:
    """An AzureAssignedIdentity.

    One without its embedded identity or binding says nothing, but MIC has to see it: to write it anew, or to delete
    it. Its identity and binding are nameless; without a client ID NMI serves nobody by it.
    """
    meta, spec = wire.metadata, wire.spec
    identity = _embedded_identity(spec.identity) if spec.identity else Identity(intern(meta.namespace), "")
    notes = _notes(meta.annotations or {}, noted_for(spec.node, identity))
    return Assignment(
        namespace=intern(meta.namespace),
        name=meta.name,
        pod=Key(intern(spec.pod_namespace), spec.pod),
        node=intern(spec.node),
        identity=identity,
        binding=_embedded_binding(spec.binding) if spec.binding else Binding(intern(meta.namespace), ""),
        state=_STATES.get(wire.status.status if wire.status else "", _UNHEARD_OF),
        uid=meta.uid,
        resource_version=meta.resource_version,
        deleting=meta.deletion_timestamp is not None,
        preexisting=notes.get(PREEXISTING_ANNOTATION) == "true",
        host=_host(notes.get(HOST_ANNOTATION, "")),
        reason=(meta.annotations or {}).get(REASON_ANNOTATION, ""),
        origin=_stored_meta(wire),
    )


_OWN_ANNOTATIONS = frozenset(
    {PREEXISTING_ANNOTATION, HOST_ANNOTATION, NOTED_FOR_ANNOTATION, REASON_ANNOTATION, REASON_TIME_ANNOTATION}
)
"""What stands in fields of the assignment, and is written from there."""


def noted_for(node: str, identity: Identity) -> str:
    """What our notes about an assignment were true for.

    The original keeps annotations that it does not know when it moves an assignment to another node or identity.
    """
    return f"{node} {identity.host_resource.text if identity.host_resource else identity.client_id}"


def _notes(annotations: Mapping[str, str], now: str) -> Mapping[str, str]:
    return annotations if annotations.get(NOTED_FOR_ANNOTATION, now) == now else {}


@lru_cache(maxsize=4096)
def _host(text: str) -> Host | None:
    """The host that was noted; a note that cannot be read is none."""
    try:
        return parse_host(text) if text else None
    except InvalidResourceId:
        return None


def _stored_meta(wire: WireAssignment) -> StoredMeta:
    meta = wire.metadata
    annotations = {name: value for name, value in (meta.annotations or {}).items() if name not in _OWN_ANNOTATIONS}
    stored = StoredMeta(annotations, tuple(meta.finalizers or ()), tuple(meta.owner_references or ()))
    return _AS_CREATED if stored == _AS_CREATED else stored


def _embedded_identity(wire: WireIdentity) -> Identity:
    """The copy in an assignment. A bad resource ID does not spoil it: there is just nothing to take off a host."""
    kind = _IDENTITY_KINDS.get(wire.spec.type or 0, IdentityKind.USER_ASSIGNED)
    resource = None
    if kind is IdentityKind.USER_ASSIGNED:
        try:
            resource = parse_identity_resource(wire.spec.resource_id)
        except InvalidResourceId:
            resource = None
    identity = _identity(wire, kind, resource, origin=None)
    return _one_identity(identity, identity.uid, identity.resource_version)


def _embedded_binding(wire: WireBinding) -> Binding:
    binding = _binding(wire, origin=None)
    return _one_binding(binding, binding.uid, binding.resource_version)


# Ten thousand assignments embed copies of a few dozen identities and bindings: equal copies become one object. The
# arguments beside the value are those that its equality leaves out.


@lru_cache(maxsize=4096)
def _one_identity(identity: Identity, _uid: str, _resource_version: str) -> Identity:
    return identity


@lru_cache(maxsize=4096)
def _one_binding(binding: Binding, _uid: str, _resource_version: str) -> Binding:
    return binding


def exception_rule_of(wire: WireExceptionRule) -> ExceptionRule:
    """An AzurePodIdentityException."""
    return ExceptionRule(wire.metadata.namespace, wire.metadata.name, wire.spec.pod_labels or {})


def unusable_of(kind: type[Thing], raw: Any, error: ValidationError) -> Unusable:
    """An object whose fields have the wrong types, named by what can be read of it."""
    bare = bare_of(raw)
    first = error.errors(include_input=False, include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    return _bad(kind, Key(bare.metadata.namespace, bare.metadata.name), bare.metadata.uid, f"{field}: {first['msg']}")


def bare_of(raw: Any) -> Bare:
    """The metadata of an object that may be anything; empty where there is none."""
    try:
        return Bare.model_validate(raw)
    except ValidationError:
        return Bare()


def _bad(kind: type[Thing], key: Key, uid: str, problem: str) -> Unusable:
    return Unusable(kind, key, because(Reason.BAD_OBJECT, kind=KINDS[kind], name=str(key), problem=problem), uid)
