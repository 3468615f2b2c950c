"""The administrator's view of the API server, as plain JSON: apply, get, list, patch, delete, and kubeconfigs.

Objects are named by their kind alone, as one speaks of them; where they live is asked of the server itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.cluster.control_plane import ControlPlane
from tests.cluster.waiting import until

Object = dict[str, Any]

DISCOVERY = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
FIELD_MANAGER = "cluster-tests"


class ApiRefused(AssertionError):
    """The API server answered with an error."""

    def __init__(self, action: str, answer: httpx.Response) -> None:
        super().__init__(f"{action}: {answer.status_code} {answer.text.strip()}")
        self.status_code = answer.status_code


@dataclass(frozen=True, slots=True)
class Resource:
    """Where the API server keeps objects of one kind."""

    prefix: str
    plural: str
    is_namespaced: bool

    def path(self, namespace: str | None, name: str | None = None) -> str:
        """Return the path of one object, or of the collection; without namespace: of all namespaces."""
        scope = f"/namespaces/{namespace}" if self.is_namespaced and namespace else ""
        return f"{self.prefix}{scope}/{self.plural}" + (f"/{name}" if name else "")


class Cluster:
    """The API server as its administrator uses it. Every method raises ApiRefused."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self.control_plane = control_plane
        self._client = control_plane.admin_client()
        self._resources: dict[str, Resource] = {}

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def request(self, method: str, path: str, body: object = None, content_type: str = "application/json") -> Object:
        """Send any request and return the answer's JSON."""
        headers = {"Content-Type": content_type}
        answer = self._client.request(method, path, json=body, headers=headers)
        if answer.is_error:
            raise ApiRefused(f"{method} {path}", answer)
        return dict(answer.json())

    def resource(self, kind: str) -> Resource:
        """Return where objects of *kind* are kept."""
        if kind not in self._resources:
            self._resources = self._discover()
        return self._resources[kind]

    def apply(self, *sources: Path | Object) -> list[Object]:
        """Apply YAML files, folders of them, or objects, in the given order, as `kubectl apply` does.

        After a CustomResourceDefinition it waits until the server serves the kind.
        """
        return [self._apply_one(document) for source in sources for document in documents_of(source)]

    def create(self, document: Object) -> Object:
        """Create one object that must not exist yet."""
        resource = self.resource(document["kind"])
        return self.request("POST", resource.path(document["metadata"].get("namespace", "default")), document)

    def get(self, kind: str, name: str, namespace: str = "default") -> Object:
        """Return one object."""
        return self.request("GET", self.resource(kind).path(namespace, name))

    def list(self, kind: str, namespace: str | None = None) -> list[Object]:
        """Return all objects of *kind*, of all namespaces unless one is named."""
        return list(self.request("GET", self.resource(kind).path(namespace))["items"])

    def patch(self, kind: str, name: str, change: Object, namespace: str = "default", *, part: str = "") -> Object:
        """Merge *change* into an object, or into a *part* of it such as `status`, and return it."""
        path = self.resource(kind).path(namespace, name) + (f"/{part}" if part else "")
        return self.request("PATCH", path, change, "application/merge-patch+json")

    def delete(self, kind: str, name: str, namespace: str = "default") -> None:
        """Delete one object, a pod without grace period."""
        self.request("DELETE", self.resource(kind).path(namespace, name), {"gracePeriodSeconds": 0})

    def delete_all(self, kinds: Sequence[str]) -> None:
        """Delete all objects of *kinds*, finalizers or not, but for the API server's own."""
        for kind in kinds:
            for item in self.list(kind):
                name, namespace = item["metadata"]["name"], item["metadata"].get("namespace", "default")
                if namespace.startswith("kube-"):
                    continue
                if item["metadata"].get("finalizers"):
                    self.patch(kind, name, {"metadata": {"finalizers": None}}, namespace)
                self.delete(kind, name, namespace)

    def kubeconfig_of(self, service_account: str, namespace: str = "default") -> Path:
        """Return a kubeconfig with a token of an existing ServiceAccount, as a pod of it would get."""
        path = self.resource("ServiceAccount").path(namespace, service_account) + "/token"
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 3600},
        }
        token = self.request("POST", path, request)["status"]["token"]
        return self.control_plane.kubeconfig(f"{namespace}-{service_account}", {"token": token}, namespace)

    def _apply_one(self, document: Object) -> Object:
        metadata = document["metadata"]
        path = self.resource(document["kind"]).path(metadata.get("namespace", "default"), metadata["name"])
        query = f"?fieldManager={FIELD_MANAGER}&force=true"
        applied = self.request("PATCH", path + query, document, "application/apply-patch+yaml")  # JSON is YAML
        if document["kind"] == "CustomResourceDefinition":
            kind = document["spec"]["names"]["kind"]
            until(lambda: kind in self._discover(), f"the API server serves {kind}", within_s=15)
        return applied

    def _discover(self) -> dict[str, Resource]:
        found: dict[str, Resource] = {}
        for root in ("/api", "/apis"):  # core first: `Event` is the core one
            answer = self._client.get(root, headers={"Accept": DISCOVERY})
            for group in answer.json()["items"]:
                for kind, resource in _resources_of(group):
                    found.setdefault(kind, resource)
        return found


def documents_of(source: Path | Object) -> Iterator[Object]:
    """Yield the objects of a YAML file, of a folder's YAML files in order of name, or the object itself."""
    if not isinstance(source, Path):
        yield source
        return
    for file in sorted(source.glob("*.yaml")) if source.is_dir() else [source]:
        yield from (document for document in yaml.safe_load_all(file.read_text()) if document)


def _resources_of(group: Mapping[str, Any]) -> Iterator[tuple[str, Resource]]:
    """Yield kind and resource of one group of the aggregated discovery document, its preferred version first."""
    name = group["metadata"].get("name", "")
    for version in group["versions"]:
        prefix = f"/apis/{name}/{version['version']}" if name else f"/api/{version['version']}"
        for entry in version["resources"]:
            is_namespaced = entry["scope"] == "Namespaced"
            yield entry["responseKind"]["kind"], Resource(prefix, entry["resource"], is_namespaced)
