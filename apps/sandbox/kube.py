"""The API server's HTTP side: paths, verbs, formats and errors."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from apps.sandbox.cluster import Cluster
from apps.sandbox.discovery import document
from apps.sandbox.patches import json_patch, merge_patch, strategic_merge
from apps.sandbox.podlog import PodLog
from apps.sandbox.resources import PODS, Resource
from apps.sandbox.schema import unknown_fields
from apps.sandbox.serving import Receive, Scope, Send, answer, header, read_body
from apps.sandbox.status import (
    Cause,
    StatusError,
    bad_request,
    conflict,
    invalid,
    method_not_allowed,
    unauthorized,
    unknown_path,
    unsupported_media_type,
)
from apps.sandbox.tables import table, wants_table
from apps.sandbox.versions import Body, Stored
from apps.sandbox.watching import Lists, Watch, wanted

_PUBLIC = ("/version", "/healthz", "/livez", "/readyz")
_PATCHES: Mapping[str, Callable[[Any, Any], Any]] = {
    "application/json-patch+json": json_patch,
    "application/merge-patch+json": merge_patch,
    "application/strategic-merge-patch+json": strategic_merge,
}


@dataclass(frozen=True, slots=True)
class Request:
    """A request for objects, its path resolved."""

    method: str
    resource: Resource
    namespace: str
    name: str
    subresource: str
    query: Mapping[str, str]
    accept: str
    media: str
    body: bytes


class Kube:
    """ASGI application: an API server over *cluster* that accepts one bearer token.

    *logs* gives the output of a pod's process; *bookmark_s* is the pause between bookmarks on an idle watch.
    """

    def __init__(self, cluster: Cluster, token: str, bookmark_s: float = 60.0) -> None:
        self.cluster = cluster
        self.bookmark_s = bookmark_s
        self.logs: Callable[[str, str], PodLog | None] = lambda *_: None
        self._token = token
        self._lists = Lists(cluster.store)

    def compact(self) -> None:
        """Forget history: watches from older versions and continue tokens get 410."""
        self.cluster.store.compact()
        self._lists.forget()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._route(scope, receive, send)
        except StatusError as refused:
            await answer(send, refused.code, refused.body)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if path not in _PUBLIC and not self._knows(header(scope, "authorization")):
            raise unauthorized()
        if path in _PUBLIC[1:]:
            await answer(send, 200, b"ok", media="text/plain")
        elif (found := document(self.cluster.registry, path)) is not None:
            await answer(send, 200, found)
        elif not path.startswith(("/api/", "/apis/")):
            await answer(send, 404, b"404 page not found\n", media="text/plain; charset=utf-8")
        else:
            await self._serve(await self._request(scope, receive), receive, send)

    def _knows(self, authorization: str) -> bool:
        return hmac.compare_digest(authorization.encode(), f"Bearer {self._token}".encode())

    async def _request(self, scope: Scope, receive: Receive) -> Request:
        method: str = scope["method"]
        resource, namespace, name, subresource = self._resolve(scope["path"])
        return Request(
            method,
            resource,
            namespace,
            name,
            subresource,
            dict(parse_qsl(scope["query_string"].decode(), keep_blank_values=True)),
            header(scope, "accept"),
            header(scope, "content-type").partition(";")[0].strip(),
            await read_body(receive) if method in ("POST", "PUT", "PATCH", "DELETE") else b"",
        )

    def _resolve(self, path: str) -> tuple[Resource, str, str, str]:
        parts = path.strip("/").split("/")
        group, version, *rest = ["", *parts[1:]] if parts[0] == "api" else [*parts[1:], "", ""]
        namespace = ""
        if len(rest) > 2 and rest[0] == "namespaces" and rest[2] not in ("status", "finalize"):
            namespace, rest = rest[1], rest[2:]
        resource = self.cluster.registry.find(group, version, rest[0]) if rest else None
        name, subresource, *deeper = [*rest[1:], "", ""]
        known = ("", "log") if resource == PODS else ("",)
        has_it = subresource in known or (subresource == "status" and resource and resource.has_status)
        if resource is None or any(deeper) or not has_it or (name and resource.namespaced and not namespace):
            raise unknown_path()
        return resource, namespace, name, subresource

    async def _serve(self, request: Request, receive: Receive, send: Send) -> None:
        if request.method == "GET" and request.query.get("watch") in ("true", "1"):
            asked = wanted(
                request.resource, request.namespace, request.name, request.query, wants_table(request.accept)
            )
            await Watch(self.cluster.store, asked, self.bookmark_s).serve(receive, send)
        elif request.subresource == "log":
            await self._log(request, send)
        else:
            if request.query.get("dryRun"):
                raise bad_request("the sandbox has no dry run: nothing was changed")
            status, body, headers = self._handle(request)
            await answer(send, status, body, headers)

    def _handle(self, request: Request) -> tuple[int, bytes, dict[str, str]]:
        kind = "object" if request.name else "collection"
        handler = {
            ("GET", "collection"): self._list,
            ("POST", "collection"): self._create,
            ("DELETE", "collection"): self._delete_all,
            ("GET", "object"): self._get,
            ("PUT", "object"): self._put,
            ("PATCH", "object"): self._patch,
            ("DELETE", "object"): self._delete,
        }.get((request.method, kind))
        if handler is None or (request.subresource and request.method == "DELETE"):
            raise method_not_allowed()
        return handler(request)

    def _list(self, request: Request) -> tuple[int, bytes, dict[str, str]]:
        as_table = wants_table(request.accept)
        asked = wanted(request.resource, request.namespace, "", request.query, as_table)
        return 200, self._lists.page(asked), {}

    def _get(self, request: Request) -> tuple[int, bytes, dict[str, str]]:
        held = self.cluster.store.get(request.resource, request.namespace, request.name)
        if not wants_table(request.accept):
            return 200, held.raw, {}
        meta = {"resourceVersion": str(held.version)}
        shown = table(request.resource, [held], meta, request.query.get("includeObject", "Metadata"))
        return 200, json.dumps(shown).encode(), {}

    def _create(self, request: Request) -> tuple[int, bytes, dict[str, str]]:
        body = _decode(request)
        body["metadata"] = _located(request, body)
        if request.resource.has_status:
            body.pop("status", None)
        warnings = _check_unknown(request, body)
        return 201, self.cluster.create(body, request.resource).raw, warnings

    def _put(self, request: Request) -> tuple[int, bytes, dict[str, str]]:
        body = _decode(request)
        meta = body["metadata"] = _located(request, body)
        if request.resource.needs_version and not meta.get("resourceVersion"):
            self.cluster.store.get(request.resource, request.namespace, request.name)
            told = "Invalid value: 0x0: must be specified for an update"
            cause = Cause("FieldValueInvalid", "metadata.resourceVersion", told)
            raise invalid(request.resource, request.name, [cause])
        warnings = _check_unknown(request, body)
        return 200, self.cluster.update(request.resource, body, request.subresource).raw, warnings

    def _patch(self, request: Request) -> tuple[int, bytes, dict[str, str]]:
        accepted = [kind for kind in _PATCHES if "strategic" not in kind or request.resource.schema is None]
        if request.media not in accepted:
            raise unsupported_media_type(accepted)
        held = self.cluster.store.get(request.resource, request.namespace, request.name)
        body = _PATCHES[request.media](held.body, _parse(request.body))
        if not isinstance(body, dict):
            raise bad_request("the patched object is not an object")
        body["metadata"] = _located(request, body)
        warnings = _check_unknown(request, body)
        return 200, self.cluster.update(request.resource, body, request.subresource).raw, warnings

    def _delete(self, request: Request) -> tuple[int, bytes, dict[str, str]]:
        options = _parse(request.body) if request.body else {}
        held = self.cluster.store.get(request.resource, request.namespace, request.name)
        _check_preconditions(request.resource, held, options.get("preconditions") or {})
        grace = request.query.get("gracePeriodSeconds", options.get("gracePeriodSeconds"))
        kept = self.cluster.delete(
            request.resource, request.namespace, request.name, None if grace is None else int(grace)
        )
        return 200, kept.raw if kept else _deleted(request.resource, held), {}

    def _delete_all(self, request: Request) -> tuple[int, bytes, dict[str, str]]:
        asked = wanted(request.resource, request.namespace, "", request.query, as_table=False)
        for held in self.cluster.store.list(asked.resource, asked.namespace, asked.selector):
            self.cluster.delete(request.resource, held.namespace, held.name)
        return 200, self._lists.page(asked), {}

    async def _log(self, request: Request, send: Send) -> None:
        if request.method != "GET":
            raise method_not_allowed()
        pod = self.cluster.store.get(PODS, request.namespace, request.name).body
        log = self.logs(request.namespace, request.name)
        if log is None and pod.get("status", {}).get("phase") == "Pending":
            name = pod["spec"]["containers"][0]["name"]
            where = f'container "{name}" in pod "{request.name}"'
            raise bad_request(f"{where} is waiting to start: ContainerCreating")
        lines = request.query.get("tailLines")
        at = log.tail(None if lines is None else int(lines)) if log else 0
        if log is None or request.query.get("follow") not in ("true", "1"):
            await answer(send, 200, bytes(log.data[at:]) if log else b"", media="text/plain")
            return
        headers = [(b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while text := await log.after(at):
            at += len(text)
            await send({"type": "http.response.body", "body": text, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def _parse(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError as error:
        raise bad_request(f"error decoding the body: {error}") from None


def _decode(request: Request) -> Body:
    if request.media not in ("application/json", ""):
        raise unsupported_media_type(["application/json"])
    body = _parse(request.body)
    if not isinstance(body, dict) or not isinstance(body.get("metadata") or {}, dict):
        raise bad_request("the body is not an object with metadata")
    row = request.resource
    given = (body.get("apiVersion", row.api_version), body.get("kind", row.kind))
    if given != (row.api_version, row.kind):
        told = f"the API version or kind in the data ({given[0]}, {given[1]})"
        raise bad_request(f"{told} does not match the expected ({row.api_version}, {row.kind})")
    return body


def _located(request: Request, body: Body) -> Body:
    """Return the object's metadata with the path's namespace and name. Raises StatusError if it says otherwise."""
    meta = dict(body.get("metadata") or {})
    if meta.get("namespace") not in (None, "", request.namespace) and request.resource.namespaced:
        raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
    if request.name and meta.get("name") not in (None, "", request.name):
        raise bad_request(
            f"the name of the object ({meta['name']}) does not match the name on the URL ({request.name})"
        )
    if request.resource.namespaced:
        meta["namespace"] = request.namespace
    return {**meta, "name": request.name} if request.name else meta


def _check_unknown(request: Request, body: Body) -> dict[str, str]:
    unknown = [f'unknown field "{path}"' for path in unknown_fields(request.resource, body)]
    mode = request.query.get("fieldValidation", "Warn")
    if unknown and mode == "Strict":
        kind, version = request.resource.kind, request.resource.version
        why = f"strict decoding error: {', '.join(unknown)}"
        raise bad_request(f'{kind} in version "{version}" cannot be handled as a {kind}: {why}')
    if unknown and mode == "Warn":
        quoted = unknown[0].replace('"', '\\"')
        return {"warning": f'299 - "{quoted}"'}
    return {}


def _check_preconditions(resource: Resource, held: Stored, wanted: Mapping[str, str]) -> None:
    meta = held.body["metadata"]
    for key, name in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
        if wanted.get(key) not in (None, "", meta[key]):
            why = f"{name} in precondition: {wanted[key]}, {name} in object meta: {meta[key]}"
            raise conflict(resource, held.name, f"Precondition failed: {why}")


def _deleted(resource: Resource, held: Stored) -> bytes:
    group = {"group": resource.group} if resource.group else {}
    uid = held.body["metadata"]["uid"]
    details = {"name": held.name, **group, "kind": resource.plural, "uid": uid}
    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
    return json.dumps(status).encode()
