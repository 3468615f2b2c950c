"""From the Secret that an AzureIdentity names to the credential in it: which key counts, and for how long it is kept.

| kind | keys of the Secret |
|---|---|
| service principal | `clientSecret`, however it is written; else the only key; else the first by name, with a warning |
| certificate | `certificate` (PKCS#12) and `password`, which may be absent |

Line ends at the end of a secret or a password do not count: `echo` and editors leave them there, and no credential of
Entra ends so. Source of the keys: aad-pod-identity pkg/nmi/standard.go:182-215; it took an arbitrary key.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from podidentity_core.errors import NotFound, PermissionRefused, PodIdentityError, RefusedError
from podidentity_core.model import Identity, IdentityKind, Key
from podidentity_core.ports import Clock, Meter, SecretReader

FOREIGN_SECRETS_FLAG = "--allow-foreign-secrets"
KEPT_S = 60.0
"""How long a Secret is not read again, unless Entra refuses what was in it."""

CAPACITY = 256
LARGEST_VALUE_BYTES = 2**16
"""No credential is larger; with the capacity it bounds the memory that other people's Secrets can take."""

_CLIENT_SECRET = "clientSecret"  # noqa: S105  -- a key's name
_SPELLINGS = ("clientsecret", "client_secret")
_CERTIFICATE = "certificate"
_PASSWORD = "password"  # noqa: S105  -- a key's name

_log = logging.getLogger(__name__)


class Credential(Protocol):
    """What proves to Entra who asks. Never shown."""

    def proof(self, client_id: str, audience: str, now_s: float) -> Mapping[str, str]:
        """Return the fields of a token request that prove the application *client_id* to *audience*."""
        ...


@dataclass(frozen=True, slots=True, repr=False)
class ClientSecret:
    """The password of an application."""

    value: str

    def proof(self, client_id: str, audience: str, now_s: float) -> Mapping[str, str]:  # noqa: ARG002  -- the port's
        """Return the secret itself."""
        return {"client_secret": self.value}


class _UnusableError(Exception):
    """The Secret holds no usable credential; the text goes on after the Secret's name, and says what to do."""


@dataclass(slots=True)
class _Kept:
    """A credential, or what is wrong with it; *fingerprint* is that of the Secret's values."""

    fingerprint: bytes
    until_s: float
    credential: Credential | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How a kind's credential comes out of a Secret: *values* selects, *build* works on them, one at a time.

    So that however many hostile certificates there are, they keep one core busy at the most.
    """

    values: Callable[[Key, Mapping[str, bytes]], Sequence[bytes]]
    build: Callable[[Sequence[bytes]], Awaitable[Credential]]
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class SecretCredentials:
    """The credentials of service principals, the last ones used."""

    def __init__(
        self, secrets: SecretReader, *, clock: Clock, meter: Meter, allow_foreign: bool, kept_s: float = KEPT_S
    ) -> None:
        self._secrets = secrets
        self._clock = clock
        self._meter = meter
        self._allow_foreign = allow_foreign
        self._kept_s = kept_s
        self._kept: OrderedDict[tuple[IdentityKind, Key], _Kept] = OrderedDict()
        self._recipes = {
            IdentityKind.SERVICE_PRINCIPAL: _Recipe(_secret_value, _client_secret),
            IdentityKind.CERTIFICATE: _Recipe(_certificate_values, _certificate),
        }

    async def of(self, identity: Identity) -> Credential:
        """Return the credential of *identity*, which may have been read a while ago.

        Raises:
            RefusedError: there is none; names the objects, the field and the remedy.
            TransientError: the Secret could not be read.
        """
        kept = self._kept.get((identity.kind, self._place(identity)))
        if kept is None or kept.credential is None or self._clock.monotonic_s() >= kept.until_s:
            return await self.newest(identity)
        self._kept.move_to_end((identity.kind, self._place(identity)))
        return kept.credential

    async def newest(self, identity: Identity) -> Credential:
        """Read the Secret, and return its credential: the same object as before, if it holds the same.

        Raises as `of` does.
        """
        key = self._place(identity)
        data = await self._read(identity, key)
        recipe = self._recipes[identity.kind]
        try:
            return await self._built((identity.kind, key), recipe, recipe.values(key, data))
        except _UnusableError as error:
            raise RefusedError(f"{_named(identity, key)} {error}") from None

    def _place(self, identity: Identity) -> Key:
        if identity.secret is None:
            raise RefusedError(
                f"AzureIdentity {identity.key} names no Secret; set spec.clientPassword.name to the one that holds "
                "its credential"
            )
        key = Key(identity.secret.namespace or identity.namespace, identity.secret.name)
        if key.namespace != identity.namespace and not self._allow_foreign:
            raise RefusedError(
                f"{_named(identity, key)} belongs to another namespace; copy the Secret into {identity.namespace} and "
                "correct spec.clientPassword.namespace, or let the operator allow such Secrets "
                f"(NMI's flag {FOREIGN_SECRETS_FLAG})"
            )
        return key

    async def _read(self, identity: Identity, key: Key) -> Mapping[str, bytes]:
        try:
            return await self._secrets.read(key)
        except PodIdentityError as error:
            self._meter.count("kubernetes_api_operations_errors_count", operation_type="get_secret")
            if isinstance(error, NotFound):
                raise NotFound(
                    f"{_named(identity, key)} does not exist; create it, or correct spec.clientPassword"
                ) from error
            if isinstance(error, PermissionRefused):
                raise PermissionRefused(
                    f"{_named(identity, key)} may not be read by NMI; let its ServiceAccount get Secrets in "
                    f"{key.namespace}"
                ) from error
            raise

    async def _built(self, slot: tuple[IdentityKind, Key], recipe: _Recipe, values: Sequence[bytes]) -> Credential:
        fingerprint = _fingerprint(values)
        async with recipe.lock:
            now_s = self._clock.monotonic_s()
            kept = self._kept.get(slot)
            if kept is None or kept.fingerprint != fingerprint or (kept.problem and now_s >= kept.until_s):
                kept = self._kept[slot] = await _made(fingerprint, recipe, values, now_s + self._kept_s)
            elif not kept.problem:
                kept.until_s = now_s + self._kept_s
        self._kept.move_to_end(slot)
        if len(self._kept) > CAPACITY:
            self._kept.popitem(last=False)
        if kept.credential is None:
            raise _UnusableError(kept.problem)
        return kept.credential


async def _made(fingerprint: bytes, recipe: _Recipe, values: Sequence[bytes], until_s: float) -> _Kept:
    try:
        return _Kept(fingerprint, until_s, credential=await recipe.build(values))
    except _UnusableError as error:
        return _Kept(fingerprint, until_s, problem=str(error))


def _named(identity: Identity, key: Key) -> str:
    return f"AzureIdentity {identity.key}: the Secret {key} of spec.clientPassword"


def _fingerprint(values: Sequence[bytes]) -> bytes:
    return hashlib.sha256(b"".join(hashlib.sha256(value).digest() for value in values)).digest()


def _secret_value(key: Key, data: Mapping[str, bytes]) -> Sequence[bytes]:
    name = _secret_name(key, data)
    value = data[name].rstrip(b"\r\n")
    if not value:
        raise _UnusableError(f"has nothing in its key {name!r}; put the application's client secret there")
    return (_bounded(name, value),)


def _secret_name(key: Key, data: Mapping[str, bytes]) -> str:
    if not data:
        raise _UnusableError(f"holds nothing; put the application's client secret into its key {_CLIENT_SECRET!r}")
    known = [name for name in sorted(data) if name.lower() in _SPELLINGS]
    if known:
        return _CLIENT_SECRET if _CLIENT_SECRET in known else known[0]
    first = min(data)
    if len(data) > 1:
        _log.warning(
            "Secret %s has several keys and none of them is %s, so the first by name counts, %r; rename the key that "
            "holds the client secret",
            key,
            _CLIENT_SECRET,
            first,
        )
    return first


async def _client_secret(values: Sequence[bytes]) -> Credential:
    return ClientSecret(_text("client secret", values[0]))


def _certificate_values(_: Key, data: Mapping[str, bytes]) -> Sequence[bytes]:
    if not data.get(_CERTIFICATE):
        raise _UnusableError(f"has nothing in its key {_CERTIFICATE!r}; put the PKCS#12 file there")
    password = data.get(_PASSWORD, b"").rstrip(b"\r\n")
    return _bounded(_CERTIFICATE, data[_CERTIFICATE]), _bounded(_PASSWORD, password)


async def _certificate(values: Sequence[bytes]) -> Credential:
    # Imported for the first certificate only: most nodes have none, and it takes 9 MB.
    from podidentity_azure.assertion import CertificateError, load_certificate

    certificate, password = values
    try:
        return await load_certificate(certificate, _text(_PASSWORD, password))
    except CertificateError as error:
        raise _UnusableError(
            f"cannot be used: its key {_CERTIFICATE!r} {error}; put a PKCS#12 file with an RSA key and its "
            f"certificate there, and its password into {_PASSWORD!r}"
        ) from None


def _bounded(name: str, value: bytes) -> bytes:
    if len(value) > LARGEST_VALUE_BYTES:
        raise _UnusableError(f"has more than {LARGEST_VALUE_BYTES} bytes in its key {name!r}, so that is no credential")
    return value


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        # `from None`: the cause holds the value.
        raise _UnusableError(f"holds a {name} that is no UTF-8 text; store it as text") from None
