"""The kinds that the sandbox's API server knows: a table of built-in ones, and CRDs as they are applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `kubectl get`; *path* is a dotted path in the object, as in `additionalPrinterColumns`."""

    name: str
    path: str
    type: str = "string"
    priority: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Resource:
    """One row of the table of resources.

    *fields* are the selectable fields beyond metadata.name and metadata.namespace; *has_status* says that status
    is a subresource; *defaults* are merged under an object when it is created.
    """

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    has_status: bool = False
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    schema: Mapping[str, Any] | None = None
    needs_version: bool = False  # a PUT must carry resourceVersion

    @property
    def api_version(self) -> str:
        """Return `group/version`, or the bare version of the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def key(self) -> str:
        """Return `plural.group`: unique, and the name used in messages."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


_INVOLVED = ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")
_POD_DEFAULTS = {
    "spec": {
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "schedulerName": "default-scheduler",
    },
    "status": {"phase": "Pending", "qosClass": "BestEffort"},
}
_RBAC = "rbac.authorization.k8s.io"

PODS = Resource(
    "",
    "v1",
    "pods",
    "Pod",
    has_status=True,
    short_names=("po",),
    categories=("all",),
    fields=("spec.nodeName", "status.phase", "status.podIP", "spec.restartPolicy"),
    defaults=_POD_DEFAULTS,
)
NODES = Resource(
    "",
    "v1",
    "nodes",
    "Node",
    namespaced=False,
    has_status=True,
    short_names=("no",),
    fields=("spec.unschedulable",),
)
NAMESPACES = Resource(
    "",
    "v1",
    "namespaces",
    "Namespace",
    namespaced=False,
    has_status=True,
    short_names=("ns",),
    fields=("status.phase",),
    defaults={"status": {"phase": "Active"}},
)
EVENTS = Resource(
    "",
    "v1",
    "events",
    "Event",
    short_names=("ev",),
    fields=(*(f"involvedObject.{part}" for part in _INVOLVED), "reason", "type"),
)
SECRETS = Resource("", "v1", "secrets", "Secret", fields=("type",), defaults={"type": "Opaque"})
DEPLOYMENTS = Resource(
    "apps",
    "v1",
    "deployments",
    "Deployment",
    has_status=True,
    short_names=("deploy",),
    categories=("all",),
    defaults={"spec": {"replicas": 1, "revisionHistoryLimit": 10}},
)
CRDS = Resource(
    "apiextensions.k8s.io",
    "v1",
    "customresourcedefinitions",
    "CustomResourceDefinition",
    namespaced=False,
    has_status=True,
    short_names=("crd", "crds"),
)
BUILT_IN: tuple[Resource, ...] = (
    PODS,
    NODES,
    NAMESPACES,
    EVENTS,
    SECRETS,
    Resource("", "v1", "configmaps", "ConfigMap", short_names=("cm",)),
    Resource("", "v1", "endpoints", "Endpoints", short_names=("ep",)),
    Resource("", "v1", "serviceaccounts", "ServiceAccount", short_names=("sa",)),
    Resource("coordination.k8s.io", "v1", "leases", "Lease", needs_version=True),
    DEPLOYMENTS,
    Resource("apps", "v1", "daemonsets", "DaemonSet", has_status=True, short_names=("ds",), categories=("all",)),
    Resource("apps", "v1", "replicasets", "ReplicaSet", has_status=True, short_names=("rs",), categories=("all",)),
    Resource(_RBAC, "v1", "clusterroles", "ClusterRole", namespaced=False),
    Resource(_RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False),
    Resource(_RBAC, "v1", "roles", "Role"),
    Resource(_RBAC, "v1", "rolebindings", "RoleBinding"),
    CRDS,
)


class Registry:
    """All resources that are served now: the built-in ones and those of the installed CRDs."""

    def __init__(self) -> None:
        self._rows = {row.key: row for row in BUILT_IN}

    def __iter__(self) -> Any:
        return iter(tuple(self._rows.values()))

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        """Return the resource served under `/apis/{group}/{version}/{plural}`."""
        row = self._rows.get(f"{plural}.{group}" if group else plural)
        return row if row is not None and row.version == version else None

    def of(self, body: Mapping[str, Any]) -> Resource:
        """Return the resource of an object's apiVersion and kind. Raises KeyError."""
        wanted = (body.get("apiVersion"), body.get("kind"))
        for row in self._rows.values():
            if (row.api_version, row.kind) == wanted:
                return row
        raise KeyError(f"no resource for {wanted}: apply its CRD first")

    def named(self, plural: str) -> Resource:
        """Return the resource with this plural, with or without its group. Raises KeyError."""
        for row in self._rows.values():
            if plural in (row.key, row.plural):
                return row
        raise KeyError(f"no resource {plural!r}: apply its CRD first")

    def install(self, crd: Mapping[str, Any]) -> None:
        """Serve the storage version of a CRD; a second call replaces the first (no conversion of versions)."""
        row = resource_of(crd)
        self._rows[row.key] = row

    def remove(self, crd: Mapping[str, Any]) -> None:
        """Serve a deleted CRD's kind no longer."""
        self._rows.pop(resource_of(crd).key, None)


def resource_of(crd: Mapping[str, Any]) -> Resource:
    """Return the resource that a CRD defines."""
    spec = crd["spec"]
    names = spec["names"]
    version = next(entry for entry in spec["versions"] if entry.get("storage"))
    return Resource(
        group=spec["group"],
        version=version["name"],
        plural=names["plural"],
        kind=names["kind"],
        namespaced=spec.get("scope") == "Namespaced",
        has_status="status" in (version.get("subresources") or {}),
        short_names=tuple(names.get("shortNames", ())),
        categories=tuple(names.get("categories", ())),
        columns=_columns(version.get("additionalPrinterColumns", ())),
        schema=version.get("schema", {}).get("openAPIV3Schema", {}),
        needs_version=True,
    )


def _columns(declared: Sequence[Mapping[str, Any]]) -> tuple[Column, ...]:
    if not declared:
        return (Column("Age", ".metadata.creationTimestamp", "date"),)
    return tuple(
        Column(entry["name"], entry["jsonPath"], entry["type"], entry.get("priority", 0)) for entry in declared
    )
