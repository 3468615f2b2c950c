"""The generic object store: versioned objects of any resource, their history, and watches on it.

Each version of an object is kept as the JSON it is served as, so that a list or a watch of thousands of objects only
joins bytes. All methods but `Cursor.read` are plain: one event loop owns the store and nothing interleaves.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from apps.sandbox.resources import Resource
from apps.sandbox.schema import admit
from apps.sandbox.selectors import EVERYTHING, Selector
from apps.sandbox.status import Cause, already_exists, conflict, expired, invalid, not_found
from apps.sandbox.versions import Body, Event, Stored, stored


class _Log:
    """The events of one resource, the oldest forgotten once there are twice as many as *keep*."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.events: list[Event] = []
        self.base = 0  # how many events were forgotten
        self.floor = 0  # version of the last forgotten one: whoever asks for less gets 410
        self.wakers: set[asyncio.Event] = set()

    def append(self, event: Event) -> None:
        self.events.append(event)
        if len(self.events) > 2 * self.keep:
            self.forget(len(self.events) - self.keep)
        self.wake()

    def forget(self, count: int) -> None:
        if count:
            self.floor = self.events[count - 1].now.version
            self.base += count
            del self.events[:count]

    def wake(self) -> None:
        for waker in self.wakers:
            waker.set()


class Store:
    """Objects by resource, namespace and name, under one increasing resourceVersion."""

    def __init__(self, history: int = 10_000) -> None:
        self.version = 1
        self.closed = False
        self._history = history
        self._objects: dict[str, dict[tuple[str, str], Stored]] = {}
        self._logs: dict[str, _Log] = {}

    def get(self, resource: Resource, namespace: str, name: str) -> Stored:
        """Return the newest version. Raises StatusError (404)."""
        found = self._of(resource).get((namespace, name))
        if found is None:
            raise not_found(resource, name)
        return found

    def list(self, resource: Resource, namespace: str = "", selector: Selector = EVERYTHING) -> tuple[Stored, ...]:
        """Return the matching objects in the order of namespace and name; no namespace means all."""
        held = self._of(resource)
        keys = sorted(key for key in held if not namespace or key[0] == namespace)
        return tuple(held[key] for key in keys if selector.matches(held[key]))

    def create(self, resource: Resource, body: Mapping[str, Any]) -> Stored:
        """Add an object (its namespace and name are in its metadata). Raises StatusError (404, 409, 422)."""
        fresh = _merged(resource.defaults, _copy(body))
        meta = fresh.setdefault("metadata", {})
        if not meta.get("name") and meta.get("generateName"):
            meta["name"] = meta["generateName"] + uuid.uuid4().hex[:5]
        namespace, name = _identity(resource, meta)
        if (namespace, name) in self._of(resource):
            raise already_exists(resource, name)
        meta.update(uid=str(uuid.uuid4()), creationTimestamp=timestamp())
        meta.pop("deletionTimestamp", None)
        if "spec" in fresh:
            meta["generation"] = 1
        return self._write(resource, "ADDED", fresh, None)

    def replace(self, resource: Resource, body: Mapping[str, Any]) -> Stored:
        """Store a newer version. If it carries a resourceVersion, this must be the stored one (else 409).

        An unchanged object keeps its version. An object under deletion that has lost its last finalizer is removed.
        """
        fresh = {**_copy(body), "apiVersion": resource.api_version, "kind": resource.kind}
        meta = fresh.setdefault("metadata", {})
        namespace, name = _identity(resource, meta)
        before = self.get(resource, namespace, name)
        if str(meta.get("resourceVersion") or before.version) != str(before.version):
            raise conflict(resource, name)
        old = before.body
        if meta.get("uid") not in (None, "", old["metadata"]["uid"]):
            why = f"Precondition failed: UID in precondition: {meta['uid']}, "
            raise conflict(resource, name, why + f"UID in object meta: {old['metadata']['uid']}")
        _keep_system_fields(meta, old["metadata"])
        if _content(resource, fresh) != _content(resource, old) and "generation" in old["metadata"]:
            meta["generation"] = old["metadata"]["generation"] + 1
        if "deletionTimestamp" in meta and not meta.get("finalizers") and not _grace(meta):
            return self._write(resource, "DELETED", fresh, before)
        admit(resource, fresh)
        meta["resourceVersion"] = str(before.version)
        return before if fresh == old else self._write(resource, "MODIFIED", fresh, before)

    def delete(self, resource: Resource, namespace: str, name: str, grace_s: int = 0) -> Stored | None:
        """Remove an object; return it if finalizers or *grace_s* keep it, marked for deletion, else None."""
        before = self.get(resource, namespace, name)
        body = before.body
        meta = body["metadata"]
        if not meta.get("finalizers") and grace_s == 0:
            self._write(resource, "DELETED", body, before)
            return None
        if "deletionTimestamp" in meta and (grace_s or not _grace(meta)):
            return before
        meta["deletionTimestamp"] = timestamp(grace_s)
        meta["deletionGracePeriodSeconds"] = grace_s
        return self._write(resource, "MODIFIED", body, before)

    def drop(self, resource: Resource) -> None:
        """Delete all objects of a resource, whatever their finalizers say."""
        for held in self.list(resource):
            self._write(resource, "DELETED", held.body, held)

    def cursor(self, resource: Resource, since: int) -> Cursor:
        """Return a reader of the changes after version *since*. Raises StatusError (410)."""
        return Cursor(self, self._log(resource), since)

    def compact(self) -> None:
        """Forget all history, so that watches from older versions, and slow ones, get 410."""
        for log in self._logs.values():
            log.forget(len(log.events))

    def close(self) -> None:
        """End all watches."""
        self.closed = True
        for log in self._logs.values():
            log.wake()

    def _write(self, resource: Resource, kind: str, body: Body, before: Stored | None) -> Stored:
        if kind == "ADDED":
            admit(resource, body)
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        now = stored(resource, body, self.version)
        if kind == "DELETED":
            del self._of(resource)[now.namespace, now.name]
        else:
            self._of(resource)[now.namespace, now.name] = now
        self._log(resource).append(Event(kind, now, before))
        return now

    def _of(self, resource: Resource) -> dict[tuple[str, str], Stored]:
        return self._objects.setdefault(resource.key, {})

    def _log(self, resource: Resource) -> _Log:
        return self._logs.setdefault(resource.key, _Log(self._history))


class Cursor:
    """A place in one resource's history. Use it as a context manager, so that it is woken no longer than needed."""

    def __init__(self, store: Store, log: _Log, since: int) -> None:
        self._store = store
        self._log = log
        self._waker = asyncio.Event()
        self._seen = since
        self._check(since >= log.floor)
        self._at = log.base + bisect_right(log.events, since, key=lambda event: event.now.version)

    def __enter__(self) -> Cursor:
        self._log.wakers.add(self._waker)
        return self

    def __exit__(self, *_: object) -> None:
        self._log.wakers.discard(self._waker)

    async def read(self, within_s: float | None = None) -> Sequence[Event]:
        """Wait for changes and return them; empty after *within_s* or when the store is closed.

        Raises StatusError (410) if the history no longer reaches back to this place.
        """
        deadline = None if within_s is None else asyncio.get_running_loop().time() + within_s
        while not self._store.closed:
            self._waker.clear()
            self._check(self._at >= self._log.base)
            if fresh := self._log.events[self._at - self._log.base :]:
                self._at += len(fresh)
                self._seen = fresh[-1].now.version
                return fresh
            try:
                async with asyncio.timeout_at(deadline):
                    await self._waker.wait()
            except TimeoutError:
                break
        return ()

    def _check(self, is_kept: bool) -> None:
        if not is_kept:
            raise expired(f"too old resource version: {self._seen} ({self._log.floor + 1})")


def timestamp(ahead_s: float = 0) -> str:
    """Return the wall time in the form of creationTimestamp."""
    return (datetime.now(UTC) + timedelta(seconds=ahead_s)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _copy(body: Mapping[str, Any]) -> Body:
    copied: Body = json.loads(json.dumps(body))
    return copied


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> Body:
    mixed: Body = dict(over)
    for key, value in under.items():
        held = mixed.get(key)
        if isinstance(value, Mapping) and isinstance(held, Mapping | None):
            mixed[key] = _merged(value, held or {})
        else:
            mixed.setdefault(key, value)
    return mixed


def _identity(resource: Resource, meta: Body) -> tuple[str, str]:
    name = meta.get("name")
    if not name:
        raise invalid(
            resource,
            "",
            [Cause("FieldValueRequired", "metadata.name", "Required value: name or generateName is required")],
        )
    if not resource.namespaced:
        meta.pop("namespace", None)
        return "", name
    return meta.setdefault("namespace", "default"), name


def _keep_system_fields(meta: Body, old: Mapping[str, Any]) -> None:
    for key in ("uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds"):
        meta.pop(key, None)
        if key in old:
            meta[key] = old[key]


def _content(resource: Resource, body: Mapping[str, Any]) -> Body:
    left_out = {"metadata", "status"} if resource.has_status else {"metadata"}
    return {key: value for key, value in body.items() if key not in left_out}


def _grace(meta: Mapping[str, Any]) -> int:
    return int(meta.get("deletionGracePeriodSeconds") or 0)
