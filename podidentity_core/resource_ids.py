"""Azure resource IDs: of identities, and of the hosts behind nodes.

IDs are compared by a folded key, because Azure itself changes their letter case between answers, and are shown and
sent as they were written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum


class InvalidResourceId(ValueError):
    """The text is not the kind of Azure resource ID that was expected; the message says what was."""


@dataclass(frozen=True, slots=True, eq=False)
class IdentityResource:
    """The ARM resource of one user-assigned identity.

    *text* is the ID as somebody wrote it; *key* is what two spellings of one ID have in common. Equality and
    hashing go by *key* alone.
    """

    text: str
    key: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IdentityResource) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __str__(self) -> str:
        return self.text


_NAME = r"[^/?#%\s\x00-\x1f]+"
"""A subscription, a resource group (which may have dots, parentheses and letters of any script), or a host."""

_IDENTITY = re.compile(
    rf"/subscriptions/{_NAME}/resourcegroups/{_NAME}"
    r"/providers/microsoft\.managedidentity/userassignedidentities/[a-z0-9_-]+"
)


def parse_identity_resource(text: str) -> IdentityResource:
    """Read the resource ID of a user-assigned identity.

    Unlike the original (pkg/utils/utils.go:22), text before or after the ID is an error: ARM refuses such an ID,
    and with it the whole batch.

    Raises:
        InvalidResourceId: with the form that is expected.
    """
    if not _IDENTITY.fullmatch(text.lower()):
        raise InvalidResourceId(
            f"invalid resource id: {text!r}, must match /subscriptions/<subid>/resourcegroups/<resourcegroup>"
            "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/<name>"
        )
    return IdentityResource(text=text, key=text.lower())


class HostKind(Enum):
    """What carries the identities in Azure; the value is ARM's resource type."""

    VM = "virtualMachines"
    SCALE_SET = "virtualMachineScaleSets"


@dataclass(frozen=True, slots=True, eq=False)
class Host:
    """A VM or a scale set. Several nodes share a scale set. Equality and hashing go by the folded *key*."""

    kind: HostKind
    subscription: str
    resource_group: str
    name: str
    key: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", self.resource_id.lower())

    @property
    def resource_id(self) -> str:
        """The ARM ID, with the names as the cloud provider wrote them."""
        return (
            f"/subscriptions/{self.subscription}/resourceGroups/{self.resource_group}"
            f"/providers/Microsoft.Compute/{self.kind.value}/{self.name}"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Host) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __str__(self) -> str:
        return self.resource_id


_PROVIDER_ID = re.compile(
    rf"(?:azure://)?/subscriptions/(?P<subscription>{_NAME})/resourceGroups/(?P<group>{_NAME})"
    rf"/providers/Microsoft\.Compute/(?:virtualMachineScaleSets/(?P<set>{_NAME})/virtualMachines/{_NAME}"
    rf"|virtualMachines/(?P<vm>{_NAME}))/?",
    re.IGNORECASE,
)


def host_of(provider_id: str) -> Host:
    """Read a node's `spec.providerID`: the VM, or for a Uniform scale set's instance the set.

    Subscription and resource group come from the ID itself, so one cluster may span several. A Flexible scale
    set's instance names no set; it is a VM, and takes identities as one.

    Source: aad-pod-identity pkg/cloudprovider/cloudprovider.go:268, without its case-sensitive type test.

    Raises:
        InvalidResourceId: when the ID is empty or names something else.
    """
    found = _PROVIDER_ID.fullmatch(provider_id)
    if found is None:
        raise InvalidResourceId(
            f"invalid providerID {provider_id!r}, must be azure:///subscriptions/<subid>/resourceGroups/<resourcegroup>"
            "/providers/Microsoft.Compute/virtualMachines/<vm> or .../virtualMachineScaleSets/<set>/virtualMachines/<n>"
        )
    kind = HostKind.SCALE_SET if found["set"] else HostKind.VM
    return Host(kind, found["subscription"], found["group"], found["set"] or found["vm"])


_HOST_ID = re.compile(
    rf"/subscriptions/(?P<subscription>{_NAME})/resourceGroups/(?P<group>{_NAME})"
    rf"/providers/Microsoft\.Compute/(?P<type>virtualMachines|virtualMachineScaleSets)/(?P<name>{_NAME})",
    re.IGNORECASE,
)


def parse_host(text: str) -> Host:
    """Read the resource ID of a VM or a scale set, as `Host.resource_id` gives it.

    Raises:
        InvalidResourceId: when it is none.
    """
    found = _HOST_ID.fullmatch(text)
    if found is None:
        raise InvalidResourceId(f"invalid resource id: {text!r} is neither a virtual machine nor a scale set")
    kind = HostKind.VM if found["type"].lower() == HostKind.VM.value.lower() else HostKind.SCALE_SET
    return Host(kind, found["subscription"], found["group"], found["name"])
