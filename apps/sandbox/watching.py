"""Lists in pages and watches as lines of JSON."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apps.sandbox.resources import Resource
from apps.sandbox.selectors import Selector, selector
from apps.sandbox.serving import Receive, Send
from apps.sandbox.status import StatusError, bad_request, expired
from apps.sandbox.store import Store
from apps.sandbox.tables import table
from apps.sandbox.versions import Event, Stored

Query = Mapping[str, str]
_MOST_PAGES = 64
_CONTINUE_TOO_OLD = (
    "The provided continue parameter is too old to display a consistent list result. "
    "You can start a new list without the continue parameter."
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a list or watch asks for."""

    resource: Resource
    namespace: str
    selector: Selector
    query: Query
    as_table: bool

    def encode(self, held: Stored) -> bytes:
        """Return one object in the asked-for form, as a watch event carries it."""
        if not self.as_table:
            return held.raw
        meta = {"resourceVersion": str(held.version)}
        shown = table(self.resource, [held], meta, self.query.get("includeObject", "Metadata"))
        return json.dumps(shown).encode()


def wanted(resource: Resource, namespace: str, name: str, query: Query, as_table: bool) -> Wanted:
    """Parse the query of a list or watch; *name* narrows it to one object. Raises StatusError (400)."""
    fields = query.get("fieldSelector", "")
    if name:
        fields = f"{fields},metadata.name={name}".lstrip(",")
    chosen = selector(resource, query.get("labelSelector", ""), fields)
    return Wanted(resource, namespace, chosen, query, as_table)


class Lists:
    """Answers lists, and keeps what was cut off from them, so that all pages show one version."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rest: OrderedDict[str, tuple[int, Sequence[Stored]]] = OrderedDict()

    def page(self, asked: Wanted) -> bytes:
        """Return the list, or its next page. Raises StatusError (400, 410)."""
        version, objects = self._objects(asked)
        limit = _number(asked.query, "limit")
        meta: dict[str, Any] = {"resourceVersion": str(version)}
        if limit and len(objects) > limit:
            meta["continue"] = self._keep(version, objects[limit:])
            meta["remainingItemCount"] = len(objects) - limit
            objects = objects[:limit]
        if asked.as_table:
            include = asked.query.get("includeObject", "Metadata")
            return json.dumps(table(asked.resource, objects, meta, include)).encode()
        return _list(asked.resource, objects, meta)

    def forget(self) -> None:
        """Let every continue token expire."""
        self._rest.clear()

    def _objects(self, asked: Wanted) -> tuple[int, Sequence[Stored]]:
        token = asked.query.get("continue")
        if not token:
            return self._store.version, self._store.list(asked.resource, asked.namespace, asked.selector)
        try:
            key = str(json.loads(base64.urlsafe_b64decode(token))["start"])
        except (binascii.Error, ValueError, KeyError, TypeError):
            raise bad_request("continue key is not valid") from None
        if key not in self._rest:
            raise expired(_CONTINUE_TOO_OLD)
        return self._rest[key]

    def _keep(self, version: int, rest: Sequence[Stored]) -> str:
        key = f"{random.getrandbits(64):x}"
        self._rest[key] = (version, rest)
        if len(self._rest) > _MOST_PAGES:
            self._rest.popitem(last=False)
        body = {"v": "meta.k8s.io/v1", "rv": version, "start": key}
        return base64.urlsafe_b64encode(json.dumps(body).encode()).decode()


def _list(resource: Resource, objects: Sequence[Stored], meta: Mapping[str, Any]) -> bytes:
    head = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": meta}
    # Items of built-in kinds come without apiVersion and kind, custom resources with them, as from the real server.
    items = (
        (held.raw for held in objects)
        if resource.schema is not None
        else (b"{" + held.raw[held.prefix :] for held in objects)
    )
    return json.dumps(head)[:-1].encode() + b',"items":[' + b",".join(items) + b"]}"


class Watch:
    """One watch request. Its start may raise StatusError; after that, errors are events of the stream."""

    def __init__(self, store: Store, asked: Wanted, bookmark_s: float) -> None:
        self._store = store
        self._asked = asked
        self._bookmark_s = bookmark_s
        self._bookmarks = asked.query.get("allowWatchBookmarks") in ("true", "1")
        self._timeout_s = _number(asked.query, "timeoutSeconds") or random.uniform(1800, 3600)  # noqa: S311
        self._since = _number(asked.query, "resourceVersion")
        if asked.query.get("sendInitialEvents") in ("true", "1"):
            told = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
            raise StatusError(422, "Invalid", f"ListOptions.meta.k8s.io is invalid: {told}")

    async def serve(self, receive: Receive, send: Send) -> None:
        """Stream until the time is over, the client has gone or the store is closed."""
        headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-cache, private")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def line(kind: str, body: bytes) -> None:
            text = b'{"type":"' + kind.encode() + b'","object":' + body + b"}\n"
            await send({"type": "http.response.body", "body": text, "more_body": True})

        events = asyncio.ensure_future(self._stream(line))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({events, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            events.cancel()
        if events.done():
            await events
            await send({"type": "http.response.body", "body": b""})

    async def _stream(self, line: Callable[[str, bytes], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._timeout_s
        try:
            for kind, held in self._initial():
                await line(kind, self._asked.encode(held))
            with self._store.cursor(self._asked.resource, self._since) as cursor:
                while (left := end - loop.time()) > 0 and not self._store.closed:
                    events = await cursor.read(min(left, self._bookmark_s))
                    for event in events:
                        if kind := _kind(self._asked, event):
                            await line(kind, self._asked.encode(event.now))
                    if not events and self._bookmarks:
                        await line("BOOKMARK", self._bookmark())
        except StatusError as error:
            await line("ERROR", json.dumps(error.body).encode())

    def _initial(self) -> list[tuple[str, Stored]]:
        if self._since:
            return []
        self._since = self._store.version
        held = self._store.list(self._asked.resource, self._asked.namespace, self._asked.selector)
        return [("ADDED", entry) for entry in held]

    def _bookmark(self) -> bytes:
        resource = self._asked.resource
        meta = {"resourceVersion": str(self._store.version), "creationTimestamp": None}
        return json.dumps({"kind": resource.kind, "apiVersion": resource.api_version, "metadata": meta}).encode()


def _kind(asked: Wanted, event: Event) -> str:
    """Return what a change is to this watch: an object that leaves the selection is deleted, as far as it can see."""
    if asked.namespace and event.now.namespace != asked.namespace:
        return ""
    is_in = event.type != "DELETED" and asked.selector.matches(event.now)
    was_in = event.before is not None and asked.selector.matches(event.before)
    return {(True, True): "MODIFIED", (True, False): "ADDED", (False, True): "DELETED"}.get((is_in, was_in), "")


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _number(query: Query, key: str) -> int:
    text = query.get(key, "") or "0"
    if not text.isdecimal():
        raise bad_request(f'Invalid value: "{text}": {key} must be a number')
    return int(text)
