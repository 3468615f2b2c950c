"""Access tokens of the sandbox: JWTs really signed (RS256) with a key of its own."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a token is for: a managed identity (with its resource id) or an application."""

    tenant_id: str
    client_id: str
    object_id: str
    resource_id: str = ""


@dataclass(frozen=True, slots=True)
class Token:
    """An issued token with its times in whole seconds of *now*'s clock."""

    text: str = field(repr=False)
    not_before: int
    expires_on: int


class TokenIssuer:
    """Signs tokens and verifies its own, with a key made when first needed. *now* is wall time in seconds."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self.now = now
        self.key_id = uuid.uuid4().hex

    @cached_property
    def _key(self) -> rsa.RSAPrivateKey:
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def issue(
        self, principal: Principal, audience: str, lifetime_s: int, version: str = "1.0", early_s: int = 0
    ) -> Token:
        """Return a signed token that is valid from *early_s* ago until *lifetime_s* ahead."""
        now = int(self.now())
        tenant = principal.tenant_id
        claims: dict[str, Any] = {
            "aud": audience,
            "iss": f"https://sts.windows.net/{tenant}/",
            "iat": now - early_s,
            "nbf": now - early_s,
            "exp": now + lifetime_s,
            "appid": principal.client_id,
            "idtyp": "app",
            "oid": principal.object_id,
            "sub": principal.object_id,
            "tid": tenant,
            "uti": uuid.uuid4().hex[:22],
            "ver": version,
        }
        if principal.resource_id:
            claims["xms_mirid"] = principal.resource_id
        text = jwt.encode(claims, self._key, algorithm="RS256", headers={"kid": self.key_id, "x5t": self.key_id})
        return Token(text, claims["nbf"], claims["exp"])

    def verify(self, text: str) -> dict[str, Any]:
        """Return a token's claims, its audience unchecked. Raises jwt.InvalidTokenError."""
        options: Any = {"verify_aud": False, "verify_exp": False, "verify_iat": False, "verify_nbf": False}
        claims: dict[str, Any] = jwt.decode(text, self._key.public_key(), algorithms=["RS256"], options=options)
        if claims["exp"] <= self.now():
            raise jwt.ExpiredSignatureError("the token has expired")
        return claims

    def key_set(self) -> dict[str, Any]:
        """Return the public key as a JWK set."""
        key: dict[str, Any] = json.loads(RSAAlgorithm.to_jwk(self._key.public_key()))
        return {"keys": [{**key, "use": "sig", "kid": self.key_id, "x5t": self.key_id, "alg": "RS256"}]}
