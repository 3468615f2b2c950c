"""Azure Resource Manager's HTTP side: hosts, user-assigned identities and operations, as recorded from the real one."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, quote

import jwt

from apps.sandbox.arm_limits import count_at_arm, count_at_compute
from apps.sandbox.hosts import Azure, Host, Operation, host_body, identity_body, instance_body, operation_body
from apps.sandbox.identity_rules import ArmError, invalid_request
from apps.sandbox.limits import Limits
from apps.sandbox.serving import Receive, Scope, Send, answer, header, read_body
from apps.sandbox.tokens import TokenIssuer

AUDIENCES = ("https://management.core.windows.net/", "https://management.azure.com/")
_ETAGS_SINCE = "2023-09-01"
_PATH = re.compile(
    r"^/subscriptions/(?P<subscription>[^/]+)(?:/resourceGroups/(?P<group>[^/]+))?/providers/"
    r"(?P<kind>Microsoft\.\w+/\w+)(?:/(?P<name>[^/]+))?(?:/(?P<child>\w+)(?:/(?P<number>[^/]+))?)?$",
    re.IGNORECASE,
)
_KINDS = {
    "microsoft.compute/virtualmachines": ("UpdateVM", "LowCostGet"),
    "microsoft.compute/virtualmachinescalesets": ("VMScaleSetActions", "GetVMScaleSet"),
}
_IDENTITIES = "microsoft.managedidentity/userassignedidentities"
_OPERATIONS = "microsoft.compute/locations"


@dataclass(slots=True)
class _Call:
    """One request, and the headers of its answer."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    if_match: str
    body: bytes
    caller: str
    where: Mapping[str, str | None] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return (self.where["kind"] or "").lower()

    @property
    def api_version(self) -> str:
        return self.query["api-version"][0]

    @property
    def has_etags(self) -> bool:
        return self.api_version >= _ETAGS_SINCE


class Arm:
    """ASGI application over *azure*; *base* is its own https address, *limits* counts the requests."""

    def __init__(self, azure: Azure, issuer: TokenIssuer, base: str, limits: Limits) -> None:
        self.azure = azure
        self.base = base
        self._issuer = issuer
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = _common_headers(scope)
        try:
            call = _Call(
                scope["method"],
                scope["path"],
                parse_qs(scope["query_string"].decode()),
                header(scope, "if-match"),
                await read_body(receive),
                self._caller(header(scope, "authorization")),
                headers=headers,
            )
            status, body = self._route(call)
        except ArmError as refused:
            status, body = refused.status, refused.body
            headers |= refused.headers
        # CRLF and two blanks of indentation are the real one's.
        text = json.dumps(body, indent=2).replace("\n", "\r\n").encode() if body is not None else b""
        await answer(send, status, text, headers, "application/json; charset=utf-8")

    def _caller(self, authorization: str) -> str:
        kind, _, text = authorization.partition(" ")
        if kind.lower() != "bearer" or not text:
            told = "Authentication failed. The 'Authorization' header is missing."
            raise _unauthorized("AuthenticationFailed", told)
        try:
            claims = self._issuer.verify(text)
        except jwt.ExpiredSignatureError:
            told = "The access token expiry UTC time is earlier than current UTC time."
            raise _unauthorized("ExpiredAuthenticationToken", told) from None
        except jwt.InvalidTokenError:
            raise _unauthorized("InvalidAuthenticationToken", "The access token is invalid.") from None
        allowed = (*AUDIENCES, self.base)
        if claims["aud"].rstrip("/") not in [entry.rstrip("/") for entry in allowed]:
            listed = ",".join(f"'{entry}'" for entry in AUDIENCES)
            told = (
                f"The access token has been obtained from wrong audience or resource '{claims['aud']}'. It should "
                f"exactly match (including forward slash) with one of the allowed audiences {listed}."
            )
            raise _unauthorized("InvalidAuthenticationTokenAudience", told)
        return str(claims["oid"])

    def _route(self, call: _Call) -> tuple[int, Any]:
        found = _PATH.match(call.path)
        if "api-version" not in call.query:
            told = "The api-version query parameter (?api-version=) is required for all requests."
            raise ArmError(400, "MissingApiVersionParameter", told)
        if found is None:
            raise ArmError(404, "InvalidResourceType", "The resource type could not be found.")
        call.where = found.groupdict()
        self._count_at_arm(call)
        if call.kind == _OPERATIONS and (call.where["child"] or "").lower() == "operations":
            return self._operation(call)
        if call.kind == _IDENTITIES:
            return self._identity(call)
        if call.kind in _KINDS:
            return self._compute(call)
        raise ArmError(404, "InvalidResourceType", f"The resource type '{call.kind}' could not be found.")

    def _compute(self, call: _Call) -> tuple[int, Any]:
        if call.where["name"] is None:
            hosts = [host for key, host in self.azure.hosts.items() if _is_below(call, key)]
            return 200, {"value": [host_body(self.azure, host, call.has_etags) for host in hosts]}
        host = self._host(call)
        if call.where["child"]:
            return self._instances(call, host)
        updates, reads = _KINDS[call.kind]
        if call.method == "GET":
            self._count(call, reads, host.resource_id)
            return 200, self._shown(call, host)
        if call.method != "PATCH":
            raise _not_allowed(call)
        self._count(call, updates, host.resource_id)
        if call.has_etags and call.if_match not in ("", "*", f'"{host.etag}"'):
            told = f'Etag provided in if-match header {call.if_match} does not match etag "{host.etag}" of resource.'
            raise ArmError(412, "PreconditionFailed", told)
        operation = self.azure.change(host, _json(call.body), call.caller)
        call.headers["azure-asyncoperation"] = self._operation_url(call, host, operation)
        call.headers["azure-asyncnotification"] = "Enabled"
        return 200, self._shown(call, host)

    def _shown(self, call: _Call, host: Host) -> dict[str, Any]:
        if call.has_etags:
            call.headers["etag"] = f'"{host.etag}"'
        return host_body(self.azure, host, call.has_etags)

    def _instances(self, call: _Call, host: Host) -> tuple[int, Any]:
        if call.method != "GET" or call.where["child"] != "virtualMachines":
            raise _not_allowed(call)
        if number := call.where["number"]:
            return 200, instance_body(host, number, call.has_etags)
        return 200, {"value": [instance_body(host, entry, call.has_etags) for entry in host.instances]}

    def _identity(self, call: _Call) -> tuple[int, Any]:
        held = self.azure.identities
        if call.where["name"] is None:
            return 200, {"value": [identity_body(entry) for key, entry in held.items() if _is_below(call, key)]}
        key = call.path.lower()
        known = key in held
        if call.method == "PUT":
            body = _json(call.body)
            if not isinstance(body.get("location"), str):
                raise ArmError(400, "LocationRequired", "The location property is required for this definition.")
            made = self.azure.add_identity(call.path, body["location"], body.get("tags"))
            return 200 if known else 201, identity_body(made)
        if call.method == "DELETE":
            held.pop(key, None)
            return (200, None) if known else (204, None)
        if call.method != "GET":
            raise _not_allowed(call)
        if not known:
            raise self._not_found(call)
        return 200, identity_body(held[key])

    def _host(self, call: _Call) -> Host:
        where = call.where
        start = f"/subscriptions/{where['subscription']}/resourceGroups/{where['group']}/providers/"
        host = self.azure.hosts.get(f"{start}{where['kind']}/{where['name']}".lower())
        if host is None:
            raise self._not_found(call)
        return host

    def _not_found(self, call: _Call) -> ArmError:
        where = call.where
        resources = [*self.azure.hosts, *self.azure.identities]
        subscription = f"/subscriptions/{where['subscription']}/".lower()
        if not any(key.startswith(subscription) for key in resources):
            told = f"The subscription '{where['subscription']}' could not be found."
            return ArmError(404, "SubscriptionNotFound", told, {"x-ms-failure-cause": "gateway"})
        if not any(key.startswith(f"{subscription}resourcegroups/{where['group']}/".lower()) for key in resources):
            told = f"Resource group '{where['group']}' could not be found."
            return ArmError(404, "ResourceGroupNotFound", told, {"x-ms-failure-cause": "gateway"})
        told = (
            f"The Resource '{where['kind']}/{where['name']}' under resource group '{where['group']}' was not found. "
            "For more details please go to https://aka.ms/ARMResourceNotFoundFix"
        )
        return ArmError(404, "ResourceNotFound", told, {"x-ms-failure-cause": "gateway"})

    def _operation(self, call: _Call) -> tuple[int, Any]:
        found = [entry for entry in self.azure.operations if entry.name == call.where["number"]]
        signed = call.query.get("c", [""])[0]
        if not found or signed != found[0].secret:
            raise ArmError(404, "OperationNotFound", "The operation was not found, or its URL was changed.")
        operation = found[0]
        self._count(call, "GetOperation", operation.host_id)
        operation.polls += 1
        if operation.ended_at is not None and operation.reported_at is None:
            operation.reported_at = self._limits.now()
        return 200, operation_body(operation)

    def _operation_url(self, call: _Call, host: Host, operation: Operation) -> str:
        subscription = call.where["subscription"]
        place = f"/subscriptions/{subscription}/providers/Microsoft.Compute/locations/{host.location}/operations"
        signature = uuid.uuid4().hex
        query = (
            f"p={uuid.uuid4()}&api-version={call.api_version}&t={time.time_ns() // 100}"
            f"&c={quote(operation.secret, safe='')}&s={signature}&h={uuid.uuid4().hex}"
        )
        return f"{self.base}{place}/{operation.name}?{query}"

    def _count_at_arm(self, call: _Call) -> None:
        subscription = call.where["subscription"] or ""
        reads = call.method == "GET"
        count_at_arm(self._limits, call.headers, reads=reads, subscription=subscription, caller=call.caller)

    def _count(self, call: _Call, group: str, host_id: str) -> None:
        subscription = call.where["subscription"] or ""
        count_at_compute(self._limits, call.headers, group, subscription=subscription, host_id=host_id)


def _is_below(call: _Call, key: str) -> bool:
    where = call.where
    group = f"/resourcegroups/{where['group']}/" if where["group"] else "/"
    start = f"/subscriptions/{where['subscription']}{group}".lower()
    return key.startswith(start) and f"/providers/{call.kind}/" in key


def _json(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except ValueError:
        raise invalid_request("Unexpected character encountered while parsing value.") from None
    if not isinstance(body, dict):
        raise invalid_request("Error converting value to an object.")
    return body


def _unauthorized(code: str, message: str) -> ArmError:
    return ArmError(
        401, code, message, {"www-authenticate": f'Bearer error="invalid_token", error_description="{code}"'}
    )


def _not_allowed(call: _Call) -> ArmError:
    told = f"The http method '{call.method}' is not supported for this resource in the sandbox."
    return ArmError(405, "HttpMethodNotSupported", told)


def _common_headers(scope: Scope) -> dict[str, str]:
    request = str(uuid.uuid4())
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    headers = {
        "cache-control": "no-cache",
        "x-ms-request-id": request,
        "x-ms-correlation-request-id": request,
        "x-ms-routing-request-id": f"WESTEUROPE:{stamp}:{request}",
    }
    if header(scope, "x-ms-return-client-request-id") == "true":
        headers["x-ms-client-request-id"] = header(scope, "x-ms-client-request-id")
    return headers
