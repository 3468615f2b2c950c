"""Values for tests, complete enough to work with each other: name only what the test is about.

By default everything lives in the namespace `default`, pods run on the node `node-1` with the label `web`, and a
binding `web` gives such pods the identity `web`.
"""

from __future__ import annotations

from collections.abc import Mapping
from uuid import NAMESPACE_URL, uuid5

from podidentity_core.matching import assignment_key
from podidentity_core.model import (
    Assignment,
    AssignmentState,
    Binding,
    ExceptionRule,
    Identity,
    IdentityKind,
    Node,
    Pod,
    PodPhase,
)
from podidentity_core.resource_ids import Host, HostKind, IdentityResource, host_of, parse_identity_resource

SUBSCRIPTION = "6f9f3c52-6ff1-4b5e-9d3d-0a6f3c8a1b20"
"""The subscription of everything that is built here."""
GROUP = "MC_rg_cluster_westeurope"
"""The resource group of all hosts."""


def resource(name: str = "web") -> IdentityResource:
    """Build the resource ID of a user-assigned identity."""
    return parse_identity_resource(
        f"/subscriptions/{SUBSCRIPTION}/resourcegroups/rg"
        f"/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{name}"
    )


def client_id(name: str = "web") -> str:
    """Build the client ID of the identity *name*: always the same one, and of no other name."""
    return str(uuid5(NAMESPACE_URL, name))


def vm(name: str = "node-1") -> Host:
    """Build the VM behind a node that is called like it."""
    return Host(HostKind.VM, SUBSCRIPTION, GROUP, name)


def scale_set(name: str = "pool") -> Host:
    """Build a scale set."""
    return Host(HostKind.SCALE_SET, SUBSCRIPTION, GROUP, name)


def node(name: str = "node-1", *, host: Host | None = None) -> Node:
    """Build a node on a VM of its own, or on *host*."""
    return Node(name, host or vm(name))


def vmss_node(name: str, pool: str = "pool", instance: int = 0) -> Node:
    """Build a node that is an instance of the scale set *pool*, read from a providerID as AKS writes it."""
    return Node(name, host_of(f"azure://{scale_set(pool).resource_id}/virtualMachines/{instance}"))


def pod(
    name: str = "web-0",
    *,
    namespace: str = "default",
    uid: str = "",
    node: str = "node-1",
    label: str | None = "web",
    phase: PodPhase = PodPhase.RUNNING,
    ips: tuple[str, ...] = (),
    host_network: bool = False,
    labels: Mapping[str, str] | None = None,
    owner_replica_set: str = "",
) -> Pod:
    """Build a running pod; *label* is the value of `aadpodidbinding`."""
    return Pod(
        namespace=namespace,
        name=name,
        uid=uid or f"uid-of-{namespace}-{name}",
        node=node,
        label=label,
        phase=phase,
        ips=ips,
        host_network=host_network,
        labels=labels or {},
        owner_replica_set=owner_replica_set,
    )


def identity(
    name: str = "web",
    *,
    namespace: str = "default",
    resource_name: str = "",
    client: str | None = None,
    namespaced: bool = False,
    kind: IdentityKind = IdentityKind.USER_ASSIGNED,
) -> Identity:
    """Build an AzureIdentity for the Azure identity *resource_name*, by default of the same name."""
    needs_host = kind is IdentityKind.USER_ASSIGNED
    return Identity(
        namespace=namespace,
        name=name,
        uid=f"uid-of-identity-{namespace}-{name}",
        resource_version="1",
        kind=kind,
        client_id=client_id(resource_name or name) if client is None else client,
        host_resource=resource(resource_name or name) if needs_host else None,
        namespaced=namespaced,
    )


def binding(
    name: str = "web", *, namespace: str = "default", identity_name: str = "", selector: str = "web"
) -> Binding:
    """Build an AzureIdentityBinding to the identity *identity_name*, by default of the same name."""
    return Binding(
        namespace=namespace,
        name=name,
        uid=f"uid-of-binding-{namespace}-{name}",
        resource_version="1",
        identity_name=identity_name or name,
        selector=selector,
    )


def assignment(
    to: Pod | None = None,
    of: Identity | None = None,
    because_of: Binding | None = None,
    *,
    state: AssignmentState = AssignmentState.ASSIGNED,
    node: str = "",
    namespaced: bool = False,
    deleting: bool = False,
    preexisting: bool = False,
    host: Host | None = None,
    version: int = 1,
) -> Assignment:
    """Build the stored AzureAssignedIdentity that MIC makes for the pod *to*, the identity *of* and a binding."""
    to, of, because_of = to or pod(), of or identity(), because_of or binding()
    key = assignment_key(to.key, of, namespaced=namespaced)
    return Assignment(
        namespace=key.namespace,
        name=key.name,
        pod=to.key,
        node=node or to.node,
        identity=of,
        binding=because_of,
        state=state,
        uid=f"uid-of-{key.name}",
        resource_version=str(version),
        deleting=deleting,
        preexisting=preexisting,
        host=host,
    )


def exception_rule(
    name: str = "excepted", *, namespace: str = "default", pod_labels: Mapping[str, str] | None = None
) -> ExceptionRule:
    """Build an AzurePodIdentityException, by default for pods with the label `app: agent`."""
    return ExceptionRule(namespace, name, {"app": "agent"} if pod_labels is None else pod_labels)
