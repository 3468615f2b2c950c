"""Client assertions: how an application proves to Entra ID that it has the key of a certificate.

An application is known by certificates of its own, whose thumbprint the assertion names, or by issuers: then the
assertion carries its certificate and those in between (`x5c`, the application's own first).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import jwt
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from apps.sandbox.entra_errors import Refused

JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

_ALGORITHMS = ["PS256", "RS256"]
_UNCHECKED: Any = {f"verify_{claim}": False for claim in ("aud", "exp", "iat", "iss", "jti", "nbf", "sub")}


@dataclass(frozen=True, slots=True)
class Trusted:
    """What Entra knows an application by."""

    certificates: tuple[x509.Certificate, ...] = ()
    issuers: tuple[x509.Certificate, ...] = ()


def check_assertion(text: str, client_id: str, audiences: Collection[str], trusted: Trusted, now_s: float) -> None:
    """Check that *text* proves, at wall time *now_s*, the application *client_id* to one of *audiences*.

    Raises:
        Refused: with the code that Entra has for it.
    """
    certificate = _certificate(_header(text), client_id, trusted)
    if not certificate.not_valid_before_utc.timestamp() <= now_s <= certificate.not_valid_after_utc.timestamp():
        raise _invalid(1000502, "The provided certificate is not within its specified validity window.")
    key = certificate.public_key()
    if not isinstance(key, RSAPublicKey):
        raise _malformed()
    try:
        claims = jwt.decode(text, key, algorithms=_ALGORITHMS, options=_UNCHECKED)
    except jwt.InvalidSignatureError:
        why = "The provided signature value did not match the expected signature value."
        reason = _reason(why, _digest(certificate, "sha1").hex().upper())
        told = f"Client assertion contains an invalid signature. {reason}"
        raise _invalid(700027, told) from None
    except jwt.InvalidTokenError:
        raise _malformed() from None
    _check_claims(claims, client_id, audiences, now_s)


def _header(text: str) -> dict[str, Any]:
    try:
        return jwt.get_unverified_header(text)
    except jwt.InvalidTokenError:
        raise _malformed() from None


def _certificate(header: dict[str, Any], client_id: str, trusted: Trusted) -> x509.Certificate:
    named = {header[name].rstrip("=") for name in ("x5t", "x5t#S256") if isinstance(header.get(name), str)}
    if not named:
        raise _invalid(50027, "JWT token is invalid or malformed. No certificate thumbprint specified in token header.")
    for certificate in trusted.certificates:
        if _is_named(certificate, named):
            return certificate
    chain = _chain(header)
    if chain and _is_named(chain[0], named) and _is_vouched_for(chain, trusted.issuers):
        return chain[0]
    told = (
        "The certificate with identifier used to sign the client assertion is not registered on application. "
        f"{_reason('The key was not found.', _hex(min(named)))} App Id '{client_id}'."
    )
    raise _invalid(700027, told)


def _is_named(certificate: x509.Certificate, thumbprints: Collection[str]) -> bool:
    return any(_encoded(_digest(certificate, algorithm)) in thumbprints for algorithm in ("sha1", "sha256"))


def _hex(thumbprint: str) -> str:
    try:
        return base64.b64decode(thumbprint + "=" * (-len(thumbprint) % 4), b"-_", validate=True).hex().upper()
    except binascii.Error:
        raise _malformed() from None


def _chain(header: dict[str, Any]) -> Sequence[x509.Certificate]:
    try:
        return [x509.load_der_x509_certificate(base64.b64decode(one)) for one in header.get("x5c") or ()]
    except (binascii.Error, ValueError, TypeError):
        raise _malformed() from None


def _is_vouched_for(chain: Sequence[x509.Certificate], issuers: Collection[x509.Certificate]) -> bool:
    return all(_has_issued(above, one) for one, above in pairwise(chain)) and any(
        chain[-1] == issuer or _has_issued(issuer, chain[-1]) for issuer in issuers
    )


def _has_issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _check_claims(claims: dict[str, Any], client_id: str, audiences: Collection[str], now_s: float) -> None:
    if str(claims.get("aud")).partition("?")[0] not in audiences:
        raise _invalid(700023, "Client assertion audience claim does not match Realm issuer.")
    if claims.get("iss") != client_id or claims.get("sub") != client_id:
        told = "Client assertion application identifier doesn't match 'client_id' parameter."
        raise _invalid(700021, told)
    begin_s, end_s = claims.get("nbf", 0), claims.get("exp", 0)
    if not isinstance(begin_s, int | float) or not isinstance(end_s, int | float):
        raise _malformed()
    if not begin_s <= now_s < end_s:
        told = (
            f"Client assertion is not within its valid time range. Current time: {_iso(now_s)}, assertion valid from "
            f"{_iso(begin_s)}, expiry time of assertion {_iso(end_s)}."
        )
        raise _invalid(700024, told)


def _invalid(code: int, text: str) -> Refused:
    return Refused(401, "invalid_client", code, text)


def _malformed() -> Refused:
    return _invalid(50027, "JWT token is invalid or malformed.")


def _reason(why: str, thumbprint: str) -> str:
    return f"[Reason - {why}, Thumbprint of key used by client: '{thumbprint}']"


def _digest(certificate: x509.Certificate, algorithm: str) -> bytes:
    return hashlib.new(algorithm, certificate.public_bytes(Encoding.DER), usedforsecurity=False).digest()


def _encoded(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f0Z")
