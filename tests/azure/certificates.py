"""Certificates and PKCS#12 files of service principals."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import KeySerializationEncryption, PrivateFormat, pkcs12
from cryptography.x509.oid import NameOID

PASSWORD = "the-password"


def certificate(
    name: str, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, issuer: str = "", signer: Any = None
) -> x509.Certificate:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer or name)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .sign(signer or key, hashes.SHA256())
    )


def pfx(
    key: Any, leaf: x509.Certificate | None, others: Sequence[x509.Certificate] = (), encryption: Any = None
) -> bytes:
    return pkcs12.serialize_key_and_certificates(b"x", key, leaf, others, encryption or modern(PASSWORD))


def modern(password: str, rounds: int = 2048) -> KeySerializationEncryption:
    builder = PrivateFormat.PKCS12.encryption_builder().kdf_rounds(rounds).hmac_hash(hashes.SHA256())
    return builder.key_cert_algorithm(pkcs12.PBES.PBESv2SHA256AndAES256CBC).build(password.encode())


def as_in_the_past(password: str) -> KeySerializationEncryption:
    """What the original could read."""
    builder = PrivateFormat.PKCS12.encryption_builder().kdf_rounds(2048).hmac_hash(hashes.SHA1())  # noqa: S303
    return builder.key_cert_algorithm(pkcs12.PBES.PBESv1SHA1And3KeyTripleDESCBC).build(password.encode())
