"""Service principals, all the way: MIC assigns them, NMI fetches their tokens from Entra ID, pods get them.

Two NMIs serve the same pods: one as it is installed, and one that the operator allows more.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import ssl
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote_plus

import jwt
import pytest
import pytest_asyncio
from azure.core.exceptions import ClientAuthenticationError
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import NoEncryption

from apps.sandbox.assertions import Trusted
from apps.sandbox.entra import Entra
from apps.sandbox.faults import Fault
from apps.sandbox.serving import Listeners
from apps.sandbox.tokens import TokenIssuer
from tests.apps.daemons import Daemon
from tests.apps.raw_http import Reply
from tests.apps.stage import VAULT, Stage, now_s, sdk_token, stage
from tests.azure.certificates import PASSWORD, as_in_the_past, certificate, modern, pfx

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY, ISSUER_KEY, ROOT_KEY = (rsa.generate_private_key(65537, 2048) for _ in range(3))
ROOT = certificate("root", ROOT_KEY)
ISSUER = certificate("issuer", ISSUER_KEY, "root", ROOT_KEY)
LEAF = certificate("app", KEY, "issuer", ISSUER_KEY)
NOTHING, OWN, ISSUED = Trusted(), Trusted(certificates=(LEAF,)), Trusted(issuers=(ROOT,))
NO_PASSWORD = NoEncryption()
CONFIDENTIAL = {PASSWORD}
"""What must appear in no error and no log: each secret that was made here, and each token that was had."""


@dataclass
class Principal:
    """A pod with a service principal. Everything about it is called *name*; its tenant is its own."""

    name: str
    client_id: str
    address: str

    @property
    def tenant(self) -> str:
        return f"{self.name}.example"


@dataclass
class Cluster:
    """The sandbox with MIC and both NMIs."""

    strict: Stage
    lenient: Stage
    nmis: Sequence[Daemon]

    async def principal(self, name: str, data: Mapping[str, bytes], **spec: Any) -> Principal:
        """Start a pod with an identity, by default of type 1, whose Secret holds *data*."""
        self.strict.secret(name, data)
        made = Principal(name, str(uuid.uuid4()), "")
        whose = {"tenantID": made.tenant, "clientID": made.client_id}
        credential = {"clientPassword": {"name": name, "namespace": "default"}}
        self.strict.azure_identity(name, **{"type": 1, **whose, **credential, **spec})
        self.strict.binding(name)
        return replace(made, address=await self.strict.pod(name))

    def register(self, principal: Principal, *tenants: str, secret: bytes = b"", trusted: Trusted = NOTHING) -> None:
        """Let Entra know the application, in its own tenant or in *tenants*, and how it proves itself."""
        for tenant in tenants or (principal.tenant,):
            self.strict.sandbox.entra.register(tenant, principal.client_id, secret.decode(), trusted=trusted)

    async def ask(self, principal: Principal, resource: str = VAULT, *, of: Stage | None = None) -> Reply:
        """Ask NMI for a token, by default the one that is strict."""
        reply = await (of or self.strict).token(principal.address, resource=resource)
        found = json.loads(reply.body)
        tokens = [one["access_token"] for one in (found if isinstance(found, list) else [found]) if reply.status == 200]
        assert not any(text in reply.body.decode() for text in CONFIDENTIAL - set(tokens))
        CONFIDENTIAL.update(tokens)
        return reply

    def asked(self, principal: Principal) -> list[int]:
        """The statuses with which Entra has answered in the principal's own tenant."""
        seen = self.strict.sandbox.faults.seen("entra", "POST", match=f"^/{principal.tenant}/")
        return [entry.status for entry in seen]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster() -> AsyncIterator[Cluster]:
    async with stage() as started:
        freer = replace(started, nmi_port=0)
        strict, lenient, _ = await asyncio.gather(
            started.nmi(), freer.nmi("--allow-foreign-secrets", "--allow-ad-endpoints"), started.mic()
        )
        await started.first_work()
        started.namespace("elsewhere")
        yield Cluster(started, freer, (strict, lenient))


@pytest.fixture(autouse=True)
def _well_again(cluster: Cluster) -> Any:
    yield
    cluster.strict.sandbox.faults.clear()


def a_secret() -> bytes:
    text = f"secret~{secrets.token_hex(16)}+&"
    CONFIDENTIAL.add(text)
    return text.encode()


def claims_of(token: str) -> dict[str, Any]:
    return jwt.decode(token, options={"verify_signature": False})


def claims(reply: Reply) -> dict[str, Any]:
    assert reply.status == 200, reply.body
    return claims_of(json.loads(reply.body)["access_token"])


def problem(reply: Reply) -> tuple[int, str, str]:
    body = json.loads(reply.body)
    return reply.status, body["error"], body["error_description"]


# Client secrets


@pytest.mark.parametrize("key", ["clientSecret", "whatever"])
async def test_a_pod_gets_a_token_of_the_application_whose_secret_is_in_the_secret(cluster: Cluster, key: str) -> None:
    secret = a_secret()
    principal = await cluster.principal(f"key-{key.lower()}", {key: secret})
    cluster.register(principal, secret=secret)

    reply = await cluster.ask(principal)

    given = claims(reply)
    assert (given["appid"], given["tid"], given["aud"]) == (principal.client_id, principal.tenant, VAULT)
    body = json.loads(reply.body)
    shape = {"client_id": principal.client_id, "resource": VAULT, "token_type": "Bearer"}
    assert {name: body[name] for name in shape} == shape
    assert 0 < int(body["expires_in"]) <= 3599
    assert int(body["expires_on"]) == given["exp"]


async def test_azure_identity_gets_such_a_token_as_if_it_were_a_managed_identitys(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = a_secret()
    principal = await cluster.principal("sdk", {"clientSecret": secret})
    cluster.register(principal, secret=secret)

    token = await sdk_token(cluster.strict.nmi_port, principal.address, monkeypatch)

    assert claims_of(token)["appid"] == principal.client_id


async def test_a_kept_token_costs_no_call(cluster: Cluster) -> None:
    secret = a_secret()
    principal = await cluster.principal("kept", {"clientSecret": secret})
    cluster.register(principal, secret=secret)

    first, second = await cluster.ask(principal), await cluster.ask(principal)

    assert claims(first) == claims(second)
    assert cluster.asked(principal) == [200]


async def test_after_a_rotation_the_next_request_works_though_the_old_secret_was_kept(cluster: Cluster) -> None:
    old, new = a_secret(), a_secret()
    principal = await cluster.principal("rotated", {"clientSecret": old})
    cluster.register(principal, secret=old)
    assert claims(await cluster.ask(principal))
    cluster.register(principal, secret=new)
    cluster.strict.secret("rotated", {"clientSecret": new})

    reply = await cluster.ask(principal, "https://another.example")

    assert claims(reply)["appid"] == principal.client_id
    assert cluster.asked(principal) == [200, 401, 200]


# Certificates


@pytest.mark.parametrize(
    ("name", "data", "trusted"),
    [
        ("old", {"certificate": pfx(KEY, LEAF, (), as_in_the_past(PASSWORD)), "password": PASSWORD.encode()}, OWN),
        ("open", {"certificate": pfx(KEY, LEAF, (), NO_PASSWORD)}, OWN),
        ("modern", {"certificate": pfx(KEY, LEAF, (), modern(PASSWORD)), "password": PASSWORD.encode()}, OWN),
        ("chain", {"certificate": pfx(KEY, LEAF, (ROOT, ISSUER)), "password": PASSWORD.encode()}, ISSUED),
    ],
    ids=["as the original read it", "without a password", "with modern algorithms", "with a chain"],
)
async def test_a_pod_gets_a_token_of_the_application_whose_certificate_is_in_the_secret(
    cluster: Cluster, name: str, data: Mapping[str, bytes], trusted: Trusted
) -> None:
    principal = await cluster.principal(f"pkcs12-{name}", data, type=2)
    cluster.register(principal, trusted=trusted)

    given = claims(await cluster.ask(principal))

    assert (given["appid"], given["tid"], given["aud"]) == (principal.client_id, principal.tenant, VAULT)


# What cannot be used


@dataclass
class Unusable:
    """A pod's identity that cannot be used: *told* is what the pod is told of it."""

    told: Sequence[str]
    data: Mapping[str, bytes] = field(default_factory=lambda: {"clientSecret": a_secret()})
    spec: Mapping[str, Any] = field(default_factory=dict)


BAD = {
    "wrong-password": Unusable(
        ["the Secret default/wrong-password", "the password is wrong", "into 'password'"],
        {"certificate": pfx(KEY, LEAF), "password": b"not-the-password"},
        {"type": 2},
    ),
    "no-pkcs12": Unusable(
        ["the Secret default/no-pkcs12", "put a PKCS#12 file"],
        {"certificate": a_secret(), "password": PASSWORD.encode()},
        {"type": 2},
    ),
    "no-certificate": Unusable(
        ["the Secret default/no-certificate", "'certificate'", "put the PKCS#12 file there"], spec={"type": 2}
    ),
    "empty": Unusable(["the Secret default/empty", "put the application's client secret"], {}),
    "missing": Unusable(
        ["the Secret default/nowhere", "does not exist", "create it, or correct spec.clientPassword"],
        spec={"clientPassword": {"name": "nowhere", "namespace": "default"}},
    ),
    "foreign": Unusable(
        ["the Secret elsewhere/foreign", "another namespace", "copy the Secret", "--allow-foreign-secrets"],
        spec={"clientPassword": {"name": "foreign", "namespace": "elsewhere"}},
    ),
    "plain": Unusable(
        ["spec.adEndpoint 'http://login.microsoftonline.com/'", "write https://", "--allow-ad-endpoints"],
        spec={"adEndpoint": "http://login.microsoftonline.com/"},
    ),
    "unknown": Unusable(
        ["spec.adEndpoint 'https://login.example/'", "correct or drop the field", "--allow-ad-endpoints"],
        spec={"adEndpoint": "https://login.example/"},
    ),
    "four-tenants": Unusable(
        ["spec.auxiliaryTenantIDs", "three at most"], spec={"auxiliaryTenantIDs": [f"{n}.example" for n in range(4)]}
    ),
}


@pytest.mark.parametrize("name", BAD)
async def test_what_cannot_be_used_is_refused_with_the_objects_and_the_remedy(cluster: Cluster, name: str) -> None:
    """In 403, which SDKs do not try again, and Entra is not asked."""
    bad = BAD[name]
    principal = await cluster.principal(name, bad.data, **bad.spec)

    status, error, told = problem(await cluster.ask(principal))

    assert (status, error) == (403, "identity_not_usable")
    assert f"AzureIdentity default/{name}" in told
    assert "PI317" in told
    assert [words for words in bad.told if words not in told] == []
    assert cluster.asked(principal) == []


async def test_a_secret_that_comes_later_is_found_at_once(cluster: Cluster) -> None:
    secret = a_secret()
    whose = {"clientPassword": {"name": "later", "namespace": "default"}}
    principal = await cluster.principal("too-early", {}, **whose)
    cluster.register(principal, secret=secret)
    assert (await cluster.ask(principal)).status == 403
    cluster.strict.secret("later", {"clientSecret": secret})

    assert claims(await cluster.ask(principal, "https://another.example"))


# What the operator may allow


async def test_a_secret_of_another_namespace_is_used_where_the_operator_allows_it(cluster: Cluster) -> None:
    secret = a_secret()
    cluster.strict.secret("shared", {"clientSecret": secret}, namespace="elsewhere")
    principal = await cluster.principal("borrower", {}, clientPassword={"name": "shared", "namespace": "elsewhere"})
    cluster.register(principal, secret=secret)

    assert claims(await cluster.ask(principal, of=cluster.lenient))["appid"] == principal.client_id
    assert (await cluster.ask(principal)).status == 403


async def test_another_token_service_is_used_where_the_operator_allows_it_even_without_tls(cluster: Cluster) -> None:
    secret = a_secret()
    async with another_entra() as entra:
        principal = await cluster.principal("elsewhere", {"clientSecret": secret}, adEndpoint=entra.base)
        entra.register(principal.tenant, principal.client_id, secret.decode())

        allowed, refused = await cluster.ask(principal, of=cluster.lenient), await cluster.ask(principal)

    assert entra.issuer.verify(json.loads(allowed.body)["access_token"])["appid"] == principal.client_id
    assert refused.status == 403
    assert cluster.asked(principal) == []


@asynccontextmanager
async def another_entra() -> AsyncIterator[Entra]:
    """A token service that is no known cloud's, over plain HTTP."""
    listeners = Listeners()
    host, port = address = listeners.bind()
    entra = Entra(TokenIssuer(), f"http://{host}:{port}")
    listeners.serve(address, entra)
    await listeners.start(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    try:
        yield entra
    finally:
        await listeners.stop()


# Several tenants


async def test_auxiliary_tenants_make_the_answer_an_array_with_the_main_tenant_first(cluster: Cluster) -> None:
    secret = a_secret()
    others = ["aux-b.example", "aux-a.example"]
    principal = await cluster.principal("aux", {"clientSecret": secret}, auxiliaryTenantIDs=others)
    cluster.register(principal, principal.tenant, *others, secret=secret)

    reply = await cluster.ask(principal)

    assert reply.status == 200
    given = [claims_of(one["access_token"]) for one in json.loads(reply.body)]
    assert [one["tid"] for one in given] == [principal.tenant, *others]
    assert {one["appid"] for one in given} == {principal.client_id}


async def test_azure_identity_takes_no_array(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was with the original: such identities are for programs that read the array themselves."""
    secret = a_secret()
    principal = await cluster.principal("aux-sdk", {"clientSecret": secret}, auxiliaryTenantIDs=["aux-c.example"])
    cluster.register(principal, principal.tenant, "aux-c.example", secret=secret)
    assert (await cluster.ask(principal)).status == 200

    with pytest.raises(ClientAuthenticationError, match=r'^Unexpected response "\[') as caught:
        await sdk_token(cluster.strict.nmi_port, principal.address, monkeypatch)

    assert caught.value.status_code == 200


async def test_an_auxiliary_tenant_that_refuses_decides_the_answer(cluster: Cluster) -> None:
    secret = a_secret()
    principal = await cluster.principal("aux-not", {"clientSecret": secret}, auxiliaryTenantIDs=["aux-d.example"])
    cluster.register(principal, secret=secret)

    status, error, told = problem(await cluster.ask(principal))

    assert (status, error) == (400, "invalid_request")
    assert told.startswith("AADSTS90002: Tenant 'aux-d.example' not found.")


# What Entra decides


async def test_a_refusal_of_entras_comes_with_its_own_status_and_words(cluster: Cluster) -> None:
    principal = await cluster.principal("refused", {"clientSecret": a_secret()})
    cluster.register(principal, secret=a_secret())

    status, error, told = problem(await cluster.ask(principal))

    assert (status, error) == (401, "invalid_client")
    assert told.startswith("AADSTS7000215: Invalid client secret provided.")
    assert f"'{principal.client_id}'" in told


async def test_a_certificate_that_entra_does_not_know_is_refused_in_entras_words(cluster: Cluster) -> None:
    data = {"certificate": pfx(KEY, LEAF), "password": PASSWORD.encode()}
    principal = await cluster.principal("unregistered", data, type=2)
    cluster.register(principal)

    status, error, told = problem(await cluster.ask(principal))

    assert (status, error) == (401, "invalid_client")
    assert told.startswith("AADSTS700027: The certificate ")


@pytest.mark.parametrize(
    ("name", "fault", "status", "retry_after"),
    [
        ("gone", {"action": "close"}, 503, None),
        ("broken", {"status": 500}, 503, None),
        ("busy", {"status": 429, "headers": {"retry-after": "7"}}, 429, "7"),
    ],
    ids=["away", "broken", "busy"],
)
async def test_entra_in_trouble_is_a_reason_to_ask_again(
    cluster: Cluster, name: str, fault: Mapping[str, Any], status: int, retry_after: str | None
) -> None:
    secret = a_secret()
    principal = await cluster.principal(name, {"clientSecret": secret})
    cluster.register(principal, secret=secret)
    cluster.strict.sandbox.faults.add(Fault("entra", method="POST", match=name, times=None, **fault))

    troubled = await cluster.ask(principal)
    cluster.strict.sandbox.faults.clear()
    well = await cluster.ask(principal)

    assert (troubled.status, troubled.header("retry-after")) == (status, retry_after)
    assert set(json.loads(troubled.body)) == {"error", "error_description"}
    assert claims(well)["appid"] == principal.client_id


# What happens elsewhere


async def test_the_nodes_host_is_left_alone(cluster: Cluster) -> None:
    """Resource Manager has nothing to do with service principals: MIC assigns them at once."""
    began_s = now_s()
    with_secret = await cluster.principal("no-host-1", {"clientSecret": a_secret()})
    with_certificate = await cluster.principal("no-host-2", {"certificate": a_secret()}, type=2)
    for principal in (with_secret, with_certificate):
        await cluster.ask(principal)

    assignments = cluster.strict.assignments
    assert {assignments[f"{one.name}/{one.name}"] for one in (with_secret, with_certificate)} == {"Assigned"}
    assert cluster.strict.patches(began_s) == []
    assert [entry for entry in cluster.strict.sandbox.faults.seen("arm", "PATCH") if entry.at >= began_s] == []


async def test_no_secret_and_no_token_is_logged(cluster: Cluster) -> None:
    """Of none of the requests in this module, nor of these three."""
    secret = a_secret()
    granted = await cluster.principal("logged-1", {"clientSecret": secret})
    refused = await cluster.principal("logged-2", {"clientSecret": a_secret()})
    unusable = await cluster.principal("logged-3", {"certificate": a_secret(), "password": b"a-password"}, type=2)
    cluster.register(granted, secret=secret)
    cluster.register(refused, secret=a_secret())
    replies = [await cluster.ask(one, of=of) for one in (granted, refused, unusable) for of in (None, cluster.lenient)]
    assert [reply.status for reply in replies] == [200, 200, 401, 401, 403, 403]

    codes = [await nmi.end() for nmi in cluster.nmis]

    assert codes == [0, 0]
    for nmi in cluster.nmis:
        assert "logged-1" in nmi.output
        written = {form for text in (*CONFIDENTIAL, "a-password") for form in ways_to_write(text)}
        assert [text for text in (*written, "eyJ") if text in nmi.output] == []


def ways_to_write(text: str) -> tuple[str, ...]:
    """*text* itself, as it is in a Secret, and as it is in a form."""
    return text, base64.b64encode(text.encode()).decode(), quote_plus(text)
