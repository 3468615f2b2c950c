"""ImdsTokens: what is asked of the metadata service, and what becomes of each of its answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import respx
from aiohttp import web

from apps.sandbox.sandbox import Sandbox
from podidentity_azure.asking import LONGEST_WAIT_S, RETRIES
from podidentity_azure.imds import MAX_CONNECTIONS, THROTTLED_S, ImdsTokens, read_token
from podidentity_core.errors import RefusedError, Throttled, TokenRefused, TransientError
from podidentity_core.testing import builders
from podidentity_core.token_request import Selector, SelectorKind

ENDPOINT = "http://169.254.169.254"
VAULT = "https://vault.azure.net"
TOKEN = "eyJ0.the-token.sig"
ANSWER = {
    "access_token": TOKEN,
    "client_id": "c",
    "expires_in": "86317",
    "expires_on": "1709895997",
    "ext_expires_in": "86399",
    "not_before": "1709809297",
    "resource": VAULT,
    "token_type": "Bearer",
}
WEB = builders.identity("web")


@pytest.fixture
async def imds(clock: Any, meter: Any) -> AsyncIterator[ImdsTokens]:
    made = ImdsTokens(f"{ENDPOINT}/", clock=clock, meter=meter, agent="aad-pod-identity/NMI/1", chance=lambda: 0.5)
    yield made
    await made.aclose()


@pytest.fixture
def service() -> Any:
    with respx.mock(base_url=ENDPOINT, assert_all_called=False) as router:
        yield router.get("/metadata/identity/oauth2/token")


def selected(kind: SelectorKind, value: str) -> Selector:
    return Selector(kind, value, value.lower())


async def test_the_request_is_the_one_that_imds_documents(imds: ImdsTokens, service: Any) -> None:
    service.respond(json=ANSWER)

    await imds.issue(WEB, VAULT)

    request = service.calls.last.request
    assert str(request.url).partition("?")[2] == (
        f"api-version=2018-02-01&client_id={WEB.client_id}&resource=https%3A%2F%2Fvault.azure.net"
    )
    assert request.headers["Metadata"] == "true"
    assert request.headers["User-Agent"] == "aad-pod-identity/NMI/1"


@pytest.mark.parametrize(
    ("selector", "parameters"),
    [
        (None, {}),
        (selected(SelectorKind.CLIENT_ID, "C"), {"client_id": "C"}),
        (selected(SelectorKind.OBJECT_ID, "O"), {"object_id": "O"}),
        (selected(SelectorKind.RESOURCE_ID, "/r/&="), {"msi_res_id": "/r/&="}),
    ],
    ids=["none", "client ID", "object ID", "resource ID"],
)
async def test_the_nodes_own_tokens_are_asked_for_as_the_pod_named_them(
    imds: ImdsTokens, service: Any, selector: Selector | None, parameters: dict[str, str]
) -> None:
    service.respond(json=ANSWER)

    await imds.issue_for_node(selector, VAULT)

    query = dict(service.calls.last.request.url.params)
    assert query == {"api-version": "2018-02-01", "resource": VAULT, **parameters}


async def test_without_a_client_id_nothing_is_asked(imds: ImdsTokens, service: Any) -> None:
    with pytest.raises(RefusedError, match="no clientID"):
        await imds.issue(builders.Identity("default", "web"), VAULT)

    assert not service.called


async def test_a_token_keeps_the_other_members_in_their_order(imds: ImdsTokens, service: Any) -> None:
    service.respond(json=ANSWER)

    token = await imds.issue(WEB, VAULT)

    assert token.token == TOKEN
    assert token.expires_on_s == 1709895997.0
    assert token.fields == (
        ("client_id", "c"),
        ("ext_expires_in", "86399"),
        ("not_before", "1709809297"),
        ("resource", VAULT),
        ("token_type", "Bearer"),
    )


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"expires_on": 1709895997}, 1709895997.0),
        ({"expires_on": "1709895997"}, 1709895997.0),
        ({"expires_on": "5000.5"}, 5000.5),
        ({"expires_in": "3599"}, 4599.0),
        ({"expires_in": 3599, "expires_on": ""}, 4599.0),
        ({"expires_in": 3599, "expires_on": None}, 4599.0),
    ],
)
def test_the_expiry_is_a_number_in_any_form_or_is_computed(members: dict[str, Any], expected: float) -> None:
    token = read_token(json.dumps({"access_token": TOKEN, **members}).encode(), now_s=1000.0)

    assert token.expires_on_s == expected


def test_numbers_become_texts_and_what_is_neither_is_left_out() -> None:
    extra = {"ext_expires_in": 86399, "refresh_token": "", "odd": {"a": 1}, "none": None, "yes": True}

    token = read_token(json.dumps({**ANSWER, **extra}).encode(), now_s=0.0)

    assert dict(token.fields) == {
        "client_id": "c",
        "ext_expires_in": "86399",
        "not_before": "1709809297",
        "resource": VAULT,
        "token_type": "Bearer",
        "refresh_token": "",
    }


@pytest.mark.parametrize(
    "body",
    [
        TOKEN,
        f'{{"access_token": "{TOKEN}"',
        f'["{TOKEN}"]',
        f'{{"token": "{TOKEN}", "expires_on": "1"}}',
        f'{{"access_token": ["{TOKEN}"], "expires_on": "1"}}',
        f'{{"access_token": "{TOKEN}"}}',
        f'{{"access_token": "{TOKEN}", "expires_on": "tomorrow {TOKEN}"}}',
        f'{{"access_token": "{TOKEN}", "expires_on": "nan"}}',
        f'{{"access_token": "{TOKEN}", "expires_on": "Infinity"}}',
        f'{{"access_token": "{TOKEN}", "expires_in": "soon"}}',
        f'{{"access_token": "{TOKEN}", "expires_on": [1]}}',
        '{"access_token": "", "expires_on": "1"}',
        "",
        "\udcff",
    ],
)
async def test_a_success_that_is_no_token_is_a_passing_trouble_and_is_not_shown(
    imds: ImdsTokens, service: Any, body: str
) -> None:
    service.respond(content=body.encode(errors="surrogateescape"))

    with pytest.raises(TransientError) as caught:
        await imds.issue(WEB, VAULT)

    assert TOKEN not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("status", [400, 403])
async def test_a_refusal_is_passed_on_as_it_came(imds: ImdsTokens, service: Any, status: int) -> None:
    body = b"<Error>Header contains ...</Error>"
    service.respond(status, content=body, headers={"Content-Type": "text/xml; charset=utf-8"})

    with pytest.raises(TokenRefused) as caught:
        await imds.issue(WEB, VAULT)

    assert (caught.value.status, caught.value.body) == (status, body)
    assert caught.value.content_type == "text/xml; charset=utf-8"
    assert service.call_count == 1


@pytest.mark.parametrize("status", [404, 410, 429, 500, 503])
async def test_a_passing_refusal_is_followed_by_another_try(
    imds: ImdsTokens, service: Any, clock: Any, status: int
) -> None:
    service.side_effect = [httpx.Response(status), httpx.Response(status), httpx.Response(200, json=ANSWER)]

    assert (await imds.issue(WEB, VAULT)).token == TOKEN
    assert clock.slept == ([THROTTLED_S, THROTTLED_S] if status == 429 else [0.375, 0.75])


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), httpx.RemoteProtocolError("what")]
)
async def test_a_connection_that_breaks_is_followed_by_another_try(
    imds: ImdsTokens, service: Any, error: Exception
) -> None:
    service.side_effect = [error, httpx.Response(200, json=ANSWER)]

    assert (await imds.issue(WEB, VAULT)).token == TOKEN


@pytest.mark.parametrize("answer", [httpx.Response(503), httpx.ConnectError("refused")])
async def test_after_a_few_tries_the_trouble_is_told(imds: ImdsTokens, service: Any, answer: Any) -> None:
    service.side_effect = [answer] * (RETRIES + 1)

    with pytest.raises(TransientError, match="the metadata service"):
        await imds.issue(WEB, VAULT)

    assert service.call_count == RETRIES + 1


@pytest.mark.parametrize("status", [301, 401, 405])
async def test_what_imds_never_says_is_no_reason_to_ask_again(imds: ImdsTokens, service: Any, status: int) -> None:
    service.respond(status, headers={"Location": "http://elsewhere.example/"})

    with pytest.raises(TransientError):
        await imds.issue(WEB, VAULT)

    assert service.call_count == 1


@pytest.mark.parametrize(
    ("headers", "expected_s"), [({}, THROTTLED_S), ({"Retry-After": "0"}, 0.0), ({"Retry-After": "soon"}, THROTTLED_S)]
)
async def test_throttling_says_how_long_to_wait(
    imds: ImdsTokens, service: Any, headers: dict[str, str], expected_s: float
) -> None:
    service.respond(429, headers=headers)

    with pytest.raises(Throttled) as caught:
        await imds.issue(WEB, VAULT)

    assert caught.value.retry_after_s == expected_s


async def test_a_long_wait_is_left_to_the_caller(imds: ImdsTokens, service: Any, clock: Any) -> None:
    service.respond(429, headers={"Retry-After": f"{LONGEST_WAIT_S + 1:.0f}"})

    with pytest.raises(Throttled):
        await imds.issue(WEB, VAULT)

    assert service.call_count == 1
    assert clock.slept == []


async def test_the_whole_has_a_time_limit(
    imds: ImdsTokens, service: Any, monkeypatch: pytest.MonkeyPatch, meter: Any
) -> None:
    async def silent(_: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr("podidentity_azure.imds.TOTAL_LIMIT_S", 0.05)
    service.side_effect = silent

    with pytest.raises(TransientError, match="did not answer within"):
        await imds.issue(WEB, VAULT)

    assert meter.counts == [("imds_operations_errors_count", {"operation_type": "adal_token_msi_userassignedid"})]


async def test_successes_and_failures_are_measured(imds: ImdsTokens, service: Any, meter: Any) -> None:
    service.respond(json=ANSWER)
    await imds.issue(WEB, VAULT)
    await imds.issue_for_node(None, VAULT)
    await imds.issue_for_node(selected(SelectorKind.CLIENT_ID, "c"), VAULT)
    service.respond(400)
    with pytest.raises(TokenRefused):
        await imds.issue_for_node(None, VAULT)

    kinds = ["adal_token_msi_userassignedid", "adal_token_msi", "adal_token_msi_userassignedid"]
    assert [labels["operation_type"] for _, labels in meter.observations] == kinds
    assert {name for name, _ in meter.observations} == {"imds_operations_duration_seconds"}
    assert meter.counts == [("imds_operations_errors_count", {"operation_type": "adal_token_msi"})]


async def test_no_more_connections_are_open_than_imds_serves_and_they_are_kept(clock: Any, meter: Any) -> None:
    connections: set[int] = set()
    hold = asyncio.Event()
    entered = asyncio.Semaphore(0)

    async def serve(request: web.BaseRequest) -> web.Response:
        connections.add(id(request.transport))
        entered.release()
        await hold.wait()
        return web.json_response(ANSWER)

    runner = web.ServerRunner(web.Server(serve))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    imds = ImdsTokens(f"http://127.0.0.1:{runner.addresses[0][1]}", clock=clock, meter=meter, agent="test")
    async with asyncio.timeout(20):
        calls = [asyncio.create_task(imds.issue(WEB, VAULT)) for _ in range(3 * MAX_CONNECTIONS)]
        for _ in range(MAX_CONNECTIONS):
            await entered.acquire()
        hold.set()
        await asyncio.gather(*calls)
        await imds.aclose()
        await runner.cleanup()

    assert len(connections) == MAX_CONNECTIONS


async def test_proxies_of_the_environment_are_not_used(
    sandbox: Sandbox, clock: Any, meter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    node = sandbox.options.nodes[0]
    sandbox.azure.attach(node.host_id, system=True)
    imds = ImdsTokens(sandbox.imds_urls[node.name], clock=clock, meter=meter, agent="test")

    assert (await imds.issue_for_node(None, VAULT)).token

    await imds.aclose()
