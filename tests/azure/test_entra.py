"""EntraTokens: what is asked of Entra ID, and what happens when it does not answer well."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs

import httpx
import jwt
import pytest
import respx
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import NoEncryption

from apps.clock import SystemClock
from apps.sandbox.faults import Fault
from apps.sandbox.options import TENANT
from apps.sandbox.sandbox import Sandbox
from podidentity_azure.asking import LONGEST_WAIT_S, RETRIES
from podidentity_azure.entra import EntraRules, EntraTokens
from podidentity_azure.token_answers import LARGEST_ANSWER_BYTES
from podidentity_core.errors import ConfigurationError, RefusedError, Throttled, TokenRefused, TransientError
from podidentity_core.model import Identity, IdentityKind, Key
from podidentity_core.testing import builders
from podidentity_core.testing.contracts import TokenSourceContract
from podidentity_core.testing.fakes import FakeSecrets
from tests.azure.certificates import certificate, pfx

VAULT = "https://vault.azure.net"
TOKEN = "eyJ0.the-token.sig"
VALUE = "the secret+of/the&test"
SECRET = Key("default", "credential")
AGENT = "aad-pod-identity/NMI/1"
WEB = replace(builders.identity("web", kind=IdentityKind.SERVICE_PRINCIPAL), tenant_id=TENANT, secret=SECRET)
SIGNER = replace(WEB, kind=IdentityKind.CERTIFICATE)
ANSWER = {"token_type": "Bearer", "expires_in": "3599", "expires_on": "1700003599", "access_token": TOKEN}
REFUSAL = {"error": "invalid_client", "error_description": "AADSTS7000215: Invalid.", "error_codes": [7000215]}

Make = Callable[..., EntraTokens]


@pytest.fixture
def secrets() -> FakeSecrets:
    made = FakeSecrets()
    made.put(SECRET, {"clientSecret": VALUE.encode()})
    return made


@pytest.fixture
async def make(secrets: FakeSecrets, clock: Any, meter: Any) -> AsyncIterator[Make]:
    made = []

    def make(**options: Any) -> EntraTokens:
        usual = {"clock": clock, "meter": meter, "agent": AGENT, "environ": {}, "chance": lambda: 0.5}
        made.append(EntraTokens(secrets, **{**usual, **options}))
        return made[-1]

    yield make
    for tokens in made:
        await tokens.aclose()


@pytest.fixture
def entra(make: Make) -> EntraTokens:
    return make()


@pytest.fixture
def service() -> Any:
    with respx.mock(base_url="https://login.microsoftonline.com", assert_all_called=False) as router:
        yield router.post(f"/{TENANT}/oauth2/token")


# Over TLS, against the sandbox


def of_sandbox(make: Make, sandbox: Sandbox, **options: Any) -> EntraTokens:
    environ = {"SSL_CERT_FILE": str(sandbox.ca_file)}
    return make(environ=environ, rules=EntraRules(authority=sandbox.entra_url), **options)


async def test_a_service_principal_gets_a_token_of_its_tenant(make: Make, sandbox: Sandbox) -> None:
    sandbox.entra.register(TENANT, WEB.client_id, VALUE)
    other = "0f0f0f0f-0000-4000-8000-000000000002"
    sandbox.entra.register(other, WEB.client_id, VALUE)
    entra = of_sandbox(make, sandbox, clock=SystemClock())

    tokens = [await entra.issue(replace(WEB, tenant_id=tenant), VAULT) for tenant in (TENANT, other)]

    claims = [jwt.decode(token.token, options={"verify_signature": False}) for token in tokens]
    assert [one["tid"] for one in claims] == [TENANT, other]
    assert {(one["aud"], one["appid"]) for one in claims} == {(VAULT, WEB.client_id)}
    assert [token.expires_on_s for token in tokens] == [one["exp"] for one in claims]
    assert [(one.path, one.status) for one in sandbox.faults.seen("entra")] == [
        (f"/{TENANT}/oauth2/token", 200),
        (f"/{other}/oauth2/token", 200),
    ]


async def test_a_secret_that_was_changed_is_read_again_when_entra_refuses_the_old_one(
    make: Make, sandbox: Sandbox, secrets: FakeSecrets, meter: Any
) -> None:
    sandbox.entra.register(TENANT, WEB.client_id, VALUE)
    entra = of_sandbox(make, sandbox)
    await entra.issue(WEB, VAULT)
    sandbox.entra.register(TENANT, WEB.client_id, "changed")
    secrets.put(SECRET, {"clientSecret": b"changed\n"})

    assert (await entra.issue(WEB, VAULT)).token

    assert [one.status for one in sandbox.faults.seen("entra")] == [200, 401, 200]
    assert len(secrets.reads) == 2
    assert meter.counts == []


async def test_a_wrong_secret_is_refused_in_entras_words_without_a_second_try(
    make: Make, sandbox: Sandbox, secrets: FakeSecrets
) -> None:
    sandbox.entra.register(TENANT, WEB.client_id, "another")
    entra = of_sandbox(make, sandbox)

    with pytest.raises(TokenRefused, match="invalid_client: AADSTS7000215") as caught:
        await entra.issue(WEB, VAULT)

    assert caught.value.status == 401
    assert json.loads(caught.value.body).keys() == {"error", "error_description"}
    assert VALUE not in f"{caught.value}{caught.value.body!r}"
    assert [one.status for one in sandbox.faults.seen("entra")] == [401]
    assert len(secrets.reads) == 2


async def test_a_certificate_that_is_not_trusted_is_a_passing_trouble(make: Make, sandbox: Sandbox) -> None:
    entra = make(rules=EntraRules(authority=sandbox.entra_url))

    with pytest.raises(TransientError, match="CERTIFICATE_VERIFY_FAILED"):
        await entra.issue(WEB, VAULT)

    assert sandbox.faults.seen("entra") == []


async def test_proxies_of_the_environment_are_used(
    make: Make, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.entra.register(TENANT, WEB.client_id, VALUE)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")

    with pytest.raises(TransientError, match="did not answer"):
        await of_sandbox(make, sandbox).issue(WEB, VAULT)

    assert sandbox.faults.seen("entra") == []


class SandboxEntraWorld:
    """Entra ID of the sandbox."""

    def __init__(self, sandbox: Sandbox, tokens: EntraTokens) -> None:
        self.tokens = tokens
        self._faults = sandbox.faults
        sandbox.entra.register(TENANT, WEB.client_id, VALUE)

    def identity(self) -> Identity:
        return WEB

    def unknown(self) -> Identity:
        return replace(WEB, client_id=builders.client_id("unknown"))

    def now_s(self) -> float:
        return SystemClock().wall_s()

    def throttle(self, retry_after_s: float) -> None:
        self._faults.add(Fault("entra", times=None, status=429, headers={"retry-after": f"{retry_after_s:.0f}"}))

    def break_down(self) -> None:
        self._faults.add(Fault("entra", times=None, action="close"))


class TestEntraTokens(TokenSourceContract):
    @pytest.fixture
    def world(self, make: Make, sandbox: Sandbox) -> SandboxEntraWorld:
        return SandboxEntraWorld(sandbox, of_sandbox(make, sandbox))


# What is asked


def form_of(service: Any) -> Mapping[str, str]:
    content = service.calls.last.request.content.decode()
    return {name: values[0] for name, values in parse_qs(content, strict_parsing=True).items()}


async def test_the_request_is_the_one_that_version_1_documents(entra: EntraTokens, service: Any) -> None:
    service.respond(json=ANSWER)

    await entra.issue(WEB, VAULT)

    request = service.calls.last.request
    assert str(request.url) == f"https://login.microsoftonline.com/{TENANT}/oauth2/token"
    assert request.headers["User-Agent"] == AGENT
    assert request.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert request.headers["Accept-Encoding"] == "identity"
    assert form_of(service) == {
        "client_id": WEB.client_id,
        "client_secret": VALUE,
        "grant_type": "client_credentials",
        "resource": VAULT,
    }


async def test_a_certificate_signs_for_just_this_endpoint(
    entra: EntraTokens, service: Any, secrets: FakeSecrets, clock: Any
) -> None:
    service.respond(json=ANSWER)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    secrets.put(SECRET, {"certificate": pfx(key, certificate("web", key), encryption=NoEncryption())})

    await entra.issue(SIGNER, VAULT)

    form = form_of(service)
    assert form.keys() == {"client_assertion", "client_assertion_type", "client_id", "grant_type", "resource"}
    claims = jwt.decode(
        form["client_assertion"],
        key.public_key(),
        algorithms=["RS256"],
        audience=f"https://login.microsoftonline.com/{TENANT}/oauth2/token",
        options={"verify_exp": False},
    )
    assert claims["iss"] == claims["sub"] == WEB.client_id
    assert (claims["nbf"], claims["exp"]) == (clock.now_s, clock.now_s + 600)


async def test_the_endpoint_of_the_identity_is_asked_if_the_rules_allow_it(make: Make) -> None:
    own = replace(WEB, ad_endpoint="https://adfs.example/adfs")
    with respx.mock(base_url="https://adfs.example") as router:
        router.post(f"/adfs/{TENANT}/oauth2/token").respond(json=ANSWER)

        assert (await make(rules=EntraRules(allow_any_endpoint=True)).issue(own, VAULT)).token == TOKEN


@pytest.mark.parametrize(
    ("identity", "complaint"),
    [
        (replace(WEB, client_id=""), r"AzureIdentity default/web has no clientID; set spec\.clientID"),
        (replace(WEB, tenant_id=""), r"spec\.tenantID"),
        (replace(WEB, ad_endpoint="http://login.microsoftonline.com"), r"spec\.adEndpoint"),
        (replace(WEB, secret=Key("other", "x")), r"spec\.clientPassword"),
    ],
    ids=["no client ID", "no tenant", "endpoint", "foreign Secret"],
)
async def test_what_the_rules_forbid_asks_nobody(
    entra: EntraTokens, service: Any, secrets: FakeSecrets, meter: Any, identity: Identity, complaint: str
) -> None:
    with pytest.raises(RefusedError, match=complaint):
        await entra.issue(identity, VAULT)

    assert not service.called
    assert secrets.reads == []
    assert meter.counts == []


async def test_one_tenants_cookies_are_not_sent_to_another(entra: EntraTokens, service: Any) -> None:
    service.respond(json=ANSWER, headers={"Set-Cookie": "fpc=tenant; path=/; secure; HttpOnly"})

    await entra.issue(WEB, VAULT)
    await entra.issue(WEB, VAULT)

    assert "Cookie" not in service.calls.last.request.headers


# What goes wrong


@pytest.mark.parametrize(
    "refused",
    [
        httpx.Response(429, headers={"Retry-After": "1"}),
        httpx.Response(500),
        httpx.Response(503),
        httpx.Response(400, json={**REFUSAL, "error_codes": [90033]}),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("what"),
    ],
    ids=["429", "500", "503", "90033", "connect", "read", "protocol"],
)
async def test_a_passing_trouble_is_followed_by_another_try(
    entra: EntraTokens, service: Any, clock: Any, refused: Any
) -> None:
    service.side_effect = [refused, refused, httpx.Response(200, json=ANSWER)]

    assert (await entra.issue(WEB, VAULT)).token == TOKEN
    throttled = isinstance(refused, httpx.Response) and refused.status_code == 429
    assert clock.slept == ([1.0, 1.0] if throttled else [0.375, 0.75])


@pytest.mark.parametrize("answer", [httpx.Response(503), httpx.ConnectError("refused")])
async def test_after_a_few_tries_the_trouble_is_told(entra: EntraTokens, service: Any, answer: Any) -> None:
    service.side_effect = [answer] * (RETRIES + 1)

    with pytest.raises(TransientError, match="Entra ID") as caught:
        await entra.issue(WEB, VAULT)

    assert service.call_count == RETRIES + 1
    assert VALUE not in str(caught.value)


async def test_a_long_wait_is_left_to_the_caller(entra: EntraTokens, service: Any, clock: Any) -> None:
    service.respond(429, headers={"Retry-After": f"{LONGEST_WAIT_S + 1:.0f}"})

    with pytest.raises(Throttled) as caught:
        await entra.issue(WEB, VAULT)

    assert caught.value.retry_after_s == LONGEST_WAIT_S + 1
    assert (service.call_count, clock.slept) == (1, [])


@pytest.mark.parametrize("status", [302, 307, 308])
async def test_a_credential_follows_no_redirect(entra: EntraTokens, service: Any, status: int) -> None:
    service.respond(status, headers={"Location": "https://elsewhere.example/"})

    with pytest.raises(RefusedError, match=f"answered {status}"):
        await entra.issue(WEB, VAULT)

    assert service.call_count == 1


async def test_another_credential_that_is_refused_too_ends_it(
    entra: EntraTokens, service: Any, secrets: FakeSecrets
) -> None:
    service.respond(401, json=REFUSAL)
    with pytest.raises(TokenRefused):
        await entra.issue(WEB, VAULT)
    secrets.put(SECRET, {"clientSecret": b"changed"})

    with pytest.raises(TokenRefused):
        await entra.issue(WEB, VAULT)

    assert service.call_count == 3


async def test_another_refusal_than_that_of_the_credential_reads_no_secret_again(
    entra: EntraTokens, service: Any, secrets: FakeSecrets
) -> None:
    service.respond(400, json={"error": "invalid_resource", "error_description": "AADSTS50001: Unknown."})

    with pytest.raises(TokenRefused, match="AADSTS50001"):
        await entra.issue(WEB, VAULT)

    assert len(secrets.reads) == 1


async def test_a_secret_that_is_gone_when_entra_refuses_what_was_in_it_is_told(
    entra: EntraTokens, service: Any, secrets: FakeSecrets
) -> None:
    service.respond(json=ANSWER)
    await entra.issue(WEB, VAULT)
    service.respond(401, json=REFUSAL)
    secrets.remove(SECRET)

    with pytest.raises(RefusedError, match="does not exist; create it"):
        await entra.issue(WEB, VAULT)


async def test_the_whole_has_a_time_limit(
    entra: EntraTokens, service: Any, monkeypatch: pytest.MonkeyPatch, meter: Any
) -> None:
    async def silent(_: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr("podidentity_azure.entra.TOTAL_LIMIT_S", 0.05)
    service.side_effect = silent

    with pytest.raises(TransientError, match="did not answer within"):
        await entra.issue(WEB, VAULT)

    assert meter.counts == [("imds_operations_errors_count", {"operation_type": "adal_token"})]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
async def test_an_answer_without_an_end_takes_no_memory(make: Make, packed: bool) -> None:
    sent = 0

    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse(headers={"Content-Encoding": "gzip"} if packed else {})
        await response.prepare(request)
        while True:
            await response.write(b" " * 65536)
            sent += 65536

    runner = web.ServerRunner(web.Server(serve))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
    entra = make(rules=EntraRules(allow_any_endpoint=True))
    async with asyncio.timeout(20):
        with pytest.raises(TransientError, match="more than"):
            await entra.issue(replace(WEB, ad_endpoint=endpoint), VAULT)
        await runner.cleanup()

    assert sent < 100 * LARGEST_ANSWER_BYTES


async def test_successes_and_failures_are_measured(entra: EntraTokens, service: Any, meter: Any) -> None:
    service.respond(json=ANSWER)
    await entra.issue(WEB, VAULT)
    service.respond(401, json=REFUSAL)
    with pytest.raises(TokenRefused):
        await entra.issue(WEB, VAULT)

    assert meter.observations == [("imds_operations_duration_seconds", {"operation_type": "adal_token"})]
    assert meter.counts == [("imds_operations_errors_count", {"operation_type": "adal_token"})]


def test_a_file_of_certificates_that_cannot_be_used_is_told_at_the_start(make: Make) -> None:
    with pytest.raises(ConfigurationError, match="REQUESTS_CA_BUNDLE"):
        make(environ={"REQUESTS_CA_BUNDLE": "/missing/ca.pem"})


def test_a_cloud_whose_address_cannot_be_used_is_told_at_the_start(make: Make) -> None:
    with pytest.raises(ConfigurationError, match="N/A"):
        make(rules=EntraRules(authority="N/A"))


def test_importing_it_imports_no_more_than_it_needs_at_once() -> None:
    program = "import sys, podidentity_azure.entra; print(*sorted({n.partition('.')[0] for n in sys.modules}))"

    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()

    assert not {"azure", "aiohttp", "pydantic", "yaml", "cryptography", "jwt"} & set(loaded)
