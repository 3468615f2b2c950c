"""Which credential a Secret holds, what is wrong with others, and when it is read again."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption

from podidentity_azure import assertion
from podidentity_azure.secret_credentials import (
    CAPACITY,
    KEPT_S,
    LARGEST_VALUE_BYTES,
    ClientSecret,
    Credential,
    SecretCredentials,
)
from podidentity_core.errors import NotFound, PermissionRefused, RefusedError, TransientError
from podidentity_core.model import IdentityKind, Key
from podidentity_core.testing import builders
from podidentity_core.testing.fakes import FakeSecrets
from tests.azure.certificates import PASSWORD, as_in_the_past, certificate, modern, pfx

SECRET = Key("default", "credential")
VALUE = "the-value-of-the-secret"
URL = "https://login.microsoftonline.com/t/oauth2/token"
WEB = replace(builders.identity("web", kind=IdentityKind.SERVICE_PRINCIPAL), secret=SECRET)
SIGNER = replace(WEB, kind=IdentityKind.CERTIFICATE)


@pytest.fixture
def secrets() -> FakeSecrets:
    return FakeSecrets()


@pytest.fixture
def credentials(secrets: FakeSecrets, clock: Any, meter: Any) -> SecretCredentials:
    return SecretCredentials(secrets, clock=clock, meter=meter, allow_foreign=False)


def value_of(credential: Credential) -> str:
    assert isinstance(credential, ClientSecret)
    return credential.value


# Client secrets


@pytest.mark.parametrize(
    ("data", "warned"),
    [
        ({"clientSecret": VALUE}, False),
        ({"CLIENTSECRET": VALUE, "another": "x"}, False),
        ({"client_secret": VALUE, "another": "x"}, False),
        ({"Client_Secret": VALUE, "Another": "x"}, False),
        ({"clientSecret": VALUE, "clientsecret": "x", "CLIENT_SECRET": "y"}, False),
        ({"client_secret": VALUE, "clientsecret": "x", "another": "y"}, False),
        ({"anything": VALUE}, False),
        ({"b": "x", "a": VALUE, "c": "y"}, True),
    ],
    ids=lambda param: "-".join(param) if isinstance(param, dict) else "",
)
async def test_the_key_that_counts_does_not_depend_on_luck(
    secrets: FakeSecrets,
    credentials: SecretCredentials,
    caplog: pytest.LogCaptureFixture,
    data: Mapping[str, str],
    warned: bool,
) -> None:
    secrets.put(SECRET, {name: value.encode() for name, value in data.items()})
    caplog.set_level(logging.WARNING)

    assert value_of(await credentials.of(WEB)) == VALUE
    assert bool(caplog.messages) == warned
    assert all("Secret default/credential" in line and "rename the key" in line for line in caplog.messages)
    assert VALUE not in caplog.text


@pytest.mark.parametrize(
    ("stored", "expected"),
    [("x\n", "x"), ("x\r\n", "x"), ("x\n\n", "x"), (" x ", " x "), ("a\nb\n", "a\nb")],
)
async def test_line_ends_at_the_end_do_not_count(
    secrets: FakeSecrets, credentials: SecretCredentials, stored: str, expected: str
) -> None:
    secrets.put(SECRET, {"clientSecret": stored.encode()})

    assert value_of(await credentials.of(WEB)) == expected


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({}, "holds nothing; put the application's client secret into its key 'clientSecret'"),
        ({"clientSecret": b""}, "has nothing in its key 'clientSecret'; put"),
        ({"clientSecret": b"\n", "other": b"x"}, "has nothing in its key 'clientSecret'; put"),
        ({"clientSecret": VALUE.encode() + b"\xff"}, "holds a client secret that is no UTF-8 text; store"),
        ({"x": VALUE.encode() * LARGEST_VALUE_BYTES}, "has more than 65536 bytes in its key 'x', so that is no"),
    ],
    ids=["no keys", "empty", "a line end", "no text", "too large"],
)
async def test_a_secret_without_a_credential_is_refused_with_object_field_and_remedy(
    secrets: FakeSecrets, credentials: SecretCredentials, data: Mapping[str, bytes], complaint: str
) -> None:
    secrets.put(SECRET, data)

    with pytest.raises(RefusedError) as caught:
        await credentials.of(WEB)

    message = str(caught.value)
    assert f"AzureIdentity default/web: the Secret default/credential of spec.clientPassword {complaint}" in message
    assert VALUE not in message
    assert caught.value.__suppress_context__


# Reading


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (None, NotFound, "does not exist; create it, or correct spec.clientPassword"),
        (PermissionRefused("no"), PermissionRefused, "may not be read by NMI; let its ServiceAccount get Secrets"),
        (TransientError("away"), TransientError, "away"),
    ],
    ids=["missing", "forbidden", "API server away"],
)
async def test_a_secret_that_cannot_be_read_is_told_and_counted(
    secrets: FakeSecrets,
    credentials: SecretCredentials,
    meter: Any,
    error: Exception | None,
    kind: type[Exception],
    text: str,
) -> None:
    if error is not None:
        secrets.fail_next(error)

    with pytest.raises(kind, match=text):
        await credentials.of(WEB)

    assert meter.counts == [("kubernetes_api_operations_errors_count", {"operation_type": "get_secret"})]


async def test_an_identity_that_names_no_secret_is_refused(credentials: SecretCredentials) -> None:
    with pytest.raises(
        RefusedError, match=r"AzureIdentity default/web names no Secret; set spec\.clientPassword\.name"
    ):
        await credentials.of(replace(WEB, secret=None))


async def test_without_a_namespace_the_identitys_own_counts(
    secrets: FakeSecrets, credentials: SecretCredentials
) -> None:
    secrets.put(SECRET, {"clientSecret": VALUE.encode()})

    assert value_of(await credentials.of(replace(WEB, secret=Key("", SECRET.name)))) == VALUE


async def test_a_secret_of_another_namespace_is_not_even_read(
    secrets: FakeSecrets, credentials: SecretCredentials
) -> None:
    secrets.put(Key("other", "credential"), {"clientSecret": VALUE.encode()})

    with pytest.raises(RefusedError) as caught:
        await credentials.of(replace(WEB, secret=Key("other", "credential")))

    assert secrets.reads == []
    for part in ("AzureIdentity default/web", "Secret other/credential", "spec.clientPassword.namespace"):
        assert part in str(caught.value)
    assert "--allow-foreign-secrets" in str(caught.value)


async def test_a_kept_secret_of_another_namespace_serves_its_own_identities_only(
    secrets: FakeSecrets, credentials: SecretCredentials
) -> None:
    secrets.put(SECRET, {"clientSecret": VALUE.encode()})
    await credentials.of(WEB)

    with pytest.raises(RefusedError, match="another namespace"):
        await credentials.of(replace(WEB, namespace="other"))


async def test_the_operator_can_allow_secrets_of_other_namespaces(secrets: FakeSecrets, clock: Any, meter: Any) -> None:
    secrets.put(Key("other", "credential"), {"clientSecret": VALUE.encode()})
    credentials = SecretCredentials(secrets, clock=clock, meter=meter, allow_foreign=True)

    assert value_of(await credentials.of(replace(WEB, secret=Key("other", "credential")))) == VALUE


async def test_a_secret_is_kept_for_a_short_time(
    secrets: FakeSecrets, credentials: SecretCredentials, clock: Any
) -> None:
    secrets.put(SECRET, {"clientSecret": b"old"})
    await credentials.of(WEB)
    secrets.put(SECRET, {"clientSecret": b"new"})

    clock.now_s += KEPT_S - 1
    assert value_of(await credentials.of(WEB)) == "old"
    clock.now_s += 1
    assert value_of(await credentials.of(WEB)) == "new"
    assert len(secrets.reads) == 2


async def test_the_newest_is_read_at_once_and_is_the_same_object_if_nothing_has_changed(
    secrets: FakeSecrets, credentials: SecretCredentials
) -> None:
    secrets.put(SECRET, {"clientSecret": b"old"})
    old = await credentials.of(WEB)

    assert await credentials.newest(WEB) is old
    secrets.put(SECRET, {"clientSecret": b"new"})
    assert value_of(await credentials.newest(WEB)) == "new"
    assert value_of(await credentials.of(WEB)) == "new"


async def test_what_was_wrong_is_looked_at_again_at_once(secrets: FakeSecrets, credentials: SecretCredentials) -> None:
    secrets.put(SECRET, {"clientSecret": b""})
    with pytest.raises(RefusedError):
        await credentials.of(WEB)
    secrets.put(SECRET, {"clientSecret": VALUE.encode()})

    assert value_of(await credentials.of(WEB)) == VALUE


async def test_no_more_than_the_last_ones_are_kept(secrets: FakeSecrets, credentials: SecretCredentials) -> None:
    identities = [replace(WEB, secret=Key("default", f"s{number}")) for number in range(CAPACITY + 1)]
    for number, identity in enumerate(identities):
        assert identity.secret is not None
        secrets.put(identity.secret, {"clientSecret": str(number).encode()})
    for identity in identities[:CAPACITY]:
        await credentials.of(identity)
    await credentials.of(identities[0])
    await credentials.of(identities[CAPACITY])
    secrets.reads.clear()

    await credentials.of(identities[0])
    await credentials.of(identities[1])

    assert secrets.reads == [identities[1].secret]


# Certificates


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def assertion_of(credential: Credential, now_s: float) -> str:
    form = credential.proof("the-client-id", URL, now_s)
    assert form.keys() == {"client_assertion", "client_assertion_type"}
    assert form["client_assertion_type"] == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    return form["client_assertion"]


async def test_the_assertion_is_what_entra_documents(
    secrets: FakeSecrets, credentials: SecretCredentials, key: rsa.RSAPrivateKey
) -> None:
    leaf = certificate("web", key)
    secrets.put(SECRET, {"certificate": pfx(key, leaf), "password": f"{PASSWORD}\n".encode()})
    now = int(datetime.now(UTC).timestamp())

    credential = await credentials.of(SIGNER)
    text = assertion_of(credential, now + 0.9)

    der = leaf.public_bytes(Encoding.DER)
    assert jwt.get_unverified_header(text) == {
        "alg": "RS256",
        "typ": "JWT",
        "x5t": base64.urlsafe_b64encode(hashlib.sha1(der).digest()).rstrip(b"=").decode(),  # noqa: S324  # the thumbprint of x5t is SHA-1
        "x5c": [base64.b64encode(der).decode()],
    }
    claims = jwt.decode(text, key.public_key(), algorithms=["RS256"], audience=URL)
    jti = claims.pop("jti")
    assert claims == {
        "aud": URL,
        "iss": "the-client-id",
        "sub": "the-client-id",
        "nbf": now,
        "iat": now,
        "exp": now + 600,
    }
    again = jwt.decode(assertion_of(credential, now), key.public_key(), algorithms=["RS256"], audience=URL)
    assert again["jti"] != jti
    assert "key" not in repr(credential)


@pytest.mark.parametrize(
    ("encryption", "password"),
    [
        (modern(PASSWORD), PASSWORD),
        (modern(PASSWORD, rounds=100_000), PASSWORD),
        (as_in_the_past(PASSWORD), PASSWORD),
        (modern("pässwörd"), "pässwörd"),
        (NoEncryption(), None),
        (NoEncryption(), ""),
    ],
    ids=["modern", "many rounds", "SHA-1 and 3DES", "any text", "no password", "an empty password"],
)
async def test_old_and_modern_files_are_read(
    secrets: FakeSecrets,
    credentials: SecretCredentials,
    key: rsa.RSAPrivateKey,
    encryption: Any,
    password: str | None,
) -> None:
    data = {"certificate": pfx(key, certificate("web", key), encryption=encryption)}
    secrets.put(SECRET, data if password is None else {**data, "password": password.encode()})

    text = assertion_of(await credentials.of(SIGNER), datetime.now(UTC).timestamp())

    assert jwt.decode(text, key.public_key(), algorithms=["RS256"], audience=URL)


async def test_a_chain_goes_along_in_its_order_and_strangers_do_not(
    secrets: FakeSecrets, credentials: SecretCredentials, key: rsa.RSAPrivateKey
) -> None:
    upper, root = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    leaf = certificate("web", key, "upper", upper)
    above, top = certificate("upper", upper, "root", root), certificate("root", root)
    stranger = certificate("stranger", root)
    secrets.put(SECRET, {"certificate": pfx(key, leaf, [top, stranger, above]), "password": PASSWORD.encode()})

    header = jwt.get_unverified_header(assertion_of(await credentials.of(SIGNER), 0.0))

    ordered = [base64.b64encode(one.public_bytes(Encoding.DER)).decode() for one in (leaf, above, top)]
    assert header["x5c"] == ordered


def broken_files(key: rsa.RSAPrivateKey) -> Mapping[str, tuple[Mapping[str, bytes], str]]:
    password = PASSWORD.encode()
    good, leaf = pfx(key, certificate("web", key)), certificate("web", key)
    curve, small = ec.generate_private_key(ec.SECP256R1()), "no PKCS#12 file, or the password is wrong"
    return {
        "no certificate": ({"password": password}, "has nothing in its key 'certificate'; put the PKCS#12 file there"),
        "empty": ({"certificate": b""}, "has nothing in its key 'certificate'"),
        "junk": ({"certificate": VALUE.encode(), "password": password}, small),
        "PEM": ({"certificate": leaf.public_bytes(Encoding.PEM), "password": password}, small),
        "cut off": ({"certificate": good[:-20], "password": password}, small),
        "wrong password": ({"certificate": good, "password": VALUE.encode()}, small),
        "no password": ({"certificate": good}, small),
        "a password in bytes": ({"certificate": good, "password": b"\xff"}, "holds a password that is no UTF-8 text"),
        "no key": (
            {"certificate": pfx(None, leaf), "password": password},
            "holds no certificate together with its private key",
        ),
        "EC key": (
            {"certificate": pfx(curve, certificate("web", curve)), "password": password},
            "holds a key that is not RSA, and Entra ID takes RSA keys alone",
        ),
        "too large": ({"certificate": b"x" * (LARGEST_VALUE_BYTES + 1)}, "has more than 65536 bytes"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "no certificate",
        "empty",
        "junk",
        "PEM",
        "cut off",
        "wrong password",
        "no password",
        "a password in bytes",
        "no key",
        "EC key",
        "too large",
    ],
)
async def test_a_certificate_that_cannot_be_used_is_refused_with_the_reason(
    secrets: FakeSecrets, credentials: SecretCredentials, key: rsa.RSAPrivateKey, case: str
) -> None:
    data, complaint = broken_files(key)[case]
    secrets.put(SECRET, data)

    with pytest.raises(RefusedError) as caught:
        await credentials.of(SIGNER)

    message = str(caught.value)
    assert message.startswith("AzureIdentity default/web: the Secret default/credential of spec.clientPassword ")
    assert complaint in message
    assert VALUE not in message
    assert PASSWORD not in message


class Children:
    """Counts the children that are started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started = 0
        self._run = subprocess.run
        monkeypatch.setattr(subprocess, "run", self.run)

    def run(self, *args: Any, **options: Any) -> Any:
        self.started += 1
        return self._run(*args, **options)


async def test_a_file_is_read_once_however_often_it_signs_and_the_secret_is_read(
    secrets: FakeSecrets,
    credentials: SecretCredentials,
    clock: Any,
    key: rsa.RSAPrivateKey,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    children = Children(monkeypatch)
    secrets.put(SECRET, {"certificate": pfx(key, certificate("web", key)), "password": PASSWORD.encode()})

    for _ in range(3):
        assertion_of(await credentials.of(SIGNER), clock.now_s)
        clock.now_s += KEPT_S

    assert (len(secrets.reads), children.started) == (3, 1)


async def test_a_bad_file_is_not_read_for_every_request(
    secrets: FakeSecrets, credentials: SecretCredentials, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = Children(monkeypatch)
    secrets.put(SECRET, {"certificate": b"junk"})

    for _ in range(3):
        with pytest.raises(RefusedError):
            await credentials.of(SIGNER)
    assert children.started == 1

    clock.now_s += KEPT_S
    with pytest.raises(RefusedError):
        await credentials.of(SIGNER)
    assert children.started == 2


async def turns_during(task: asyncio.Task[Any]) -> int:
    """How often everybody else had their turn until *task* was done."""
    turns = 0
    while not task.done():
        await asyncio.sleep(0.01)
        turns += 1
    return turns


def endless(data: bytes) -> bytes:
    """State two thousand million rounds for the check of the whole: in DER, the last integer of the file."""
    check = data.rindex(b"\x30\x41\x30\x31")
    assert data[:2] == b"\x30\x82"
    assert data.endswith(b"\x02\x02\x08\x00")
    size = (int.from_bytes(data[2:4], "big") + 2).to_bytes(2, "big")
    return b"".join((data[:2], size, data[4:check], b"\x30\x43", data[check + 2 : -4], b"\x02\x04\x7f\xff\xff\xff"))


async def test_a_file_that_takes_for_ever_stops_nobody(
    secrets: FakeSecrets,
    credentials: SecretCredentials,
    key: rsa.RSAPrivateKey,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(assertion, "READING_LIMIT_S", 0.5)
    data = endless(pfx(key, certificate("web", key)))
    secrets.put(SECRET, {"certificate": data, "password": PASSWORD.encode()})

    reading = asyncio.create_task(credentials.of(SIGNER))
    turns = await turns_during(reading)

    with pytest.raises(RefusedError, match="takes more than"):
        await reading
    assert turns > 5


async def test_a_child_that_dies_and_one_that_does_not_start_are_told_apart(
    secrets: FakeSecrets, credentials: SecretCredentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets.put(SECRET, {"certificate": b"x"})

    def unable(*args: Any, **options: Any) -> Any:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "run", unable)
    with pytest.raises(TransientError, match="cannot be started: Resource temporarily unavailable"):
        await credentials.of(SIGNER)

    monkeypatch.setattr(subprocess, "run", lambda *args, **options: subprocess.CompletedProcess("x", -9))
    with pytest.raises(RefusedError, match="makes its reader fail"):
        await credentials.of(SIGNER)
