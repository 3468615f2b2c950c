"""What goes to Resource Manager on the wire, and what every failure of the SDK becomes."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import aiohttp
import azure.core.exceptions as vendor
import azure.identity
import pytest
from aiohttp import web
from azure.core.credentials import AccessToken

from apps.clock import SystemClock
from apps.sandbox.tls import server_context
from podidentity_azure.cloud import Cloud
from podidentity_azure.compute import Compute, translated
from podidentity_azure.quotas import Quotas
from podidentity_azure.tls import tls_context
from podidentity_core.errors import (
    IdentitiesRefused,
    NotFound,
    PermissionRefused,
    PodIdentityError,
    RefusedError,
    Throttled,
    TransientError,
)
from podidentity_core.testing import builders
from podidentity_core.testing.fakes import FakeMeter

HOST = builders.scale_set("pool (1)")
PATCH = {"identity": {"type": "UserAssigned", "userAssignedIdentities": {"/a": {}, "/b": None}}}
RESOURCE = {"etag": '"4"', "properties": {"provisioningState": "Updating"}, "identity": {"type": "UserAssigned"}}


@dataclass
class Arm:
    """A TLS server with one answer for everything, and a record of what came."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str = json.dumps(RESOURCE)
    requests: list[web.BaseRequest] = field(default_factory=list)
    bodies: list[str] = field(default_factory=list)
    connections: set[int] = field(default_factory=set)
    silent: bool = False
    url: str = ""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(request)
        self.bodies.append(await request.text())
        self.connections.add(id(request.transport))
        if self.silent:
            await asyncio.Event().wait()
        return web.Response(status=self.status, headers=self.headers, text=self.body, content_type="application/json")


class Credential:
    """A token without a service."""

    def __init__(self) -> None:
        self.scopes: list[str] = []

    async def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        self.scopes += scopes
        return AccessToken("the-token", 4_000_000_000)

    async def close(self) -> None: ...


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    return server_context(tmp_path_factory.mktemp("tls"))


@pytest.fixture
async def arm(authority: tuple[ssl.SSLContext, Path]) -> AsyncIterator[Arm]:
    server = Arm()
    runner = web.ServerRunner(web.Server(server.handle), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=authority[0])
    await site.start()
    server.url = f"https://127.0.0.1:{runner.addresses[0][1]}/"
    yield server
    await runner.cleanup()


@pytest.fixture
def credential() -> Credential:
    return Credential()


@pytest.fixture
def meter() -> FakeMeter:
    return FakeMeter()


def opened(arm: Arm, credential: Any, tls: ssl.SSLContext, meter: FakeMeter) -> Compute:
    cloud = Cloud("Test", arm.url, "https://login.example/", "https://management.example/")
    agent = "aad-pod-identity/MIC/1.2.3 mine"
    return Compute(cloud, credential, tls, agent, quotas=Quotas(SystemClock(), meter), meter=meter)


@pytest.fixture
async def compute(
    arm: Arm,
    authority: tuple[ssl.SSLContext, Path],
    credential: Credential,
    meter: FakeMeter,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Compute]:
    for name in ("HTTPS_PROXY", "https_proxy", "AZURE_HTTP_USER_AGENT"):
        monkeypatch.delenv(name, raising=False)
    made = opened(arm, credential, tls_context(str(authority[1])), meter)
    yield made
    await made.aclose()


@pytest.mark.parametrize(
    ("host", "kind"),
    [(builders.vm("vm-1"), "virtualMachines/vm-1"), (HOST, "virtualMachineScaleSets/pool (1)")],
    ids=["VM", "scale set"],
)
async def test_a_read_asks_for_the_host_itself(arm: Arm, compute: Compute, host: Any, kind: str) -> None:
    answer = await compute.read(host)

    (request,) = arm.requests
    group = f"/subscriptions/{host.subscription}/resourceGroups/{host.resource_group}"
    assert request.method == "GET"
    assert request.path == f"{group}/providers/Microsoft.Compute/{kind}"
    assert request.query_string == "api-version=2024-03-01"
    assert answer.body == RESOURCE


async def test_a_write_sends_null_for_what_goes_and_the_etag_it_has_seen(arm: Arm, compute: Compute) -> None:
    arm.headers["Azure-AsyncOperation"] = "https://arm.example/operation"

    answer = await compute.patch(HOST, PATCH, etag='"3"', sent=[])

    (request,) = arm.requests
    assert request.method == "PATCH"
    assert request.headers["If-Match"] == '"3"'
    assert request.headers["Content-Type"].startswith("application/json")
    assert json.loads(arm.bodies[0]) == PATCH
    assert answer.body == RESOURCE
    assert answer.headers["azure-asyncoperation"] == "https://arm.example/operation"


async def test_without_an_etag_a_write_has_no_condition(arm: Arm, compute: Compute) -> None:
    await compute.patch(HOST, PATCH, etag=None, sent=[])

    assert "If-Match" not in arm.requests[0].headers


async def test_who_asks_and_with_what_token(arm: Arm, compute: Compute, credential: Credential) -> None:
    await compute.read(HOST)

    assert arm.requests[0].headers["User-Agent"].startswith("azsdk-python-mgmt-compute/")
    assert arm.requests[0].headers["User-Agent"].endswith(" aad-pod-identity/MIC/1.2.3 mine")
    assert arm.requests[0].headers["Authorization"] == "Bearer the-token"
    assert credential.scopes == ["https://management.example//.default"]


async def test_calls_share_one_connection(arm: Arm, compute: Compute) -> None:
    await compute.read(HOST)
    await compute.patch(HOST, PATCH, etag=None, sent=[])
    await compute.ask(HOST, compute.url(HOST))

    assert len(arm.connections) == 1


async def test_each_subscription_has_a_client_of_its_own(arm: Arm, compute: Compute) -> None:
    other = builders.Host(HOST.kind, "other", HOST.resource_group, HOST.name)

    await compute.read(HOST)
    await compute.read(other)

    assert [request.raw_path.split("/")[2] for request in arm.requests] == [HOST.subscription, "other"]


async def test_an_operation_is_asked_for_with_every_parameter_of_its_long_address(arm: Arm, compute: Compute) -> None:
    query = "p=1f-2&api-version=2024-03-01&t=638&c=MIIH%2Bx%2Fy%3D&s=aB-_c%2b&h=a~b%20" + "A" * 3400

    answer = await compute.ask(HOST, f"{arm.url}subscriptions/s/providers/x/operations/1?{query}")

    # aiohttp writes %2b as %2B and %2F as /; the values stay.
    assert parse_qsl(arm.requests[0].raw_path.partition("?")[2]) == parse_qsl(query)
    assert answer.status == 200


@pytest.mark.parametrize("status", [403, 404, 429, 500])
async def test_any_status_is_an_answer_to_a_poll_and_nothing_is_repeated(
    arm: Arm, compute: Compute, status: int
) -> None:
    arm.status, arm.body, arm.headers = status, "not JSON", {"Retry-After": "1"}

    answer = await compute.ask(HOST, arm.url)

    assert (answer.status, dict(answer.body), answer.headers["retry-after"]) == (status, {}, "1")
    assert len(arm.requests) == 1


async def test_the_signature_of_an_operation_is_in_no_log(
    arm: Arm, compute: Compute, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    arm.headers["Azure-AsyncOperation"] = f"{arm.url}operations/1?s=s1gnature"

    answer = await compute.patch(HOST, PATCH, etag=None, sent=[])
    await compute.ask(HOST, answer.headers["azure-asyncoperation"])

    logged = "".join(record.getMessage() for record in caplog.records if record.name != "aiohttp.access")  # its server
    assert "operations/1" in logged
    assert "s1gnature" not in logged
    assert "the-token" not in logged


REFUSED = {"error": {"code": "LinkedAuthorizationFailed", "message": f"'{builders.resource('web').text.lower()}'"}}


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, {"error": {"code": "ResourceNotFound", "message": "Words."}}, NotFound),
        (403, REFUSED, IdentitiesRefused),
        (429, {"code": "OperationNotAllowed", "message": "Words."}, Throttled),
        (503, None, Throttled),
    ],
)
async def test_refusals_keep_their_words_and_are_not_repeated(
    arm: Arm, compute: Compute, status: int, body: object, expected: type[PodIdentityError]
) -> None:
    arm.status, arm.body, arm.headers = status, json.dumps(body), {"Retry-After": "180"}

    with pytest.raises(expected, match=r"pool \(1\)") as caught:
        await compute.patch(HOST, PATCH, etag=None, sent=[builders.resource("web")])

    assert len(arm.requests) == 1
    if isinstance(caught.value, IdentitiesRefused):
        assert caught.value.resource_ids == {builders.resource("web").text}
    if isinstance(caught.value, Throttled):
        assert caught.value.retry_after_s == 180.0


@pytest.mark.parametrize("body", ["<html>a proxy's page</html>", "[]", "", "null"])
async def test_a_success_that_is_no_resource_is_a_passing_trouble(arm: Arm, compute: Compute, body: str) -> None:
    arm.body = body

    with pytest.raises(TransientError):
        await compute.read(HOST)
    with pytest.raises(TransientError):
        await compute.patch(HOST, PATCH, etag=None, sent=[])


async def test_a_server_that_says_nothing_is_left_after_a_while(
    arm: Arm, compute: Compute, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("podidentity_azure.compute.CALL_LIMIT_S", 0.05)
    arm.silent = True

    with pytest.raises(TransientError, match="no answer within"):
        await compute.read(HOST)


async def test_a_poll_that_nobody_answers_is_soon_given_up(
    arm: Arm, compute: Compute, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("podidentity_azure.compute.POLL_LIMIT_S", 0.05)
    arm.silent = True

    with pytest.raises(TransientError, match="no answer within 0 s"):
        await compute.ask(HOST, f"{arm.url}operations/1")


REQUESTS = "cloud_provider_requests_count"


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, "success"),
        (400, "refused"),
        (403, "refused"),
        (404, "refused"),
        (409, "refused"),
        (412, "refused"),
        (429, "throttled"),
        (408, "failed"),
        (500, "failed"),
        (503, "failed"),
    ],
)
async def test_every_request_is_counted_with_what_became_of_it(
    arm: Arm, compute: Compute, meter: FakeMeter, status: int, outcome: str
) -> None:
    arm.status = status

    for call in (
        compute.read(builders.scale_set("a")),
        compute.patch(builders.scale_set("b"), PATCH, etag=None, sent=[]),
        compute.ask(builders.scale_set("c"), f"{arm.url}operations/1"),
    ):
        with suppress(PodIdentityError):
            await call

    assert meter.counts == {f"{REQUESTS}:{method}:{outcome}": 1 for method in ("GET", "PATCH", "POLL")}
    assert len(arm.requests) == 3


async def test_following_the_host_itself_is_reading_it(arm: Arm, compute: Compute, meter: FakeMeter) -> None:
    before = compute.left(HOST, compute.url(HOST)), compute.left(HOST, f"{arm.url}operations/1")

    await compute.ask(HOST, compute.url(HOST))

    after = compute.left(HOST, compute.url(HOST)), compute.left(HOST, f"{arm.url}operations/1")
    assert after == (pytest.approx(before[0] - 1, abs=0.1), before[1])
    assert meter.counts == {f"{REQUESTS}:GET:success": 1}


@pytest.mark.parametrize("body", ["<html>a proxy's page</html>", ""])
async def test_an_answer_of_somebody_else_is_no_success(
    arm: Arm, compute: Compute, meter: FakeMeter, body: str
) -> None:
    arm.body = body

    for call in (compute.read(HOST), compute.patch(HOST, PATCH, etag=None, sent=[]), compute.ask(HOST, arm.url)):
        with pytest.raises(TransientError):
            await call

    assert meter.counts == {f"{REQUESTS}:{method}:failed": 1 for method in ("GET", "PATCH", "POLL")}


async def test_a_request_without_an_answer_has_failed(
    arm: Arm, compute: Compute, meter: FakeMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("podidentity_azure.compute.CALL_LIMIT_S", 0.3)
    arm.silent = True

    with pytest.raises(TransientError):
        await compute.read(HOST)

    assert meter.counts == {f"{REQUESTS}:GET:failed": 1}


async def test_without_a_token_there_is_no_request(
    arm: Arm, authority: tuple[ssl.SSLContext, Path], meter: FakeMeter
) -> None:
    class Refused(Credential):
        async def get_token(self, *scopes: str, **_: Any) -> AccessToken:
            raise vendor.ClientAuthenticationError("Words.", response=Response(429, '{"error": "slow_down"}'))

    compute = opened(arm, Refused(), tls_context(str(authority[1])), meter)

    with pytest.raises(Throttled):
        await compute.read(HOST)

    assert meter.counts == {}
    assert compute.left(HOST, compute.url(HOST)) > 30, "Entra's patience is not Resource Manager's"
    await compute.aclose()


async def test_what_is_left_is_shown_from_every_answer_refusals_too(
    arm: Arm, compute: Compute, meter: FakeMeter
) -> None:
    arm.headers = {
        "x-ms-ratelimit-remaining-subscription-global-reads": "3749",
        "x-ms-ratelimit-remaining-resource": "Microsoft.Compute/GetVMScaleSetResource;33",
    }
    await compute.read(HOST)
    arm.status, arm.headers = (
        429,
        {"x-ms-ratelimit-remaining-resource": "Microsoft.Compute/VMScaleSetActionsResource;0"},
    )
    with pytest.raises(Throttled):
        await compute.patch(HOST, PATCH, etag=None, sent=[])

    assert meter.gauges == {
        "cloud_provider_remaining_requests:subscription-global-reads": 3749,
        "cloud_provider_remaining_requests:Microsoft.Compute/GetVMScaleSetResource": 33,
        "cloud_provider_remaining_requests:Microsoft.Compute/VMScaleSetActionsResource": 0,
    }


async def test_a_call_that_would_have_to_wait_long_is_not_made(arm: Arm, compute: Compute, meter: FakeMeter) -> None:
    arm.status, arm.headers = 429, {"Retry-After": "180"}
    with pytest.raises(Throttled):
        await compute.patch(HOST, PATCH, etag=None, sent=[])

    with pytest.raises(Throttled, match=r"PATCH /subscriptions/.*pool \(1\): held back") as caught:
        await compute.patch(HOST, PATCH, etag=None, sent=[])

    assert caught.value.retry_after_s == pytest.approx(180, abs=5)
    assert len(arm.requests) == 1
    assert meter.counts == {f"{REQUESTS}:PATCH:throttled": 1}


async def test_a_certificate_that_nobody_vouches_for_is_not_accepted(
    arm: Arm, credential: Credential, meter: FakeMeter
) -> None:
    compute = opened(arm, credential, tls_context(""), meter)

    with pytest.raises(TransientError, match="certificate"):
        await compute.read(HOST)

    assert arm.requests == []
    await compute.aclose()


class Response:
    """As much of an answer as the SDK's errors look at."""

    def __init__(self, status_code: int, body: str = "") -> None:
        self.status_code = status_code
        self.reason = "Words"
        self.headers: dict[str, str] = {}
        self.request = None
        self._body = body

    def text(self) -> str:
        return self._body


def every_subclass(root: type[Exception]) -> Iterator[type[Exception]]:
    yield root
    for child in root.__subclasses__():
        yield from every_subclass(child)


VENDOR = sorted(
    {
        *every_subclass(vendor.AzureError),
        *(
            entry
            for module in (vendor, azure.identity)
            for entry in vars(module).values()
            if isinstance(entry, type) and issubclass(entry, Exception)
        ),
    },
    key=lambda entry: entry.__name__,
)


def made(kind: type[Exception], response: Response | None) -> Exception:
    """Make one as the SDK does; their constructors differ."""
    if issubclass(kind, vendor.TooManyRedirectsError):
        return kind([], response=response)
    if issubclass(kind, vendor.ODataV4Error):
        return kind(response or Response(500))
    if issubclass(kind, (vendor.StreamConsumedError, vendor.StreamClosedError, vendor.ResponseNotReadError)):
        return kind(Response(200))
    if issubclass(kind, azure.identity.AuthenticationRequiredError):
        return kind(["scope"])
    if issubclass(kind, vendor.HttpResponseError):
        return kind("Words.", response=response)
    return kind("Words.")


def test_the_vendors_have_the_errors_that_this_checks() -> None:
    assert {"HttpResponseError", "ServiceRequestError", "CredentialUnavailableError"} <= {k.__name__ for k in VENDOR}
    assert len(VENDOR) >= 18


@pytest.mark.parametrize("kind", VENDOR, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("status", [None, 400, 404, 503])
def test_every_error_of_the_vendors_becomes_one_of_the_core(kind: type[Exception], status: int | None) -> None:
    error = made(kind, None if status is None else Response(status))

    with pytest.raises(PodIdentityError) as caught, translated("get the host"):
        raise error

    assert caught.value.__cause__ is error
    assert str(caught.value).startswith("get the host: ")


@pytest.mark.parametrize("kind", [aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, TimeoutError])
def test_a_broken_connection_is_a_passing_trouble(kind: type[Exception]) -> None:
    with pytest.raises(TransientError), translated("get the host"):
        raise kind


def test_a_bug_is_not_disguised() -> None:
    with pytest.raises(KeyError), translated("get the host"):
        raise KeyError("bug")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, PermissionRefused),
        (401, PermissionRefused),
        (403, PermissionRefused),
        (429, Throttled),
        (503, TransientError),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True], ids=["at once", "as the cause"])
def test_a_token_that_is_refused_is_told_from_one_that_cannot_be_had_now(
    status: int, expected: type[PodIdentityError], wrapped: bool
) -> None:
    body = '{"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret provided."}'
    error = vendor.ClientAuthenticationError("Words.", response=Response(status, body))

    if wrapped:
        cause, error = error, azure.identity.CredentialUnavailableError("no token")
        error.__cause__ = cause

    with pytest.raises(expected, match="AADSTS7000215"), translated("get the host"):
        raise error


def test_a_request_that_cannot_be_written_is_refused_for_good() -> None:
    with pytest.raises(RefusedError), translated("patch the host"):
        raise vendor.SerializationError("Words.")
