"""The objects as the API server sends them, as far as we read them.

Everything is optional and may be null: what was stored before a CRD had its schema need not follow it, and one odd
object must not hide the others. What we *write* is built in `convert`, where its exact form is documented.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

GROUP_VERSION = "aadpodidentity.k8s.io/v1"
BEHAVIOR_ANNOTATION = "aadpodidentity.k8s.io/Behavior"
NAMESPACED = "namespaced"
PREEXISTING_ANNOTATION = "aadpodidentity.k8s.io/preexisting"
HOST_ANNOTATION = "aadpodidentity.k8s.io/host"
NOTED_FOR_ANNOTATION = "aadpodidentity.k8s.io/noted-for"
REASON_ANNOTATION = "aadpodidentity.k8s.io/reason"
REASON_TIME_ANNOTATION = "aadpodidentity.k8s.io/reason-time"
NODE_LABEL = "nodename"
FINALIZER = "azureassignedidentity.finalizers.aadpodidentity.k8s.io"

Item = TypeVar("Item")


def _empty_for_null(value: Any) -> Any:
    return "" if value is None else value


Text = Annotated[str, BeforeValidator(_empty_for_null)]


class Wire(BaseModel):
    """What all wire models have in common: unknown fields are skipped, names are the Python ones or the wire's."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)


class ListMeta(Wire):
    """The version that a list shows, and where its next page begins."""

    resource_version: str = Field(default="", alias="resourceVersion")
    continue_token: str | None = Field(default=None, alias="continue")


class Page(Wire, Generic[Item]):
    """One page of a list."""

    metadata: ListMeta = Field(default_factory=ListMeta)
    items: list[Item] | None = None


class WatchEvent(Wire, Generic[Item]):
    """One line of a watch: ADDED, MODIFIED, DELETED, BOOKMARK or ERROR, and the object."""

    type: str
    object: Item


class Owner(Wire):
    """An owner reference."""

    kind: str = ""
    name: str = ""


class Meta(Wire):
    """Metadata that every object has."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = Field(default="", alias="resourceVersion")


class Bare(Wire):
    """What all objects have in common."""

    metadata: Meta = Field(default_factory=Meta)


class PodMeta(Meta):
    """A pod's metadata."""

    labels: dict[str, str] | None = None
    owners: list[Owner] | None = Field(default=None, alias="ownerReferences")


class PodSpec(Wire):
    """Where a pod runs, and as whom."""

    node: Text = Field(default="", alias="nodeName")
    host_network: bool | None = Field(default=None, alias="hostNetwork")
    service_account: Text = Field(default="", alias="serviceAccountName")


class PodAddress(Wire):
    """One of a pod's addresses."""

    ip: str = ""


class PodStatus(Wire):
    """A pod's phase and addresses."""

    phase: str = "Pending"
    ip: Text = Field(default="", alias="podIP")
    ips: list[PodAddress] | None = Field(default=None, alias="podIPs")


class WirePod(Bare):
    """A Pod."""

    metadata: PodMeta = Field(default_factory=PodMeta)
    spec: PodSpec = Field(default_factory=PodSpec)
    status: PodStatus = Field(default_factory=PodStatus)


class NodeSpec(Wire):
    """The cloud's name for a node."""

    provider_id: Text = Field(default="", alias="providerID")


class WireNode(Bare):
    """A Node."""

    spec: NodeSpec = Field(default_factory=NodeSpec)


class AnnotatedMeta(Meta):
    """Metadata with annotations."""

    annotations: dict[str, str] | None = None


class SecretReference(Wire):
    """Where a service principal's secret or certificate is kept."""

    name: Text = ""
    namespace: Text = ""


class IdentitySpec(Wire):
    """The spec of an AzureIdentity."""

    type: int | None = None
    resource_id: Text = Field(default="", alias="resourceID")
    client_id: Text = Field(default="", alias="clientID")
    client_password: SecretReference | None = Field(default=None, alias="clientPassword")
    tenant_id: Text = Field(default="", alias="tenantID")
    auxiliary_tenant_ids: list[str] | None = Field(default=None, alias="auxiliaryTenantIDs")
    ad_endpoint: Text = Field(default="", alias="adEndpoint")


class WireIdentity(Bare):
    """An AzureIdentity, alone or embedded in an assignment."""

    metadata: AnnotatedMeta = Field(default_factory=AnnotatedMeta)
    spec: IdentitySpec = Field(default_factory=IdentitySpec)


class BindingSpec(Wire):
    """The spec of an AzureIdentityBinding."""

    azure_identity: Text = Field(default="", alias="azureIdentity")
    selector: Text = ""


class WireBinding(Bare):
    """An AzureIdentityBinding, alone or embedded in an assignment."""

    spec: BindingSpec = Field(default_factory=BindingSpec)


class AssignmentMeta(AnnotatedMeta):
    """An assignment's metadata: what a replacement must carry on, too."""

    deletion_timestamp: datetime | None = Field(default=None, alias="deletionTimestamp")
    finalizers: list[str] | None = None
    owner_references: list[dict[str, Any]] | None = Field(default=None, alias="ownerReferences")


class AssignmentSpec(Wire):
    """The spec of an AzureAssignedIdentity."""

    identity: WireIdentity | None = Field(default=None, alias="azureIdentityRef")
    binding: WireBinding | None = Field(default=None, alias="azureBindingRef")
    pod: Text = ""
    pod_namespace: Text = Field(default="", alias="podNamespace")
    node: Text = Field(default="", alias="nodename")


class AssignmentStatus(Wire):
    """The status of an AzureAssignedIdentity."""

    status: Text = ""


class WireAssignment(Bare):
    """An AzureAssignedIdentity.

    Spellings from before 1.6 (all lower case) need no care: the CRDs' schema prunes them before anybody can read them.
    """

    metadata: AssignmentMeta = Field(default_factory=AssignmentMeta)
    spec: AssignmentSpec = Field(default_factory=AssignmentSpec)
    status: AssignmentStatus | None = None


class ExceptionSpec(Wire):
    """The spec of an AzurePodIdentityException."""

    pod_labels: dict[str, str] | None = Field(default=None, alias="podLabels")


class WireExceptionRule(Bare):
    """An AzurePodIdentityException."""

    spec: ExceptionSpec = Field(default_factory=ExceptionSpec)


class LeaseSpec(Wire):
    """Who holds a lease, and for how long. Its times are for people: no clock is compared with another machine's."""

    holder: Text = Field(default="", alias="holderIdentity")
    duration_s: int | None = Field(default=None, alias="leaseDurationSeconds")
    transitions: int | None = Field(default=None, alias="leaseTransitions")


class WireLease(Bare):
    """A Lease of coordination.k8s.io/v1."""

    spec: LeaseSpec = Field(default_factory=LeaseSpec)


class LeaderRecord(Wire):
    """What the original writes into an annotation of its Endpoints lock."""

    holder: Text = Field(default="", alias="holderIdentity")
    duration_s: int = Field(default=15, alias="leaseDurationSeconds")
    renew_time: datetime | None = Field(default=None, alias="renewTime")


class WireEndpoints(Bare):
    """An Endpoints object, as far as a lock needs it."""

    metadata: AnnotatedMeta = Field(default_factory=AnnotatedMeta)
