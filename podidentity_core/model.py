"""The values that everything else talks about: pods, nodes, identities, bindings, assignments, exception rules.

All are frozen. An adapter makes them from what it reads and checks them while doing so; the core does not check again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any, NamedTuple

from podidentity_core.reasons import Explanation
from podidentity_core.resource_ids import Host, IdentityResource

BINDING_LABEL = "aadpodidbinding"
"""The pod label whose value a binding's selector is compared with (pkg/apis/aadpodidentity/types.go:46)."""


class Key(NamedTuple):
    """Namespace and name of an object; the namespace is empty for a node."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class PodPhase(Enum):
    """The phase that the kubelet reports."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod, as far as identities go. *node* is empty until it is scheduled; *label* is None without the label."""

    namespace: str
    name: str
    uid: str
    node: str = ""
    label: str | None = None
    phase: PodPhase = PodPhase.PENDING
    ips: tuple[str, ...] = ()
    host_network: bool = False
    service_account: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    owner_replica_set: str = ""

    @property
    def key(self) -> Key:
        """Namespace and name."""
        return Key(self.namespace, self.name)

    @property
    def finished(self) -> bool:
        """Whether no container of the pod will run again."""
        return self.phase in (PodPhase.SUCCEEDED, PodPhase.FAILED)


@dataclass(frozen=True, slots=True)
class Node:
    """A node and the host behind it. When *host* is None, *problem* says what is wrong with its providerID."""

    name: str
    host: Host | None
    problem: str = ""

    @property
    def key(self) -> Key:
        """The node's name, without a namespace."""
        return Key("", self.name)


class IdentityKind(IntEnum):
    """`spec.type` of an AzureIdentity. Only the table of token sources and the wire models ask for it."""

    USER_ASSIGNED = 0
    SERVICE_PRINCIPAL = 1
    CERTIFICATE = 2


@dataclass(frozen=True, slots=True)
class Identity:
    """An AzureIdentity.

    *host_resource* is what must be on the host before the identity can be used; None for kinds that need nothing
    there. *namespaced* is the object's own wish to serve its namespace only. *origin* is what the adapter read it
    from: carried along unopened, so that an assignment can embed it.

    Two identities are equal when their content is: an edit of an annotation changes the resource version, and nothing
    that a pod could notice.
    """

    namespace: str
    name: str
    uid: str = field(default="", compare=False)
    resource_version: str = field(default="", compare=False)
    kind: IdentityKind = IdentityKind.USER_ASSIGNED
    client_id: str = ""
    host_resource: IdentityResource | None = None
    namespaced: bool = False
    tenant_id: str = ""
    auxiliary_tenant_ids: tuple[str, ...] = ()
    secret: Key | None = None
    ad_endpoint: str = ""
    origin: Any = field(default=None, compare=False, repr=False)
    key: Key = field(init=False, compare=False, repr=False)
    """Namespace and name."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", Key(self.namespace, self.name))


@dataclass(frozen=True, slots=True)
class Binding:
    """An AzureIdentityBinding: pods whose label equals *selector* get *identity_name* of the same namespace.

    Equality goes by content, as with `Identity`.
    """

    namespace: str
    name: str
    uid: str = field(default="", compare=False)
    resource_version: str = field(default="", compare=False)
    identity_name: str = ""
    selector: str = ""
    origin: Any = field(default=None, compare=False, repr=False)
    key: Key = field(init=False, compare=False, repr=False)
    """Namespace and name."""
    identity_key: Key = field(init=False, compare=False, repr=False)
    """The AzureIdentity it names, which lives in the binding's own namespace."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", Key(self.namespace, self.name))
        object.__setattr__(self, "identity_key", Key(self.namespace, self.identity_name))


class AssignmentState(Enum):
    """`status.status` of an AzureAssignedIdentity. UNKNOWN: written by a MIC that knew no states."""

    UNKNOWN = ""
    CREATED = "Created"
    ASSIGNED = "Assigned"
    UNASSIGNED = "Unassigned"


@dataclass(frozen=True, slots=True)
class Assignment:
    """An AzureAssignedIdentity: this pod, on this node, may use this identity because of this binding.

    *preexisting*: the identity was on the host before MIC first wrote it, so MIC never removes it. *host* is the host
    as MIC noted it, for the day when the node is gone; None where the original wrote the assignment. *reason*: why it
    has waited for its host for longer than a moment, as MIC noted it for its readers; it begins with the code.
    *origin* is the adapter's own record of the stored object; None while it is only planned.
    """

    namespace: str
    name: str
    pod: Key
    node: str
    identity: Identity
    binding: Binding
    state: AssignmentState = AssignmentState.CREATED
    uid: str = ""
    resource_version: str = ""
    deleting: bool = False
    preexisting: bool = False
    host: Host | None = None
    reason: str = ""
    origin: Any = field(default=None, compare=False, repr=False)

    @property
    def key(self) -> Key:
        """Namespace and name of the AzureAssignedIdentity itself."""
        return Key(self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class ExceptionRule:
    """An AzurePodIdentityException: pods of its namespace with one of *pod_labels* get the node's own tokens."""

    namespace: str
    name: str
    pod_labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """Namespace and name."""
        return Key(self.namespace, self.name)


Thing = Pod | Node | Identity | Binding | Assignment | ExceptionRule
"""Anything that is watched."""


@dataclass(frozen=True, slots=True)
class Seen:
    """*thing* is like this now."""

    thing: Thing


@dataclass(frozen=True, slots=True)
class Gone:
    """The object no longer exists, or is no longer of interest. *uid* is empty where it is not known."""

    kind: type[Thing]
    key: Key
    uid: str = ""


@dataclass(frozen=True, slots=True)
class Unusable:
    """The object exists but cannot be used; it counts as absent, and *explanation* says what to correct."""

    kind: type[Thing]
    key: Key
    explanation: Explanation
    uid: str = ""


@dataclass(frozen=True, slots=True)
class Synced:
    """Everything that existed at the start has been seen: decisions about absence are sound from here on."""


Change = Seen | Gone | Unusable | Synced
"""One step of what the cluster looks like."""
