"""Entra ID's token endpoints (v1 and v2) for applications, and its discovery documents."""

from __future__ import annotations

import base64
import binascii
import hmac
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

from apps.sandbox.assertions import JWT_BEARER, Trusted, check_assertion
from apps.sandbox.entra_errors import Refused, error_body
from apps.sandbox.serving import Receive, Scope, Send, answer, header, read_body
from apps.sandbox.tokens import Principal, TokenIssuer

_LIFETIME_S = 3599
_NOTHING = Trusted()


@dataclass(frozen=True, slots=True)
class Registration:
    """An application in a tenant; without *secret* it has none."""

    principal: Principal
    secret: str = field(repr=False)
    trusted: Trusted


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

    def register(self, tenant_id: str, client_id: str, secret: str = "", *, trusted: Trusted = _NOTHING) -> Principal:
        """Create an application (or change how it proves itself) and, if need be, its tenant."""
        self.add_tenant(tenant_id)
        held = self._tenants[tenant_id.lower()].get(client_id.lower())
        principal = held.principal if held else Principal(tenant_id, client_id, str(uuid.uuid4()))
        self._tenants[tenant_id.lower()][client_id.lower()] = Registration(principal, secret, trusted)
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
                    raise Refused(404, "invalid_request", 90014, "The path is not known.")
        except Refused as refused:
            await answer(send, refused.status, error_body(refused), _headers())
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
            raise Refused(400, "invalid_request", 901002, told)
        scope = _needed(form, "scope")
        if not scope.endswith("/.default") or " " in scope:
            told = f"The provided value for the input parameter 'scope' is not valid. The scope {scope} is not valid."
            raise Refused(400, "invalid_scope", 70011, told)
        token = self.issuer.issue(principal, scope.removesuffix("/.default"), self.lifetime_s)
        numbers = {"expires_in": self.lifetime_s, "ext_expires_in": self.lifetime_s}
        return {"token_type": "Bearer", **numbers, "access_token": token.text}

    def _authenticate(self, tenant: str, form: Mapping[str, str]) -> Principal:
        applications = self._applications(tenant)
        if _needed(form, "grant_type") != "client_credentials":
            raise Refused(400, "unsupported_grant_type", 70003, "The app requested an unsupported grant type.")
        client_id = _needed(form, "client_id")
        held = applications.get(client_id.lower())
        if held is None:
            told = f"Application with identifier '{client_id}' was not found in the directory '{tenant}'."
            raise Refused(400, "unauthorized_client", 700016, told)
        if form.get("client_assertion_type") == JWT_BEARER and "client_assertion" in form:
            endpoints = {f"{self.base}/{tenant}/oauth2/{below}" for below in ("token", "v2.0/token")}
            check_assertion(form["client_assertion"], client_id, endpoints, held.trusted, self.issuer.now())
        else:
            _check_secret(form, held)
        return held.principal

    def _applications(self, tenant: str) -> Mapping[str, Registration]:
        applications = self._tenants.get(tenant.lower())
        if applications is None:
            told = f"Tenant '{tenant}' not found. Check to make sure you have the correct tenant ID."
            raise Refused(400, "invalid_request", 90002, told)
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
        raise Refused(404, "invalid_request", 90014, "The path is not known.")


def _configuration(base: str, tenant: str, version: str) -> dict[str, Any]:
    middle = f"oauth2/{version}" if version else "oauth2"
    keys = f"discovery/{version}/keys" if version else "discovery/keys"
    return {
        "token_endpoint": f"{base}/{tenant}/{middle}/token",
        "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt", "client_secret_basic"],
        "jwks_uri": f"{base}/{tenant}/{keys}",
        "issuer": f"https://sts.windows.net/{tenant}/",
        "authorization_endpoint": f"{base}/{tenant}/{middle}/authorize",
        "response_types_supported": ["code", "id_token", "token"],
        "subject_types_supported": ["pairwise"],
        "id_token_signing_alg_values_supported": ["RS256"],
    }


def _check_secret(form: Mapping[str, str], held: Registration) -> None:
    if "client_secret" not in form:
        told = "The request body must contain the following parameter: 'client_assertion' or 'client_secret'."
        raise Refused(401, "invalid_client", 7000218, told)
    if not held.secret or not hmac.compare_digest(form["client_secret"].encode(), held.secret.encode()):
        told = (
            "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, "
            f"not the client secret ID, for a secret added to app '{held.principal.client_id}'."
        )
        raise Refused(401, "invalid_client", 7000215, told)


def _form(scope: Scope, body: bytes) -> dict[str, str]:
    form = dict(parse_qsl(body.decode(), keep_blank_values=True))
    kind, _, encoded = header(scope, "authorization").partition(" ")
    if kind.lower() == "basic":
        try:
            name, _, secret = base64.b64decode(encoded).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            told = "The request is not properly formatted."
            raise Refused(400, "invalid_request", 900144, told) from None
        form |= {"client_id": unquote(name), "client_secret": unquote(secret)}
    return form


def _needed(form: Mapping[str, str], name: str) -> str:
    if not form.get(name):
        told = f"The request body must contain the following parameter: '{name}'."
        raise Refused(400, "invalid_request", 900144, told)
    return form[name]


def _headers() -> dict[str, str]:
    return {"cache-control": "no-store, no-cache", "x-ms-request-id": str(uuid.uuid4())}
