"""`Table` answers: what `kubectl get` prints."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from apps.sandbox.resources import Column, Resource
from apps.sandbox.versions import Stored

Body = Mapping[str, Any]
Cell = Callable[[Body], Any]
_AGE = Column("Age", ".metadata.creationTimestamp", "date")


def wants_table(accept: str) -> bool:
    """Return whether the first choice of an Accept header is a Table."""
    return "as=Table" in accept.split(",")[0]


def table(resource: Resource, objects: Sequence[Stored], meta: Body, include: str) -> dict[str, Any]:
    """Return a `meta.k8s.io/v1` Table; *include* is the request's includeObject (Metadata, Object or None)."""
    columns = _columns(resource)
    names = [
        {"name": c.name, "type": c.type, "format": "", "description": "", "priority": c.priority} for c, _ in columns
    ]
    names[0]["format"] = "name"
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": dict(meta),
        "columnDefinitions": names,
        "rows": [_row(columns, held, include) for held in objects],
    }


def _row(columns: Sequence[tuple[Column, Cell]], held: Stored, include: str) -> dict[str, Any]:
    body = held.body
    row: dict[str, Any] = {"cells": [cell(body) for _, cell in columns]}
    if include == "Object":
        row["object"] = body
    elif include != "None":
        partial = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
        row["object"] = {**partial, "metadata": body["metadata"]}
    return row


def _columns(resource: Resource) -> list[tuple[Column, Cell]]:
    name = Column("Name", ".metadata.name")
    declared = resource.columns or _BUILT_IN.get(resource.key, (_AGE,))
    return [(column, _COMPUTED.get(column.path, _cell(column))) for column in (name, *declared)]


def _cell(column: Column) -> Cell:
    def cell(body: Body) -> Any:
        found = _follow(body, column.path)
        if column.type == "date":
            return _age(found)
        return found if found is None or isinstance(found, str | int | float | bool) else json.dumps(found)

    return cell


def _follow(body: Any, path: str) -> Any:
    for part in path.strip("{}").removeprefix(".").split("."):
        if not isinstance(body, Mapping):
            return None
        body = body.get(part)
    return body


def _age(since: Any) -> str:
    if not isinstance(since, str):
        return "<unknown>"
    then = datetime.fromisoformat(since.replace("Z", "+00:00"))
    seconds = max(0, int((datetime.now(UTC) - then).total_seconds()))
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def _ready_containers(body: Body) -> str:
    states = _follow(body, "status.containerStatuses") or ()
    wanted = len(_follow(body, "spec.containers") or ())
    return f"{sum(bool(state.get('ready')) for state in states)}/{wanted}"


def _pod_status(body: Body) -> str:
    if "deletionTimestamp" in body["metadata"]:
        return "Terminating"
    phase = str(_follow(body, "status.phase") or "Pending")
    return {"Succeeded": "Completed", "Failed": "Error"}.get(phase, phase)


def _restarts(body: Body) -> str:
    return str(sum(state.get("restartCount", 0) for state in _follow(body, "status.containerStatuses") or ()))


def _node_status(body: Body) -> str:
    conditions = _follow(body, "status.conditions") or ()
    ready = any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)
    return "Ready" if ready else "NotReady"


def _ready_replicas(body: Body) -> str:
    return f"{_follow(body, 'status.readyReplicas') or 0}/{_follow(body, 'spec.replicas') or 0}"


def _involved(body: Body) -> str:
    return f"{str(_follow(body, 'involvedObject.kind')).lower()}/{_follow(body, 'involvedObject.name')}"


_COMPUTED: Mapping[str, Cell] = {
    "=ready": _ready_containers,
    "=phase": _pod_status,
    "=restarts": _restarts,
    "=node": _node_status,
    "=replicas": _ready_replicas,
    "=involved": _involved,
    "=count": lambda body: len(body.get("data") or ()),
    "=roles": lambda _: "<none>",
    "=seen": lambda body: _age(body.get("lastTimestamp") or body["metadata"].get("creationTimestamp")),
}
_BUILT_IN: Mapping[str, Sequence[Column]] = {
    "pods": (
        Column("Ready", "=ready"),
        Column("Status", "=phase"),
        Column("Restarts", "=restarts"),
        _AGE,
        Column("IP", ".status.podIP", priority=1),
        Column("Node", ".spec.nodeName", priority=1),
    ),
    "nodes": (
        Column("Status", "=node"),
        Column("Roles", "=roles"),
        _AGE,
        Column("Version", ".status.nodeInfo.kubeletVersion"),
    ),
    "namespaces": (Column("Status", ".status.phase"), _AGE),
    "events": (
        Column("Last Seen", "=seen"),
        Column("Type", ".type"),
        Column("Reason", ".reason"),
        Column("Object", "=involved"),
        Column("Message", ".message"),
    ),
    "secrets": (Column("Type", ".type"), Column("Data", "=count", "integer"), _AGE),
    "configmaps": (Column("Data", "=count", "integer"), _AGE),
    "deployments.apps": (
        Column("Ready", "=replicas"),
        Column("Up-to-date", ".status.updatedReplicas", "integer"),
        Column("Available", ".status.availableReplicas", "integer"),
        _AGE,
    ),
    "leases.coordination.k8s.io": (Column("Holder", ".spec.holderIdentity"), _AGE),
    "customresourcedefinitions.apiextensions.k8s.io": (Column("Created At", ".metadata.creationTimestamp"),),
}
