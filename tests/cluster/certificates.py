"""The cluster's certificates: one authority, the API server's certificate, the administrator's, a key for tokens."""

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALIDITY = datetime.timedelta(days=1)

CERTIFICATE_SIGNING = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True, slots=True)
class Pair:
    """Files of a certificate and its private key, both PEM."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Certificates:
    """All that the control plane needs. The authority signs servers and clients alike."""

    authority: Path
    server: Pair
    admin: Pair
    token_key: Path


def create_certificates(folder: Path, addresses: list[str], names: list[str]) -> Certificates:
    """Write a new set into *folder*; the server's certificate is for *addresses* and *names*."""
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority_name = _subject("cluster-tests")
    authority = (
        _builder(authority_name, authority_name, authority_key, authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(CERTIFICATE_SIGNING, critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    alternatives: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address(a)) for a in addresses]
    alternatives += [x509.DNSName(name) for name in names]

    def issue(file: str, subject: x509.Name, *extensions: x509.ExtensionType) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(subject, authority_name, key, authority_key)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        certificate = builder.sign(authority_key, hashes.SHA256())
        return Pair(_write_certificate(folder / f"{file}.crt", certificate), _write_key(folder / f"{file}.key", key))

    return Certificates(
        authority=_write_certificate(folder / "authority.crt", authority),
        server=issue(
            "apiserver",
            _subject("kube-apiserver"),
            x509.SubjectAlternativeName(alternatives),
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        ),
        admin=issue(
            "admin",
            _subject("admin", group="system:masters"),
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),
        ),
        token_key=_write_key(folder / "tokens.key", ec.generate_private_key(ec.SECP256R1())),
    )


def _subject(name: str, group: str | None = None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    if group is not None:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
    return x509.Name(attributes)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + VALIDITY)
        # Python 3.13 and later refuse a chain without these two.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )


def _write_certificate(file: Path, certificate: x509.Certificate) -> Path:
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return file


def _write_key(file: Path, key: ec.EllipticCurvePrivateKey) -> Path:
    file.touch(mode=0o600)
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,  # kube-apiserver reads token keys in this form
            serialization.NoEncryption(),
        )
    )
    return file
