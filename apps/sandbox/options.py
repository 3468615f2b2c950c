"""What a sandbox consists of: its nodes and hosts, its timing, the programs behind its images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SUBSCRIPTION = "5a4db0c5-0000-4000-8000-000000000001"
TENANT = "5a4db0c5-0000-4000-8000-00000000000a"
RESOURCE_GROUP = "MC_sandbox_cluster_westeurope"
LOCATION = "westeurope"


def resource_id(kind: str, name: str, resource_group: str = RESOURCE_GROUP, subscription: str = SUBSCRIPTION) -> str:
    """Return an ARM id; *kind* is a provider and a type, such as Microsoft.Compute/virtualMachines."""
    return f"/subscriptions/{subscription}/resourceGroups/{resource_group}/providers/{kind}/{name}"


def scale_set_id(name: str, resource_group: str = RESOURCE_GROUP, subscription: str = SUBSCRIPTION) -> str:
    """Return the id of a scale set."""
    return resource_id("Microsoft.Compute/virtualMachineScaleSets", name, resource_group, subscription)


def vm_id(name: str, resource_group: str = RESOURCE_GROUP, subscription: str = SUBSCRIPTION) -> str:
    """Return the id of a virtual machine."""
    return resource_id("Microsoft.Compute/virtualMachines", name, resource_group, subscription)


def identity_id(name: str, resource_group: str = RESOURCE_GROUP, subscription: str = SUBSCRIPTION) -> str:
    """Return the id of a user-assigned identity."""
    kind = "Microsoft.ManagedIdentity/userAssignedIdentities"
    return resource_id(kind, name, resource_group, subscription)


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """A node on a VM, or, if *instance* is given, on an instance of a scale set; *host_id* is the ARM id of either."""

    name: str
    host_id: str
    instance: str = ""

    @property
    def provider_id(self) -> str:
        """Return spec.providerID, the resource group in lower case as the cloud provider writes it."""
        parts = self.host_id.split("/")
        parts[4] = parts[4].lower()
        below = f"/virtualMachines/{self.instance}" if self.instance else ""
        return f"azure://{'/'.join(parts)}{below}"


def scale_set_nodes(count: int, name: str = "aks-pool1-12345678-vmss") -> tuple[NodeSpec, ...]:
    """Return *count* nodes on one scale set, named as AKS names them."""
    host = scale_set_id(name)
    return tuple(NodeSpec(f"{name}{number:06x}", host, str(number)) for number in range(count))


@dataclass(frozen=True, slots=True)
class Program:
    """What a container image runs: a command line, to which a container's args are added, and environment."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SandboxOptions:
    """How a sandbox is made; each field has a default that suits a test.

    *images* maps a prefix of an image's name to a program; pods of other images just become Running. Without *run_pods*
    nobody plays controller, scheduler or kubelet and pods stay as they are written. With *use_managed_identity*
    azure.json names a user-assigned identity of all hosts instead of a service principal. With *enforce_limits* ARM and
    IMDS refuse what exceeds Azure's request budgets. *history* is how many events of each kind a watch can resume over.
    Without *state_dir* the files are in a temporary directory, removed at the end.
    """

    nodes: tuple[NodeSpec, ...] = field(default_factory=lambda: scale_set_nodes(1))
    operation_s: float = 2.0
    crds: tuple[Path, ...] = ()
    images: Mapping[str, Program] = field(default_factory=dict)
    state_dir: Path | None = None
    run_pods: bool = True
    use_managed_identity: bool = False
    enforce_limits: bool = False
    token_s: int = 86_400
    bookmark_s: float = 60.0
    history: int = 10_000
