"""The instance metadata service of one node: tokens for its host's identities, and what the node is."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from apps.sandbox.hosts import Azure, Host
from apps.sandbox.limits import Limits
from apps.sandbox.serving import Receive, Scope, Send, answer, header
from apps.sandbox.tokens import Principal, Token, TokenIssuer

VERSIONS = (
    *("2017-03-01", "2017-04-02", "2017-08-01", "2017-10-01", "2017-12-01", "2018-02-01", "2018-04-02", "2018-10-01"),
    *("2019-02-01", "2019-03-11", "2019-04-30", "2019-06-01", "2019-06-04", "2019-08-01", "2019-08-15", "2019-11-01"),
    *("2020-06-01", "2020-07-15", "2020-09-01", "2020-10-01", "2020-12-01", "2021-01-01", "2021-02-01", "2021-03-01"),
    *("2021-05-01", "2021-10-01", "2021-11-01", "2021-11-15", "2021-12-13", "2023-07-01", "2023-11-15", "2024-03-15"),
    *("2024-07-17", "2025-04-07"),
)
_FIRST_IDENTITY_VERSION = "2018-02-01"
_AT_ONCE = 5
_SPARE_S = 300  # not_before lies this long before the moment of issue
_ID_PARAMETERS = ("client_id", "object_id", "msi_res_id", "mi_res_id")
_FORWARDED = (
    b'<?xml version="1.0" encoding="utf-8"?><Error xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">'
    b"<Code>InvalidHeaderValue</Code><Message>The value provided for one of the HTTP headers was not in the correct "
    b"format.</Message><Details>Header contains 'X-Forwarded-For' are not supported.</Details></Error>"
)


@dataclass(frozen=True, slots=True)
class Machine:
    """What /metadata/instance tells about a node; *name* is its computer name, *instance* its scale-set instance."""

    name: str
    host_id: str
    instance: str
    address: str


class _Refused(Exception):
    def __init__(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(body)
        self.status = status
        self.body = body
        self.headers = headers or {}


class Imds:
    """ASGI application for one node. It knows the identities of that node's host only, once their PATCH has ended.

    What is no error takes *latency_s*; requests that take time count as running at once.
    """

    def __init__(
        self, azure: Azure, issuer: TokenIssuer, machine: Machine, limits: Limits, lifetime_s: int = 86_400
    ) -> None:
        self.azure = azure
        self.machine = machine
        self.lifetime_s = lifetime_s
        self.latency_s = 0.0
        self._issuer = issuer
        self._limits = limits
        self._tokens: dict[tuple[str, str], Token] = {}
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del receive
        headers = {"server": "IMDS/150.870.65.1854"}
        media = "application/json; charset=utf-8"
        self._running += 1
        try:
            body = self._route(scope)
            await asyncio.sleep(self.latency_s)
            if isinstance(body, str):
                media = "text/plain; charset=utf-8"
            await answer(send, 200, body.encode() if isinstance(body, str) else body, headers, media)
        except _Refused as refused:
            if isinstance(refused.body, bytes):
                media = "text/xml; charset=utf-8"
            await answer(send, refused.status, refused.body, {**headers, **refused.headers}, media)
        finally:
            self._running -= 1

    def _route(self, scope: Scope) -> Any:
        if header(scope, "x-forwarded-for"):
            raise _Refused(400, _FORWARDED)
        if header(scope, "metadata").lower() != "true":
            raise _invalid("Required metadata header not specified")
        first, *rest = scope["path"].strip("/").split("/")
        if first.lower() != "metadata":
            raise _Refused(404, {"error": "Not found"})
        if scope["method"] != "GET":
            raise _Refused(405, {"error": "Method not allowed"}, {"allow": "GET"})
        query = _query(scope)
        match rest:
            case ["versions"]:
                return {"apiVersions": list(VERSIONS)}
            case ["instance", *leaf]:
                _check_version(query, VERSIONS[0])
                return _metadata(self._instance(), leaf, query.get("format", "json"))
            case ["identity", "info"]:
                _check_version(query, _FIRST_IDENTITY_VERSION)
                return {"tenantId": self.azure.tenant_id}
            case ["identity", "oauth2", "token"]:
                return self._token(query)
        raise _Refused(404, {"error": "Not found"})

    def _token(self, query: Mapping[str, str]) -> dict[str, str]:
        _check_version(query, _FIRST_IDENTITY_VERSION)
        if not query.get("resource"):
            raise _invalid("Required query variable 'resource' is missing")
        self._throttle()
        principal = self._principal(query)
        token = self._issue(principal, query["resource"])
        return {
            "access_token": token.text,
            "client_id": principal.client_id,
            "expires_in": str(token.expires_on - int(self._issuer.now())),
            "expires_on": str(token.expires_on),
            "ext_expires_in": str(self.lifetime_s - 1),
            "not_before": str(token.not_before),
            "resource": query["resource"],
            "token_type": "Bearer",
        }

    def _issue(self, principal: Principal, resource: str) -> Token:
        """Return the kept token of this identity and resource, or, if it has expired, a new one."""
        key = (principal.client_id, resource)
        kept = self._tokens.get(key)
        if kept is None or kept.expires_on <= self._issuer.now():
            kept = self._issuer.issue(principal, resource, self.lifetime_s, early_s=_SPARE_S)
            self._tokens[key] = kept
        return kept

    def _throttle(self) -> None:
        _, wait_s = self._limits.take("identity", self.machine.name)
        if wait_s or (self._limits.enforced and self._running > _AT_ONCE):
            told = {"error": "too_many_requests", "error_description": "Too many requests"}
            raise _Refused(429, told, {"retry-after": str(max(1, wait_s))})

    def _principal(self, query: Mapping[str, str]) -> Principal:
        host = self.azure.host(self.machine.host_id)
        held = [self.azure.identities[key] for key in sorted(host.served) if key in self.azure.identities]
        named = [name for name in _ID_PARAMETERS if query.get(name)]
        if len(named) > 1:
            raise _invalid("Only one of client_id, object_id and msi_res_id may be specified")
        if named:
            wanted = query[named[0]].lower()
            for entry in held:
                if wanted == _named_by(named[0], entry.principal):
                    return entry.principal
            raise _invalid("Identity not found")
        if host.system is not None:
            return host.system
        if len(held) > 1:
            raise _invalid(
                "Multiple user assigned identities exist, please specify the clientId / resourceId of the identity "
                "in the token request"
            )
        if not held:
            raise _invalid("Identity not found")
        return held[0].principal

    def _instance(self) -> dict[str, Any]:
        host = self.azure.host(self.machine.host_id)
        address = {"privateIpAddress": self.machine.address, "publicIpAddress": ""}
        subnet = [{"address": "127.0.0.0", "prefix": "8"}]
        interface = {
            "ipv4": {"ipAddress": [address], "subnet": subnet},
            "ipv6": {"ipAddress": []},
            "macAddress": "000D3A000001",
        }
        return {"compute": _compute(self.machine, host), "network": {"interface": [interface]}}


def _compute(machine: Machine, host: Host) -> dict[str, Any]:
    parts = host.resource_id.split("/")
    is_set = host.is_scale_set
    own_id = f"{host.resource_id}/virtualMachines/{machine.instance}" if is_set else host.resource_id
    return {
        "azEnvironment": "AzurePublicCloud",
        "location": host.location,
        "name": f"{parts[-1]}_{machine.instance}" if is_set else parts[-1],
        "osProfile": {"adminUsername": "azureuser", "computerName": machine.name},
        "osType": "Linux",
        "provider": "Microsoft.Compute",
        "resourceGroupName": parts[4],
        "resourceId": own_id,
        "sku": "",
        "subscriptionId": parts[2],
        "tags": ";".join(f"{key}:{value}" for key, value in host.tags.items()),
        "virtualMachineScaleSet": {"id": host.resource_id if is_set else ""},
        "vmId": str(uuid.uuid5(uuid.NAMESPACE_URL, own_id.lower())),
        "vmScaleSetName": parts[-1] if is_set else "",
        "vmSize": "Standard_D2s_v5",
        "zone": "",
    }


def _metadata(document: Any, path: list[str], form: str) -> Any:
    """Return a part of the document: objects as JSON or as a list of names, leaves as text only."""
    for part in path:
        try:
            document = document[int(part)] if isinstance(document, list) else document[part]
        except (KeyError, IndexError, ValueError, TypeError):
            raise _Refused(404, {"error": "Not found"}) from None
    if isinstance(document, str):
        if form != "text":
            told = "Bad request. Requests for this endpoint must be made with format=text"
            raise _Refused(400, {"error": told})
        return document
    if form != "text":
        return document
    entries = document.items() if isinstance(document, dict) else enumerate(document)
    return "\n".join(f"{name}{'' if isinstance(value, str) else '/'}" for name, value in entries)


def _named_by(parameter: str, principal: Principal) -> str:
    value = {"client_id": principal.client_id, "object_id": principal.object_id}.get(parameter)
    return (value or principal.resource_id).lower()


def _query(scope: Scope) -> dict[str, str]:
    pairs = parse_qsl(scope["query_string"].decode(), keep_blank_values=True)
    if len({name for name, _ in pairs}) != len(pairs):
        raise _invalid("A query variable is given more than once")
    return dict(pairs)


def _check_version(query: Mapping[str, str], first: str) -> None:
    version = query.get("api-version")
    if version not in VERSIONS or version < first:
        told = (
            "Bad request. api-version is invalid or was not specified in the request. For more information refer to "
            "aka.ms/azureimds"
        )
        raise _Refused(400, {"error": told, "newest-versions": list(VERSIONS[:-4:-1])})


def _invalid(why: str) -> _Refused:
    return _Refused(400, {"error": "invalid_request", "error_description": why})
