"""Reads a PKCS#12 file: a program of its own, for `assertion`, which starts it as a child process.

Whoever wrote the file chose how much work its password takes, up to hours, and the library holds Python's lock for as
long: in NMI's own process one such Secret would stop the tokens of the whole node. A child can be ended.

Standard input is JSON with `data` (base64) and `password`; standard output is JSON with `key` (PEM) and `chain`
(certificates in base64, the key's own first), or with `problem`, a sentence in which nothing of the input is.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterable, Sequence

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, pkcs12

LARGEST_KEY_BITS = 8192
"""A larger key would take NMI a noticeable time for every signature."""


class UnusableError(Exception):
    """The file cannot be used; the text says why."""


def read(data: bytes, password: bytes) -> tuple[RSAPrivateKey, Sequence[x509.Certificate]]:
    """Return the private key, and its certificate followed by those that vouch for it, each for the one before.

    Raises:
        UnusableError: with the reason.
    """
    try:
        key, certificate, others = pkcs12.load_key_and_certificates(data, password or None)
    except UnsupportedAlgorithm:
        raise UnusableError("uses an algorithm that is not supported") from None
    except ValueError:
        raise UnusableError("is no PKCS#12 file, or the password is wrong") from None
    if key is None or certificate is None:
        raise UnusableError("holds no certificate together with its private key")
    if not isinstance(key, RSAPrivateKey):
        raise UnusableError("holds a key that is not RSA, and Entra ID takes RSA keys alone")
    if key.key_size > LARGEST_KEY_BITS:
        raise UnusableError(f"holds an RSA key of {key.key_size} bits; at most {LARGEST_KEY_BITS} are supported")
    return key, _chain(certificate, others)


def _chain(leaf: x509.Certificate, others: Iterable[x509.Certificate]) -> Sequence[x509.Certificate]:
    """Put the certificates in the order that `x5c` demands, whatever the file's; leave out those of other chains."""
    chain = [leaf]
    left = list(others)
    while (above := next((one for one in left if one.subject == chain[-1].issuer), None)) is not None:
        left.remove(above)
        chain.append(above)
    return chain


def answer(question: str) -> str:
    """Return the program's output for its input."""
    asked = json.loads(question)
    try:
        key, chain = read(base64.b64decode(asked["data"]), asked["password"].encode())
    except UnusableError as error:
        return json.dumps({"problem": str(error)})
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    encoded = [base64.b64encode(one.public_bytes(Encoding.DER)).decode() for one in chain]
    return json.dumps({"key": pem, "chain": encoded})


if __name__ == "__main__":
    sys.stdout.write(answer(sys.stdin.read()))
