"""What a client may hold of a listener, over real sockets and both parsers: times, sizes, connections."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from apps.connections import ConnectionLimits, affordable
from apps.limited_http import Parser
from apps.serving import Application, Receive, Scope, Send, Server, start_server
from tests.apps.raw_http import DEADLINE_S, all_parsed, connect, exchange, request, until_the_end

PATIENT = ConnectionLimits(head_s=60, idle_s=60, unread_s=60, sweep_s=0.02)
"""No time passes by itself; a test shortens the one that it is about."""
SOON_S = 0.2
MIB = 2**20
OPEN = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
ONE, OTHER, THIRD = "127.3.0.1", "127.3.0.2", "127.3.0.3"


@pytest.fixture(params=["httptools", "h11"])
def http(request: pytest.FixtureRequest) -> Parser:
    """Everything here holds for both."""
    parser: Parser = request.param
    return parser


@asynccontextmanager
async def served(app: Application, http: Parser, limits: ConnectionLimits = PATIENT) -> AsyncIterator[Server]:
    server = await start_server(app, "127.0.0.1", 0, flag="--nmi-port", http=http, limits=limits)
    try:
        yield server
    finally:
        await server.stop(0)


async def hello(scope: Scope, _: Receive, send: Send) -> None:
    body = scope["raw_path"]
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@dataclass
class Held:
    """An application that answers when it may, and says how many wait."""

    asked: int = 0
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked += 1
        await self.may_answer.wait()
        await hello(scope, receive, send)

    async def until(self, number: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while self.asked != number:  # noqa: ASYNC110  # an application has no other way to tell
                await asyncio.sleep(0.001)


class Client:
    """A connection of one address."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, raw: bytes) -> None:
        self._writer.write(raw)

    def leave(self) -> None:
        self._writer.transport.abort()

    async def ended(self) -> bytes:
        """What came until the server ended the connection."""
        async with asyncio.timeout(DEADLINE_S):
            return await until_the_end(self._reader)

    async def answered(self) -> bytes:
        """The next answer's body; its head has a length."""
        async with asyncio.timeout(DEADLINE_S):
            head = await self._reader.readuntil(b"\r\n\r\n")
            return await self._reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))

    async def is_open(self) -> bool:
        """Whether it still serves; asks one question to find out."""
        self.send(b"GET /probe HTTP/1.1\r\nHost: a\r\n\r\n")
        try:
            return await self.answered() == b"/probe"
        except (asyncio.IncompleteReadError, ConnectionError):
            return False


@asynccontextmanager
async def clients(server: Server) -> AsyncIterator[Callable[[str], Awaitable[Client]]]:
    """A way to connect, and the end of all connections that it made."""
    async with AsyncExitStack() as stack:

        async def made(address: str) -> Client:
            client = Client(*await connect(server.port, address))
            stack.callback(client.leave)
            return client

        yield made


class TestTimes:
    @pytest.mark.parametrize("begun", [b"", b"GET", b"GET / HTTP/1.1\r\nHost: a\r\n"])
    async def test_a_head_must_come_in_its_time(self, http: Parser, begun: bytes) -> None:
        async with served(hello, http, replace(PATIENT, head_s=SOON_S)) as server, clients(server) as made:
            client = await made(ONE)
            client.send(begun)

            assert await client.ended() == b""

    async def test_a_head_that_comes_byte_by_byte_gains_no_time(self, http: Parser) -> None:
        async with served(hello, http, replace(PATIENT, head_s=SOON_S)) as server, clients(server) as made:
            client = await made(ONE)
            client.send(b"GET / HTTP/1.1\r\nX: ")
            dripping = asyncio.create_task(self._drip(client))

            assert await client.ended() == b""
            dripping.cancel()

    @staticmethod
    async def _drip(client: Client) -> None:
        while True:
            client.send(b"a")
            await asyncio.sleep(0.01)

    async def test_the_next_head_has_as_much_time_from_its_first_byte(self, http: Parser) -> None:
        async with served(hello, http, replace(PATIENT, head_s=SOON_S)) as server, clients(server) as made:
            client = await made(ONE)
            client.send(OPEN)
            await client.answered()
            await asyncio.sleep(2 * SOON_S)  # between requests there is no head to wait for

            assert await client.is_open()
            client.send(b"GET")
            assert await client.ended() == b""

    async def test_an_idle_connection_ends_in_its_time(self, http: Parser) -> None:
        async with served(hello, http, replace(PATIENT, idle_s=SOON_S)) as server, clients(server) as made:
            client = await made(ONE)
            client.send(OPEN)

            assert [reply.status for reply in all_parsed(await client.ended())] == [200]

    async def test_a_request_may_be_answered_later_than_all_times(self, http: Parser) -> None:
        held = Held()
        limits = replace(PATIENT, head_s=SOON_S, idle_s=SOON_S, unread_s=SOON_S)
        async with served(held, http, limits) as server, clients(server) as made:
            client = await made(ONE)
            client.send(LAST)
            await held.until(1)
            await asyncio.sleep(2 * SOON_S)
            held.may_answer.set()

            assert [reply.status for reply in all_parsed(await client.ended())] == [200]

    async def test_a_slow_body_does_not_hold_the_connection(self, http: Parser) -> None:
        async with served(hello, http, replace(PATIENT, head_s=SOON_S)) as server, clients(server) as made:
            client = await made(ONE)
            client.send(POST % MIB)
            dripping = asyncio.create_task(self._drip(client))

            assert [reply.status for reply in all_parsed(await client.ended())] == [200]
            dripping.cancel()

    async def test_a_client_that_does_not_read_its_answer_is_left(self, http: Parser) -> None:
        sent, over = [0], asyncio.Event()

        async def endless(_: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while not over.is_set():
                await send({"type": "http.response.body", "body": bytes(10_000), "more_body": True})
                sent[0] += 10_000
                if sent[0] > 50 * MIB:
                    break
            over.set()

        async def gone(scope: Scope, receive: Receive, send: Send) -> None:
            answering = asyncio.create_task(endless(scope, receive, send))
            while (await receive())["type"] != "http.disconnect":
                pass
            over.set()
            await answering

        async with served(gone, http, replace(PATIENT, unread_s=SOON_S)) as server:
            _, writer = await connect(server.port, ONE)
            writer.write(OPEN)
            async with asyncio.timeout(DEADLINE_S):
                await over.wait()
            writer.transport.abort()

        assert sent[0] < 10 * MIB


def headers(number: int, size: int) -> bytes:
    lines = b"".join(b"X-%d: %b\r\n" % (one, b"x" * size) for one in range(number))
    return b"GET / HTTP/1.1\r\nHost: a\r\n" + lines + b"Connection: close\r\n\r\n"


LARGE = {
    "a path of 31 KiB": (request("/" + "x" * 31_000), 200),
    "a path of 1 MiB": (request("/" + "x" * MIB), 414),
    "a query of 31 KiB": (request("/?" + "x" * 31_000), 200),
    "a query of 1 MiB": (request("/?" + "x" * MIB), 414),
    "a header of 31 KiB": (headers(1, 31_000), 200),
    "a header of 100 KiB": (headers(1, 100_000), 431),
    "100 headers of 1 KiB": (headers(100, 1000), 431),
    "100 headers": (headers(100, 1), 200),
    "2,000 headers": (headers(2000, 1), 431),
    "a method of 1 MiB": (b"G" * MIB + b" / HTTP/1.1\r\n\r\n", None),
}
WITHOUT_END = {
    "a path": (b"GET /" + b"x" * 40_000, 414),
    "headers": (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200, 431),
    "a header": (b"GET / HTTP/1.1\r\na: " + b"x" * 40_000, 431),
}


class TestSizes:
    @pytest.mark.parametrize(("raw", "status"), LARGE.values(), ids=LARGE)
    async def test_a_head_may_be_so_large(self, http: Parser, raw: bytes, status: int | None) -> None:
        async with served(hello, http) as server:
            replies = all_parsed(await exchange(server.port, raw, address=ONE))

        assert [reply.status for reply in replies] == [status or replies[0].status]
        assert status or replies[0].status in (400, 414)

    @pytest.mark.parametrize(("raw", "status"), WITHOUT_END.values(), ids=WITHOUT_END)
    async def test_the_end_of_a_large_head_is_not_waited_for(self, http: Parser, raw: bytes, status: int) -> None:
        async with served(hello, http) as server:
            (reply,) = all_parsed(await exchange(server.port, raw, address=ONE))

        assert (reply.status, reply.header("connection")) == (status, "close")
        assert reply.body == b"a request may have 32768 bytes and 128 lines\n"

    async def test_a_refused_client_that_sends_on_for_ever_is_left(self, http: Parser) -> None:
        async with served(hello, http) as server, clients(server) as made:
            client = await made(ONE)
            client.send(b"GET /")
            flood = asyncio.create_task(self._flood(client))

            assert [reply.status for reply in all_parsed(await client.ended())] == [414]
            with pytest.raises(ConnectionError):
                await flood

    @staticmethod
    async def _flood(client: Client) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                client.send(b"x" * 65536)
                await client._writer.drain()

    @pytest.mark.parametrize("size", [0, 1, 1000, 20_000])
    async def test_a_body_is_dropped_and_the_next_request_is_answered(self, http: Parser, size: int) -> None:
        async with served(hello, http) as server:
            raw = POST % size + bytes(size) + LAST
            replies = all_parsed(await exchange(server.port, raw, address=ONE))

        assert [reply.status for reply in replies][:1] == [200]
        assert len(replies) == (2 if size <= 10_000 else 1)

    async def test_a_body_that_comes_late_is_dropped(self, http: Parser) -> None:
        async with served(hello, http) as server, clients(server) as made:
            client = await made(ONE)
            client.send(POST % 5)
            await client.answered()
            client.send(b"he")
            client.send(b"llo")

            assert await client.is_open()

    async def test_a_large_body_ends_the_connection_behind_its_answer(self, http: Parser) -> None:
        async with served(hello, http) as server:
            raw = POST % MIB + bytes(MIB) + LAST
            replies = all_parsed(await exchange(server.port, raw, address=ONE))

        assert [reply.status for reply in replies] == [200]


class TestPipelining:
    async def test_requests_that_come_together_are_answered_in_their_order(self, http: Parser) -> None:
        raw = b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(99)) + LAST
        async with served(hello, http) as server:
            replies = all_parsed(await exchange(server.port, raw, address=ONE))

        assert [reply.body for reply in replies] == [*(b"/%d" % number for number in range(99)), b"/"]

    async def test_of_too_many_requests_the_first_are_answered(self, http: Parser) -> None:
        raw = b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(1000)) + LAST
        async with served(hello, http) as server:
            replies = all_parsed(await exchange(server.port, raw, address=ONE))

        assert 1 <= len(replies) < 1000
        assert [reply.body for reply in replies] == [b"/%d" % number for number in range(len(replies))]

    async def test_what_follows_a_request_waits_for_its_answer(self, http: Parser) -> None:
        held = Held()
        async with served(held, http) as server, clients(server) as made:
            client = await made(ONE)
            client.send(OPEN)
            await held.until(1)
            client.send(LAST)
            held.may_answer.set()

            assert len(all_parsed(await client.ended())) == 2

    @pytest.mark.parametrize("garbage", [b"\x00\x01", b"garbage\r\n\r\n", b"GET / HTTP/x\r\n\r\n"])
    async def test_garbage_behind_a_request_does_not_take_its_answer(self, http: Parser, garbage: bytes) -> None:
        async with served(hello, http) as server:
            replies = all_parsed(await exchange(server.port, OPEN + garbage + LAST, address=ONE))

        assert replies[0].status == 200
        assert [reply.status for reply in replies[1:]] in ([], [400])

    async def test_headers_behind_a_body_are_none_of_the_request(self, http: Parser) -> None:
        seen: list[list[tuple[bytes, bytes]]] = []

        async def recording(scope: Scope, receive: Receive, send: Send) -> None:
            seen.append(list(scope["headers"]))
            await hello(scope, receive, send)

        trailed = b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nMetadata: true\r\n\r\n"
        async with served(recording, http) as server:
            await exchange(server.port, LAST[:-2] + trailed, address=ONE)

        assert b"metadata" not in dict(seen[0])


class TestRoom:
    async def test_an_address_over_its_number_loses_its_oldest_quiet_connection(self, http: Parser) -> None:
        async with served(hello, http, replace(PATIENT, per_address=3)) as server, clients(server) as made:
            first, *others = [await made(ONE) for _ in range(4)]

            assert await first.ended() == b""
            assert [await client.is_open() for client in others] == [True] * 3

    async def test_who_has_asked_something_stays_longer(self, http: Parser) -> None:
        async with served(hello, http, replace(PATIENT, per_address=2)) as server, clients(server) as made:
            first, second = await made(ONE), await made(ONE)
            assert await first.is_open()
            await made(ONE)

            assert await second.ended() == b""
            assert await first.is_open()

    async def test_of_those_that_have_asked_the_one_goes_that_is_quiet_longest(self, http: Parser) -> None:
        async with served(hello, http, replace(PATIENT, per_address=2)) as server, clients(server) as made:
            first, second = await made(ONE), await made(ONE)
            assert [await first.is_open(), await second.is_open()] == [True, True]
            await asyncio.sleep(5 * PATIENT.sweep_s)  # a sweep sees that they are quiet
            assert await first.is_open()
            await made(ONE)

            assert await second.ended() == b""
            assert await first.is_open()

    async def test_an_address_whose_requests_all_wait_gets_no_more(
        self, http: Parser, caplog: pytest.LogCaptureFixture
    ) -> None:
        held = Held()
        async with served(held, http, replace(PATIENT, per_address=2)) as server, clients(server) as made:
            waiting = [await made(ONE), await made(ONE)]
            for client in waiting:
                client.send(LAST)
            await held.until(2)
            refused, other = await made(ONE), await made(OTHER)
            other.send(LAST)
            await held.until(3)

            assert await refused.ended() == b""
            held.may_answer.set()
            for client in (*waiting, other):
                assert [reply.status for reply in all_parsed(await client.ended())] == [200]
            await asyncio.sleep(2 * PATIENT.sweep_s)

        (line,) = caplog.messages
        assert line.startswith("turned away 1 connections, 1 of them of 127.3.0.1: ")

    async def test_the_last_places_are_shared(self, http: Parser) -> None:
        async with served(hello, http, replace(PATIENT, total=8)) as server, clients(server) as made:
            greedy = [await made(ONE) for _ in range(8)]
            modest = [await made(OTHER), await made(THIRD)]

            assert [await client.is_open() for client in modest] == [True, True]
            assert sum([await client.is_open() for client in greedy]) == 4

    async def test_when_all_is_taken_the_largest_makes_room_for_who_has_none(self, http: Parser) -> None:
        addresses = [f"127.3.1.{number}" for number in range(8)]
        async with served(hello, http, replace(PATIENT, total=8)) as server, clients(server) as made:
            greedy = [await made(ONE) for _ in range(4)]
            others = [await made(address) for address in addresses]

            assert sum([await client.is_open() for client in greedy]) < 4
            assert [await client.is_open() for client in others] == [True] * 8

    async def test_a_waiting_request_never_makes_room(self, http: Parser) -> None:
        held = Held()
        async with served(held, http, replace(PATIENT, total=2)) as server, clients(server) as made:
            waiting = [await made(ONE), await made(OTHER)]
            for client in waiting:
                client.send(LAST)
            await held.until(2)
            refused = await made(THIRD)

            assert await refused.ended() == b""
            held.may_answer.set()
            for client in waiting:
                assert [reply.status for reply in all_parsed(await client.ended())] == [200]

    async def test_a_crowd_that_comes_at_once_is_served(self, http: Parser) -> None:
        async with served(hello, http) as server:
            answers = await asyncio.gather(*(exchange(server.port, LAST, address=ONE) for _ in range(250)))

        assert {reply.status for answer in answers for reply in all_parsed(answer)} == {200}
        assert all(answers)

    async def test_a_connection_that_ended_leaves_its_place(self, http: Parser) -> None:
        async with served(hello, http, replace(PATIENT, total=1)) as server:
            for _ in range(5):
                (reply,) = all_parsed(await exchange(server.port, LAST, address=ONE))
                assert reply.status == 200


class TestStop:
    @pytest.mark.parametrize("begun", [b"", b"GET / HT", OPEN, POST % 10, POST % 10 + b"hel", b"x" * 40_000])
    async def test_stop_ends_each_connection_without_a_request(self, http: Parser, begun: bytes) -> None:
        async with served(hello, http) as server, clients(server) as made:
            client = await made(ONE)
            client.send(begun)
            assert await (await made(OTHER)).is_open()
            async with asyncio.timeout(1):
                await server.stop(grace_s=3600)

            await client.ended()

    async def test_stop_lets_a_request_end_and_drops_what_follows_it(self, http: Parser) -> None:
        held = Held()
        async with served(held, http) as server, clients(server) as made:
            client = await made(ONE)
            client.send(OPEN)
            await held.until(1)
            client.send(OPEN)
            stopping = asyncio.create_task(server.stop(DEADLINE_S))
            await asyncio.sleep(0)  # lets it begin
            held.may_answer.set()
            await stopping

            assert [reply.status for reply in all_parsed(await client.ended())] == [200]
        assert held.asked == 1


class Files:
    """The process's limit of open files, as a test wants it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> None:
        self.now = (soft, hard)
        monkeypatch.setattr(resource, "getrlimit", lambda _: self.now)
        monkeypatch.setattr(resource, "setrlimit", lambda _, now: setattr(self, "now", now))


NONE = resource.RLIM_INFINITY
AFFORDED = {
    "enough": ((20_000, 20_000), 4096, 20_000),
    "enough, when raised": ((1024, 20_000), 4096, 16_384),
    "as much as there is": ((1024, 4096), 1024, 4096),
    "little": ((1024, 1024), 256, 1024),
    "no hard limit": ((1024, NONE), 4096, 16_384),
    "no limit": ((NONE, NONE), 4096, NONE),
}


@pytest.mark.parametrize(("files", "total", "soft"), AFFORDED.values(), ids=AFFORDED)
def test_connections_take_a_quarter_of_the_files_that_may_be_open(
    monkeypatch: pytest.MonkeyPatch, files: tuple[int, int], total: int, soft: int
) -> None:
    process = Files(monkeypatch, *files)

    assert affordable(ConnectionLimits()) == ConnectionLimits(total=total)
    assert process.now == (soft, files[1])
