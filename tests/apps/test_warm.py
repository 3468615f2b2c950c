"""Answers of the same second: kept while they would come out the same, and no longer; sent in one write."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from apps.limited_http import IN_ONE_WRITE, Parser, answer_head
from apps.nmi.answers import Answer
from apps.nmi.audit import Record
from apps.nmi.warm import WarmAnswers
from apps.serving import Receive, Scope, Send, start_server
from podidentity_core.testing.clock import FakeClock
from tests.apps.nmi_server import ASK, POD, WEB, nmi_server
from tests.apps.raw_http import DEADLINE_S, all_parsed, exchange

ASKED = ("10.0.0.7", b"/metadata/identity/oauth2/token", b"resource=x")
ANSWER = Answer(200, b"{}")
RECORD = Record("GET", "/", "10.0.0.7")


class Kept:
    """Warm answers of a service whose version the test sets."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.service = SimpleNamespace(version=1)
        self.warm = WarmAnswers(cast("Any", self.service), self.clock)
        self.warm.get(ASKED)
        self.warm.put(ASKED, ANSWER, RECORD)


@pytest.fixture
def kept() -> Kept:
    return Kept()


def test_an_answer_is_whole_and_says_its_length(kept: Kept) -> None:
    warm = kept.warm.get(ASKED)

    assert warm is not None
    assert (warm.start["status"], dict(warm.start["headers"])[b"content-length"]) == (200, b"2")
    assert (warm.body["body"], warm.record) == (b"{}", RECORD)
    assert warm.head == (b"HTTP/1.1 200 OK\r\ncontent-type: application/json; charset=utf-8\r\ncontent-length: 2\r\n")


def test_a_token_that_is_kept_is_not_shown(kept: Kept) -> None:
    kept.warm.put((*ASKED[:2], b"x=1"), Answer(200, b"secret-token"), RECORD)

    assert "secret-token" not in repr(kept.warm.get((*ASKED[:2], b"x=1")))


@pytest.mark.parametrize(
    "asked",
    [("10.0.0.8", *ASKED[1:]), (ASKED[0], b"/other", ASKED[2]), (*ASKED[:2], b"resource=y")],
    ids=["address", "path", "query"],
)
def test_another_request_has_another_answer(kept: Kept, asked: tuple[str, bytes, bytes]) -> None:
    assert kept.warm.get(asked) is None


def test_any_change_ends_it(kept: Kept) -> None:
    kept.service.version += 1

    assert kept.warm.get(ASKED) is None


async def test_the_end_of_the_second_ends_it(kept: Kept) -> None:
    await kept.clock.advance(0.5)
    before = kept.warm.get(ASKED)
    await kept.clock.advance(0.5)

    assert before is not None
    assert kept.warm.get(ASKED) is None


def test_a_pod_that_spells_its_request_in_many_ways_takes_no_more_memory(kept: Kept) -> None:
    for number in range(5000):
        kept.warm.put((*ASKED[:2], b"x=%d" % number), ANSWER, RECORD)

    assert len(kept.warm._kept) == 1024
    assert kept.warm.get(ASKED) is not None


@pytest.mark.parametrize("http", ["httptools", "h11"])
async def test_a_pod_sees_no_difference(http: Parser) -> None:
    ask = b"GET %b HTTP/1.1\r\nHost: a\r\nMetadata: true\r\n" % ASK.encode()
    async with nmi_server(POD, WEB, http=http) as nmi:
        several = ask + b"\r\n" + ask + b"\r\n" + ask + b"Connection: close\r\n\r\n"
        first, warm, last = all_parsed(await exchange(nmi.port, several, address=POD.ips[0]))

    assert first.status == 200
    assert warm == first
    assert dict(last.headers) == {**dict(first.headers), "connection": "close"}
    assert last.body == first.body


class Offered:
    """An application that answers in one write if it may, and says so; first with *before* by messages."""

    def __init__(self, before: bytes = b"") -> None:
        self._before = before
        self.taken: list[bool] = []

    async def __call__(self, scope: Scope, _: Receive, send: Send) -> None:
        if self._before:
            body, self._before = self._before, b""
        else:
            start, message = _answer(b"in one write")
            self.taken.append(scope["extensions"][IN_ONE_WRITE](answer_head(start), message["body"]))
            if self.taken[-1]:
                return
            body = b"by messages"
        for message in _answer(body):
            await send(message)


def _answer(body: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]}
    return start, {"type": "http.response.body", "body": body}


OPEN = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
OF_OLD = b"GET / HTTP/1.0\r\n\r\n"
REQUESTS = {
    "one": (LAST, 1, ["close"]),
    "HTTP/1.0": (OF_OLD, 1, ["close"]),
    "two": (OPEN + LAST, 2, [None, "close"]),
    "many": (OPEN * 20 + LAST, 21, [None] * 20 + ["close"]),
    "one and what nobody reads": (LAST + OPEN, 1, ["close"]),
}


@pytest.mark.parametrize(("raw", "number", "connection"), REQUESTS.values(), ids=REQUESTS)
async def test_one_write_ends_the_connection_if_the_client_wants_it(
    raw: bytes, number: int, connection: list[str | None]
) -> None:
    server = await start_server(Offered(), "127.0.0.1", 0, flag="--none")
    answers = all_parsed(await exchange(server.port, raw, address="127.0.0.1"))
    await server.stop(0)

    assert [answer.body for answer in answers] == [b"in one write"] * number
    assert [answer.header("connection") for answer in answers] == connection


async def test_one_write_is_not_for_clients_that_do_not_read_what_they_have_got() -> None:
    more_than_buffers_hold = 32 * 2**20
    app = Offered(before=b"x" * more_than_buffers_hold)
    server = await start_server(app, "127.0.0.1", 0, flag="--none")
    _, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1)
    async with asyncio.timeout(DEADLINE_S):
        writer.write(OPEN * 2)
        while not app.taken:  # noqa: ASYNC110  # an application has no other way to tell
            await asyncio.sleep(0.001)
        writer.transport.abort()
    await server.stop(0)

    assert app.taken == [False]
