"""The rules that the API server adds to the store: CRDs, namespaces, subresources, graceful deletion of pods."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

from apps.sandbox.resources import CRDS, NAMESPACES, PODS, SECRETS, Registry, Resource, resource_of
from apps.sandbox.status import Cause, StatusError, invalid, not_found
from apps.sandbox.store import Store, timestamp
from apps.sandbox.versions import Body, Stored

NAMESPACES_AT_START = ("default", "kube-system", "kube-public", "kube-node-lease")


class Cluster:
    """The objects of a cluster, for the HTTP server and for tests alike.

    *holds* says whether a kubelet runs a pod: such a pod, when deleted, stays until the kubelet has ended it.
    """

    def __init__(self, history: int = 10_000) -> None:
        self.store = Store(history)
        self.registry = Registry()
        self.holds: Callable[[Stored], bool] = lambda _: False
        for name in NAMESPACES_AT_START:
            labels = {"kubernetes.io/metadata.name": name}
            self.store.create(NAMESPACES, {"metadata": {"name": name, "labels": labels}})

    def create(self, body: Mapping[str, Any], resource: Resource | None = None) -> Stored:
        """Add an object; a CRD's kind is served from then on. Raises StatusError, and KeyError for an unknown kind."""
        resource = resource or self.registry.of(body)
        fresh: Body = {**body, "apiVersion": resource.api_version, "kind": resource.kind}
        namespace = (fresh.get("metadata") or {}).get("namespace") or "default"
        if resource.namespaced and not self._has(NAMESPACES, "", namespace):
            raise not_found(NAMESPACES, namespace)
        _before_write(resource, fresh)
        stored = self.store.create(resource, fresh)
        if resource == CRDS:
            self.registry.install(stored.body)
        return stored

    def replace(self, body: Mapping[str, Any], resource: Resource | None = None) -> Stored:
        """Store a newer version as it is, status included. Raises StatusError, and KeyError for an unknown kind."""
        resource = resource or self.registry.of(body)
        fresh = dict(body)
        _before_write(resource, fresh)
        stored = self.store.replace(resource, fresh)
        if resource == CRDS and "deletionTimestamp" not in stored.body["metadata"]:
            self.registry.install(stored.body)
        return stored

    def update(self, resource: Resource, body: Body, subresource: str = "") -> Stored:
        """Store what a PUT or PATCH of the object, or of its status, may change. Raises StatusError."""
        meta = body.setdefault("metadata", {})
        current = self.store.get(resource, meta.get("namespace", ""), meta.get("name", ""))
        if subresource:
            kept = current.body
            kept["metadata"]["resourceVersion"] = meta.get("resourceVersion") or str(current.version)
            return self.replace({**kept, "status": body.get("status", {})}, resource)
        if resource.has_status:
            body.pop("status", None)
            if "status" in (old := current.body):
                body["status"] = old["status"]
        return self.replace(body, resource)

    def delete(self, resource: Resource, namespace: str, name: str, grace_s: int | None = None) -> Stored | None:
        """Delete an object; return it if it lives on for now, marked. Raises StatusError (404)."""
        before = self.store.get(resource, namespace, name)
        if resource == PODS:
            grace_s = self._grace(before, grace_s)
        if resource == NAMESPACES:
            self._empty(name)
        kept = self.store.delete(resource, namespace, name, grace_s if resource == PODS and grace_s else 0)
        if kept is None and resource == CRDS:
            self.store.drop(resource_of(before.body))
            self.registry.remove(before.body)
        return kept

    def change(self, plural: str, namespace: str, name: str, edit: Callable[[Body], object]) -> Stored:
        """Let *edit* change a copy of an object in place, status included, and store it (for tests and controllers)."""
        resource = self.registry.named(plural)
        body = self.store.get(resource, namespace, name).body
        edit(body)
        return self.replace(body, resource)

    def objects(self, plural: str, namespace: str = "") -> list[Body]:
        """Return all objects of a resource."""
        return [held.body for held in self.store.list(self.registry.named(plural), namespace)]

    def _grace(self, pod: Stored, asked: int | None) -> int:
        if not self.holds(pod):
            return 0
        return int(pod.body["spec"].get("terminationGracePeriodSeconds", 30)) if asked is None else asked

    def _empty(self, namespace: str) -> None:
        for resource in self.registry:
            for held in self.store.list(resource, namespace) if resource.namespaced else ():
                self.delete(resource, namespace, held.name)

    def _has(self, resource: Resource, namespace: str, name: str) -> bool:
        try:
            self.store.get(resource, namespace, name)
        except StatusError:
            return False
        return True


def _before_write(resource: Resource, body: Body) -> None:
    if resource == SECRETS and "stringData" in body:
        plain = body.pop("stringData")
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in plain.items()}
        body["data"] = {**body.get("data", {}), **encoded}
    if resource == CRDS:
        _establish(body)


def _establish(crd: Body) -> None:
    name = crd.get("metadata", {}).get("name", "")
    try:
        row = resource_of(crd)
    except (KeyError, StopIteration, TypeError, AttributeError):
        cause = Cause("FieldValueRequired", "spec", "Required value: group, names and one storage version")
        raise invalid(CRDS, name, [cause]) from None
    if row.key != name:
        told = f'Invalid value: "{name}": must be spec.names.plural+"."+spec.group'
        raise invalid(CRDS, name, [Cause("FieldValueInvalid", "metadata.name", told)])
    conditions = (crd.get("status") or {}).get("conditions") or [
        {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": timestamp()}
        for kind, reason, message in (
            ("NamesAccepted", "NoConflicts", "no conflicts found"),
            ("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        )
    ]
    accepted = {"listKind": f"{row.kind}List", "singular": row.kind.lower(), **crd["spec"]["names"]}
    crd["status"] = {"acceptedNames": accepted, "conditions": conditions, "storedVersions": [row.version]}
