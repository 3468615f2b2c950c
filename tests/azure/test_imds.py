"""ImdsTokens: what is asked of the metadata service, and what becomes of each of its answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
import respx
from aiohttp import web

from apps.clock import SystemClock
from apps.sandbox.sandbox import Sandbox
from podidentity_azure.asking import LONGEST_WAIT_S, RETRIES
from podidentity_azure.imds import AT_ONCE, PER_SECOND, THROTTLED_S, TURN_LIMIT_S, ImdsTokens, read_token
from podidentity_azure.token_answers import LARGEST_ANSWER_BYTES
from podidentity_core.errors import RefusedError, Throttled, TokenRefused, TransientError
from podidentity_core.testing import builders
from podidentity_core.testing.clock import FakeClock, settle
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
    assert request.headers["Accept-Encoding"] == "identity"


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
        ({"expires_on": "3/8/2024 11:06:37 AM +00:00"}, 1709895997.0),
        ({"expires_on": "3/8/2024 11:06:37 +00:00"}, 1709895997.0),
        ({"expires_in": "3599"}, 4599.0),
        ({"expires_in": 3599, "expires_on": ""}, 4599.0),
        ({"expires_in": 3599, "expires_on": None}, 4599.0),
    ],
)
def test_the_expiry_is_a_number_or_a_date_in_any_form_or_is_computed(members: dict[str, Any], expected: float) -> None:
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
        "[" * 100_000,
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


@pytest.mark.parametrize("status", [400, 401, 403])
async def test_a_refusal_is_passed_on_as_it_came(imds: ImdsTokens, service: Any, status: int) -> None:
    body = b"<Error>Header contains ...</Error>"
    service.respond(status, content=body)

    with pytest.raises(TokenRefused, match="Header contains") as caught:
        await imds.issue(WEB, VAULT)

    assert (caught.value.status, caught.value.body) == (status, body)
    assert service.call_count == 1


async def test_of_a_refusals_headers_those_are_passed_on_that_mean_something_to_the_pod(
    imds: ImdsTokens, service: Any
) -> None:
    meaningful = [
        (b"Content-Type", b"text/xml; charset=utf-8"),
        (b"Server", b"IMDS/150.870.65.1854"),
        (b"X-Ms-Request-Id", b"5a4db0c5-0000-4000-8000-000000000001"),
        (b"WWW-Authenticate", b"Basic realm=one"),
        (b"WWW-Authenticate", b"Basic realm=caf\xe9"),
        (b"Retry-After", b"7"),
    ]
    others = [
        *((b"Date", b"Fri, 31 Dec 1999 23:59:59 GMT"), (b"Connection", b"close"), (b"Keep-Alive", b"timeout=5")),
        *((b"Transfer-Encoding", b"chunked"), (b"Set-Cookie", b"a=b"), (b"Content-Length", b"0")),
    ]
    service.respond(400, headers=[*others, *meaningful])

    with pytest.raises(TokenRefused) as caught:
        await imds.issue(WEB, VAULT)

    passed_on = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in caught.value.headers]
    assert passed_on == [(name.lower(), value) for name, value in meaningful]


@pytest.mark.parametrize("status", [404, 408, 410, 429, 500, 503])
async def test_a_passing_refusal_is_followed_by_another_try(
    imds: ImdsTokens, service: Any, clock: Any, status: int
) -> None:
    service.side_effect = [httpx.Response(status), httpx.Response(status), httpx.Response(200, json=ANSWER)]

    assert (await imds.issue(WEB, VAULT)).token == TOKEN
    assert clock.slept == ([THROTTLED_S, THROTTLED_S] if status == 429 else [0.375, 0.75])


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("refused"), httpx.ConnectTimeout("slow"), httpx.RemoteProtocolError("what")]
)
async def test_a_connection_that_breaks_is_followed_by_another_try(
    imds: ImdsTokens, service: Any, error: Exception
) -> None:
    service.side_effect = [error, httpx.Response(200, json=ANSWER)]

    assert (await imds.issue(WEB, VAULT)).token == TOKEN


@pytest.mark.parametrize("status", [404, 410, 503])
async def test_any_other_passing_refusal_may_say_too_how_long_to_wait(
    imds: ImdsTokens, service: Any, status: int
) -> None:
    service.respond(status, headers={"Retry-After": "7"})

    with pytest.raises(Throttled) as caught:
        await imds.issue(WEB, VAULT)

    assert caught.value.retry_after_s == 7.0


@pytest.mark.parametrize("answer", [httpx.Response(503), httpx.ConnectError("refused")])
async def test_after_a_few_tries_the_trouble_is_told(imds: ImdsTokens, service: Any, answer: Any) -> None:
    service.side_effect = [answer] * (RETRIES + 1)

    with pytest.raises(TransientError, match="the metadata service"):
        await imds.issue(WEB, VAULT)

    assert service.call_count == RETRIES + 1


@pytest.mark.parametrize("status", [204, 301, 307, 405, 407])
async def test_what_imds_never_says_is_no_reason_to_ask_again(imds: ImdsTokens, service: Any, status: int) -> None:
    service.respond(status, headers={"Location": "http://elsewhere.example/"})

    with pytest.raises(TransientError):
        await imds.issue(WEB, VAULT)

    assert service.call_count == 1


@pytest.mark.parametrize(
    ("headers", "expected_s"),
    [
        ({}, THROTTLED_S),
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": "soon"}, THROTTLED_S),
        ({"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT", "Date": "Fri, 31 Dec 1999 23:59:50 GMT"}, 9.0),
    ],
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


@pytest.fixture
async def unhurried() -> AsyncIterator[Unhurried]:
    made = Unhurried()
    await made.start()
    yield made
    await made.stop()


class Unhurried:
    """A metadata service on a socket: what it has sent of an answer, and nothing more until it is told to go on."""

    def __init__(self) -> None:
        self.calls = 0
        self.sent = b""
        self.go_on = asyncio.Event()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self.go_on.set()
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.calls += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(self.sent)
        await self.go_on.wait()
        writer.close()


@pytest.mark.parametrize(
    "sent",
    [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"],
    ids=["nothing", "half a head", "half a body"],
)
async def test_after_silence_there_is_no_second_call(unhurried: Unhurried, meter: Any, sent: bytes) -> None:
    unhurried.sent = sent
    imds = ImdsTokens(unhurried.url, clock=SystemClock(), meter=meter, agent="test", answer_limit_s=0.1)

    with pytest.raises(TransientError, match=r"did not answer within 0\.1 s"):
        await imds.issue(WEB, VAULT)
    await imds.aclose()

    assert unhurried.calls == 1
    assert meter.counts == [("imds_operations_errors_count", {"operation_type": "adal_token_msi_userassignedid"})]


async def test_an_answer_that_trickles_has_the_same_limit(meter: Any) -> None:
    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.02)

    async with served(serve) as url:
        imds = ImdsTokens(url, clock=SystemClock(), meter=meter, agent="test", answer_limit_s=0.3)
        with pytest.raises(TransientError, match=r"did not answer within 0\.3 s"):
            await imds.issue(WEB, VAULT)
        await imds.aclose()


@pytest.mark.parametrize("status", [200, 400])
async def test_an_answer_without_an_end_takes_no_memory(meter: Any, status: int) -> None:
    sent = 0

    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        while True:
            await response.write(b" " * 65536)
            sent += 65536

    async with served(serve) as url:
        imds = ImdsTokens(url, clock=SystemClock(), meter=meter, agent="test")
        with pytest.raises(TransientError, match="more than 262144 bytes"):
            await imds.issue(WEB, VAULT)
        await imds.aclose()

    assert sent < 100 * LARGEST_ANSWER_BYTES


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


# Turns


@asynccontextmanager
async def served(serve: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """A metadata service on a socket; its URL."""
    runner = web.ServerRunner(web.Server(serve))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with asyncio.timeout(20):
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_no_more_connections_are_open_than_imds_serves_and_they_are_kept(meter: Any) -> None:
    connections: set[int] = set()
    hold = asyncio.Event()
    entered = asyncio.Semaphore(0)

    async def serve(request: web.BaseRequest) -> web.Response:
        connections.add(id(request.transport))
        entered.release()
        await hold.wait()
        return web.json_response(ANSWER)

    async with served(serve) as url:
        imds = ImdsTokens(url, clock=SystemClock(), meter=meter, agent="test")
        calls = [asyncio.create_task(imds.issue(WEB, VAULT)) for _ in range(3 * AT_ONCE)]
        for _ in range(AT_ONCE):
            await entered.acquire()
        hold.set()
        await asyncio.gather(*calls)
        await imds.aclose()

    assert len(connections) == AT_ONCE


@pytest.fixture
async def standing(meter: Any) -> AsyncIterator[tuple[FakeClock, ImdsTokens]]:
    """A clock that stands still until a test moves it, and what goes by it."""
    clock = FakeClock()
    made = ImdsTokens(ENDPOINT, clock=clock, meter=meter, agent="test", chance=lambda: 0.5)
    yield clock, made
    await made.aclose()


def asked(service: Any, name: str) -> list[str]:
    """That parameter of each request that the service has seen."""
    return [dict(call.request.url.params)[name] for call in service.calls]


async def test_identities_take_turns_whoever_asks_first_and_however_they_are_spelt(
    standing: tuple[FakeClock, ImdsTokens], service: Any
) -> None:
    clock, imds = standing
    service.respond(json=ANSWER)
    greedy = replace(WEB, client_id="greedy")
    calls = [asyncio.create_task(imds.issue(greedy, f"r{number}")) for number in range(PER_SECOND)]
    await settle()
    for number in range(50):
        spelt = replace(WEB, client_id="greedy" if number % 2 else "GREEDY")
        calls.append(asyncio.create_task(imds.issue(spelt, f"s{number}")))
    calls.append(asyncio.create_task(imds.issue(WEB, VAULT)))
    calls.append(asyncio.create_task(imds.issue_for_node(None, "of the node")))

    await clock.advance(5.0)
    await asyncio.gather(*calls)

    resources = asked(service, "resource")
    assert resources[PER_SECOND : PER_SECOND + 4] == ["s0", VAULT, "of the node", "s1"]


async def test_a_retry_takes_another_turn(standing: tuple[FakeClock, ImdsTokens], service: Any) -> None:
    clock, imds = standing
    service.side_effect = [
        httpx.Response(500),
        *[httpx.Response(200, json=ANSWER)] * (PER_SECOND - 1),
        httpx.Response(200, json=ANSWER),
    ]
    retried = asyncio.create_task(imds.issue(WEB, VAULT))
    others = [asyncio.create_task(imds.issue(WEB, f"r{number}")) for number in range(PER_SECOND - 1)]

    await clock.advance(0.9)
    assert all(other.done() for other in others)
    assert not retried.done()
    await clock.advance(0.1)

    assert retried.done()
    assert service.call_count == PER_SECOND + 1


async def test_after_a_429_nobody_asks_until_the_wait_is_over(
    standing: tuple[FakeClock, ImdsTokens], service: Any
) -> None:
    clock, imds = standing
    service.side_effect = [httpx.Response(429, headers={"Retry-After": "4"}), httpx.Response(200, json=ANSWER)]
    with pytest.raises(Throttled):
        await imds.issue(WEB, VAULT)

    other = asyncio.create_task(imds.issue_for_node(None, VAULT))
    await clock.advance(3.9)
    assert service.call_count == 1
    await clock.advance(0.1)

    assert (await other).token == TOKEN


@pytest.mark.parametrize("status", [404, 503])
async def test_other_trouble_of_one_identity_keeps_no_other_waiting(
    standing: tuple[FakeClock, ImdsTokens], service: Any, status: int
) -> None:
    _, imds = standing
    service.side_effect = [httpx.Response(status, headers={"Retry-After": "4"}), httpx.Response(200, json=ANSWER)]
    with pytest.raises(Throttled):
        await imds.issue(WEB, VAULT)

    assert (await imds.issue_for_node(None, VAULT)).token == TOKEN


async def test_who_gets_no_turn_in_time_is_told_when_to_ask_again(
    standing: tuple[FakeClock, ImdsTokens], service: Any, meter: Any
) -> None:
    clock, imds = standing
    service.respond(json=ANSWER)
    most = int(PER_SECOND * TURN_LIMIT_S)
    calls = [asyncio.create_task(imds.issue(WEB, f"r{number}")) for number in range(most + 10)]

    await clock.advance(TURN_LIMIT_S)

    late = [call.exception() for call in calls if call.exception() is not None]
    assert len(late) == 10
    assert all(isinstance(error, Throttled) and error.retry_after_s == 1.0 for error in late)
    assert "10 calls wait for the metadata service" in str(late[0])
    assert len(meter.counts) == 10


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
