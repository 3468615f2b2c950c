"""The Deployment controller, in small: it owns its pods itself, without ReplicaSets in between."""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import Any

from apps.sandbox.cluster import Cluster
from apps.sandbox.resources import DEPLOYMENTS, PODS
from apps.sandbox.status import StatusError
from apps.sandbox.store import timestamp
from apps.sandbox.versions import Body, Stored

_HASH = "pod-template-hash"


class Deployments:
    """Keeps as many pods of the current template as each Deployment asks for; pods that have ended count too."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def reconcile(self, held: Stored, is_gone: bool) -> None:
        """Create and delete pods, and write the status."""
        deployment = held.body
        pods = self._pods(held.namespace, deployment["metadata"]["uid"])
        wanted = 0 if is_gone else int(deployment["spec"].get("replicas", 1))
        digest = _digest(deployment["spec"].get("template", {}))
        current = [pod for pod in pods if pod.labels.get(_HASH) == digest]
        stale = [pod for pod in pods if pod.labels.get(_HASH) != digest]
        for pod in [*stale, *current[wanted:]]:
            if "deletionTimestamp" not in pod.body["metadata"]:
                self._cluster.delete(PODS, pod.namespace, pod.name)
        for _ in range(wanted - len(current)):
            self._cluster.create(_pod(deployment, digest), PODS)
        if not is_gone:
            self._write_status(held)

    def reconcile_owner(self, pod: Stored) -> None:
        """Look at the Deployment that owns a changed pod, if one does."""
        for owner in pod.body["metadata"].get("ownerReferences", ()):
            if owner.get("kind") == "Deployment":
                try:
                    held = self._cluster.store.get(DEPLOYMENTS, pod.namespace, owner["name"])
                except StatusError:
                    return
                self.reconcile(held, False)

    def _pods(self, namespace: str, uid: str) -> list[Stored]:
        return [
            pod
            for pod in self._cluster.store.list(PODS, namespace)
            if any(o.get("uid") == uid for o in pod.body["metadata"].get("ownerReferences", ()))
        ]

    def _write_status(self, held: Stored) -> None:
        deployment = held.body
        pods = self._pods(held.namespace, deployment["metadata"]["uid"])
        ready = sum(pod.fields.get("status.phase") == "Running" for pod in pods)
        wanted = int(deployment["spec"].get("replicas", 1))
        old = deployment.get("status", {})
        available = {"type": "Available", "status": "True" if ready >= wanted else "False"}
        since = next(
            (c["lastTransitionTime"] for c in old.get("conditions", ()) if c["status"] == available["status"]),
            timestamp(),
        )
        deployment["status"] = {
            "observedGeneration": deployment["metadata"].get("generation", 1),
            "replicas": len(pods),
            "updatedReplicas": len(pods),
            "readyReplicas": ready,
            "availableReplicas": ready,
            "conditions": [{**available, "lastTransitionTime": since}],
        }
        self._cluster.replace(deployment, DEPLOYMENTS)


def _digest(template: Any) -> str:
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]


def _pod(deployment: Body, digest: str) -> Body:
    meta, template = deployment["metadata"], deployment["spec"].get("template", {})
    own = template.get("metadata", {})
    owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": meta["name"], "uid": meta["uid"]}
    return {
        "metadata": {
            **own,
            "name": f"{meta['name']}-{digest}-{uuid.uuid4().hex[:5]}",
            "namespace": meta["namespace"],
            "labels": {**own.get("labels", {}), _HASH: digest},
            "ownerReferences": [{**owner, "controller": True}],
        },
        "spec": template.get("spec", {}),
    }
