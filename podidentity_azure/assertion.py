"""Certificates of service principals: a signed statement takes the place of a secret.

Source: aad-pod-identity pkg/auth/auth.go:163, go-autorest autorest/adal/token.go:246. Unlike there, a statement is
good for minutes, not for a day, and all certificates of a chain are in it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from podidentity_azure import pkcs12
from podidentity_core.errors import TransientError

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
LIFETIME_S = 600
"""How long a statement is good: what Entra's documentation advises at most."""

READING_LIMIT_S = 5.0
"""How long the reading of a PKCS#12 file may take. Usual ones take a tenth of a second."""


class CertificateError(Exception):
    """The certificate cannot be used; the text says why, and holds nothing of it."""


@dataclass(frozen=True, slots=True, repr=False)
class Certificate:
    """A certificate (*chain*: in base64, its own first) with its private key. Neither is ever shown."""

    key: RSAPrivateKey
    chain: Sequence[str]

    def proof(self, client_id: str, audience: str, now_s: float) -> Mapping[str, str]:
        """Return the form's fields that prove the application *client_id* to the token endpoint *audience*."""
        thumbprint = hashlib.sha1(base64.b64decode(self.chain[0]), usedforsecurity=False).digest()
        header = {"alg": "RS256", "typ": "JWT", "x5t": _base64url(thumbprint), "x5c": self.chain}
        now = int(now_s)
        claims = {
            "aud": audience,
            "iss": client_id,
            "sub": client_id,
            "jti": uuid.uuid4().hex,
            "nbf": now,
            "iat": now,
            "exp": now + LIFETIME_S,
        }
        signed = f"{_part(header)}.{_part(claims)}"
        signature = self.key.sign(signed.encode(), PKCS1v15(), hashes.SHA256())
        return {"client_assertion": f"{signed}.{_base64url(signature)}", "client_assertion_type": ASSERTION_TYPE}


async def load_certificate(data: bytes, password: str) -> Certificate:
    """Read a PKCS#12 file, in a child process: see `pkcs12`.

    Raises:
        CertificateError: it cannot be used.
        TransientError: the system starts no child process.
    """
    question = json.dumps({"data": base64.b64encode(data).decode(), "password": password})
    try:
        told = await asyncio.to_thread(_ask_child, question)
    except OSError as error:
        raise TransientError(f"the reader of PKCS#12 files cannot be started: {error.strerror}") from error
    if problem := told.get("problem"):
        raise CertificateError(problem)
    key = load_pem_private_key(told["key"].encode(), None)
    assert isinstance(key, RSAPrivateKey)  # noqa: S101  -- the child has looked
    return Certificate(key, told["chain"])


def _ask_child(question: str) -> dict[str, Any]:
    # -I: nothing of the environment or of the working directory becomes part of the program.
    command = [sys.executable, "-I", pkcs12.__file__]
    try:
        done = subprocess.run(command, input=question, capture_output=True, text=True, timeout=READING_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise CertificateError(
            f"takes more than {READING_LIMIT_S:.0f} s to read; make it anew with fewer rounds"
        ) from None
    if done.returncode != 0:
        raise CertificateError("makes its reader fail")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def _part(content: Mapping[str, object]) -> str:
    return _base64url(json.dumps(content, separators=(",", ":")).encode())


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
