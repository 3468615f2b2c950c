"""One version of an object, as the store keeps it and as lists and watches send it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apps.sandbox.resources import Resource

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stored:
    """One version of an object; *raw* is its JSON, *prefix* the length of the part that a list item lacks."""

    namespace: str
    name: str
    version: int
    raw: bytes
    prefix: int
    labels: Mapping[str, str]
    fields: Mapping[str, str]

    @property
    def body(self) -> Body:
        """Return a fresh copy that the caller may change."""
        decoded: Body = json.loads(self.raw)
        return decoded


@dataclass(frozen=True, slots=True)
class Event:
    """A change: ADDED, MODIFIED or DELETED; *before* is the version that it replaced or ended."""

    type: str
    now: Stored
    before: Stored | None = None


def stored(resource: Resource, body: Body, version: int) -> Stored:
    """Encode a body as one version; raw begins with apiVersion and kind."""
    head = {"apiVersion": resource.api_version, "kind": resource.kind}
    rest = {key: value for key, value in body.items() if key not in head}
    raw = json.dumps({**head, **rest}, separators=(",", ":"), ensure_ascii=False).encode()
    meta = body["metadata"]
    namespace = meta.get("namespace", "")
    fields = {"metadata.name": meta["name"], "metadata.namespace": namespace}
    fields |= {path: text for path in resource.fields if (text := _field(body, path))}
    prefix = len(json.dumps(head, separators=(",", ":")))
    return Stored(namespace, meta["name"], version, raw, prefix, meta.get("labels") or {}, fields)


def _field(body: Any, path: str) -> str:
    for part in path.split("."):
        if not isinstance(body, Mapping):
            return ""
        body = body.get(part)
    if isinstance(body, bool):
        return str(body).lower()
    return "" if body is None else str(body)
