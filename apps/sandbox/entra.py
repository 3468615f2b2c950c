"""Entra ID's token endpoints (v1 and v2) for applications with a client secret, and its discovery documents."""

from __future__ import annotations

import base64
import binascii
import hmac
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

from apps.sandbox.serving import Receive, Scope, Send, answer, header, read_body
from apps.sandbox.tokens import Principal, TokenIssuer

_LIFETIME_S = 3599


@dataclass(frozen=True, slots=True)
class Registration:
    """An application in a tenant."""

    principal: Principal
    secret: str = field(repr=False)


class _Refused(Exception):
    """A token request that Entra refuses."""

    def __init__(self, status: int, error: str, code: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.error = error
        self.code = code


class Entra:
    """ASGI application; *base* is its own https address. Unknown tenants are refused, see *register*."""

    def __init__(self, issuer: TokenIssuer, base: str, lifetime_s: int = _LIFETIME_S) -> None:
        self.issuer = issuer
        self.base = base
        self.lifetime_s = lifetime_s
        self._tenants: dict[str, dict[str, Registration]] = {}

    def add_tenant(self, tenant_id: str) -> None:
        """Know a tenant, also without applications."""
        self._tenants.setdefault(tenant_id.lower(), {})

    def register(self, tenant_id: str, client_id: str, secret: str) -> Principal:
        """Create an application (or change its secret) and, if need be, its tenant."""
        self.add_tenant(tenant_id)
        held = self._tenants[tenant_id.lower()].get(client_id.lower())
        object_id = held.principal.object_id if held else str(uuid.uuid4())
        principal = Principal(tenant_id, client_id, object_id)
        self._tenants[tenant_id.lower()][client_id.lower()] = Registration(principal, secret)
        return principal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            match (scope["method"], *scope["path"].strip("/").split("/")):
                case ("POST", tenant, "oauth2", "token"):
                    form = _form(scope, await read_body(receive))
                    body = self._token_v1(tenant, form)
                case ("POST", tenant, "oauth2", "v2.0", "token"):
                    form = _form(scope, await read_body(receive))
                    body = self._token_v2(tenant, form)
                case ("GET", *rest):
                    body = self._document(rest)
                case _:
                    raise _Refused(404, "invalid_request", 90014, "The path is not known.")
        except _Refused as refused:
            await answer(send, refused.status, _error_body(refused), _headers())
            return
        await answer(send, 200, body, _headers())

    def _token_v1(self, tenant: str, form: Mapping[str, str]) -> dict[str, Any]:
        principal = self._authenticate(tenant, form)
        resource = _needed(form, "resource")
        token = self.issuer.issue(principal, resource, self.lifetime_s)
        seconds = str(self.lifetime_s)
        return {
            "token_type": "Bearer",
            "expires_in": seconds,
            "ext_expires_in": seconds,
            "expires_on": str(token.expires_on),
            "not_before": str(token.not_before),
            "resource": resource,
            "access_token": token.text,
        }

    def _token_v2(self, tenant: str, form: Mapping[str, str]) -> dict[str, Any]:
        principal = self._authenticate(tenant, form)
        if "resource" in form:
            told = "The 'resource' request parameter is not supported."
            raise _Refused(400, "invalid_request", 901002, told)
        scope = _needed(form, "scope")
        if not scope.endswith("/.default") or " " in scope:
            told = f"The provided value for the input parameter 'scope' is not valid. The scope {scope} is not valid."
            raise _Refused(400, "invalid_scope", 70011, told)
        token = self.issuer.issue(principal, scope.removesuffix("/.default"), self.lifetime_s)
        numbers = {"expires_in": self.lifetime_s, "ext_expires_in": self.lifetime_s}
        return {"token_type": "Bearer", **numbers, "access_token": token.text}

    def _authenticate(self, tenant: str, form: Mapping[str, str]) -> Principal:
        applications = self._applications(tenant)
        if _needed(form, "grant_type") != "client_credentials":
            raise _Refused(400, "unsupported_grant_type", 70003, "The app requested an unsupported grant type.")
        client_id = _needed(form, "client_id")
        held = applications.get(client_id.lower())
        if held is None:
            told = f"Application with identifier '{client_id}' was not found in the directory '{tenant}'."
            raise _Refused(400, "unauthorized_client", 700016, told)
        if "client_secret" not in form:
            told = "The request body must contain the following parameter: 'client_assertion' or 'client_secret'."
            raise _Refused(401, "invalid_client", 7000218, told)
        if not hmac.compare_digest(form["client_secret"].encode(), held.secret.encode()):
            told = (
                "Invalid client secret provided. Ensure the secret being sent in the request is the client secret "
                f"value, not the client secret ID, for a secret added to app '{client_id}'."
            )
            raise _Refused(401, "invalid_client", 7000215, told)
        return held.principal

    def _applications(self, tenant: str) -> Mapping[str, Registration]:
        applications = self._tenants.get(tenant.lower())
        if applications is None:
            told = f"Tenant '{tenant}' not found. Check to make sure you have the correct tenant ID."
            raise _Refused(400, "invalid_request", 90002, told)
        return applications

    def _document(self, parts: list[str]) -> dict[str, Any]:
        match parts:
            case ["common", "discovery", "instance"]:
                configuration = f"{self.base}/common/v2.0/.well-known/openid-configuration"
                return {"tenant_discovery_endpoint": configuration, "api-version": "1.1", "metadata": []}
            case [tenant, *version, ".well-known", "openid-configuration"] if version in ([], ["v2.0"]):
                if tenant not in ("common", "organizations"):
                    self._applications(tenant)
                return _configuration(self.base, tenant, "/".join(version))
            case [_, "discovery", *version, "keys"] if version in ([], ["v2.0"]):
                return self.issuer.key_set()
        raise _Refused(404, "invalid_request", 90014, "The path is not known.")


def _configuration(base: str, tenant: str, version: str) -> dict[str, Any]:
    middle = f"oauth2/{version}" if version else "oauth2"
    keys = f"discovery/{version}/keys" if version else "discovery/keys"
    return {
        "token_endpoint": f"{base}/{tenant}/{middle}/token",
        "token_endpoint_auth_methods_supported": ["client_secret_post", "client_secret_basic"],
        "jwks_uri": f"{base}/{tenant}/{keys}",
        "issuer": f"https://sts.windows.net/{tenant}/",
        "authorization_endpoint": f"{base}/{tenant}/{middle}/authorize",
        "response_types_supported": ["code", "id_token", "token"],
        "subject_types_supported": ["pairwise"],
        "id_token_signing_alg_values_supported": ["RS256"],
    }


def _form(scope: Scope, body: bytes) -> dict[str, str]:
    form = dict(parse_qsl(body.decode(), keep_blank_values=True))
    kind, _, encoded = header(scope, "authorization").partition(" ")
    if kind.lower() == "basic":
        try:
            name, _, secret = base64.b64decode(encoded).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            told = "The request is not properly formatted."
            raise _Refused(400, "invalid_request", 900144, told) from None
        form |= {"client_id": unquote(name), "client_secret": unquote(secret)}
    return form


def _needed(form: Mapping[str, str], name: str) -> str:
    if not form.get(name):
        told = f"The request body must contain the following parameter: '{name}'."
        raise _Refused(400, "invalid_request", 900144, told)
    return form[name]


def _error_body(refused: _Refused) -> dict[str, Any]:
    trace, correlation = str(uuid.uuid4()), str(uuid.uuid4())
    stamp = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime())
    told = f"AADSTS{refused.code}: {refused} Trace ID: {trace} Correlation ID: {correlation} Timestamp: {stamp}"
    return {
        "error": refused.error,
        "error_description": told,
        "error_codes": [refused.code],
        "timestamp": stamp,
        "trace_id": trace,
        "correlation_id": correlation,
        "error_uri": f"https://login.microsoftonline.com/error?code={refused.code}",
    }


def _headers() -> dict[str, str]:
    return {"cache-control": "no-store, no-cache", "x-ms-request-id": str(uuid.uuid4())}
