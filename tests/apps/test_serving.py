"""Listeners, probes, metrics pages and termination, over real sockets."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from apps import serving
from apps.serving import Application, BindError, Receive, Scope, Send, Server
from podidentity_core.errors import ConfigurationError

DEADLINE_S = 10


async def peer(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the caller's address as the server sees it."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["client"][0].encode()})


class Slow:
    """An application whose answer comes when the test says so."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.cancelled = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.set()
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        await peer(scope, receive, send)


@asynccontextmanager
async def served(app: Application, **options: bool) -> AsyncIterator[Server]:
    server = await serving.start_server(app, "127.0.0.1", 0, flag="--nmi-port", **options)
    try:
        yield server
    finally:
        await server.stop(0)


async def ask(
    server: Server, path: str = "/", *, method: str = "GET", host: str = "127.0.0.1", **headers: str
) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, timeout=DEADLINE_S) as client:
        return await client.request(method, f"http://{host}:{server.port}{path}", headers=headers)


async def test_a_caller_cannot_choose_its_address() -> None:
    async with served(peer) as server:
        answer = await ask(server, **{"X-Forwarded-For": "10.244.0.99", "Forwarded": "for=10.244.0.99"})

    assert answer.content == b"127.0.0.1"


@pytest.mark.parametrize("date_header", [True, False])
async def test_answers_name_no_server_and_the_date_if_wanted(date_header: bool) -> None:
    async with served(peer, date_header=date_header) as server:
        answer = await ask(server)

    assert "server" not in answer.headers
    assert ("date" in answer.headers) is date_header


async def test_the_date_goes_with_the_clock() -> None:
    async with served(peer) as server, asyncio.timeout(DEADLINE_S):
        first = (await ask(server)).headers["date"]
        while (await ask(server)).headers["date"] == first:  # noqa: ASYNC110  # only a request can tell
            await asyncio.sleep(0.1)


async def test_a_taken_port_is_told_with_address_flag_and_remedy(taken: int) -> None:
    with pytest.raises(BindError) as caught:
        await serving.start_server(peer, "127.0.0.1", taken, flag="--nmi-port")

    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1:{taken}: address already in use; "
        "stop the program that uses it, or choose another port with --nmi-port"
    )
    assert isinstance(caught.value, ConfigurationError)


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("192.0.2.1", "cannot listen on 192.0.2.1:0: cannot assign requested address; this machine does not have"),
        ("a..b", "cannot listen on a..b:0: no such host; choose another address, or another port with --nmi-port"),
    ],
)
async def test_a_wrong_address_is_told_with_a_remedy(host: str, message: str) -> None:
    with pytest.raises(BindError) as caught:
        await serving.start_server(peer, host, 0, flag="--nmi-port")

    assert str(caught.value).startswith(message)


async def test_stop_lets_a_running_request_end_and_takes_no_other() -> None:
    slow = Slow()
    async with served(slow) as server:
        running = asyncio.create_task(ask(server))
        await slow.asked.wait()

        stopping = asyncio.create_task(server.stop(DEADLINE_S))
        await asyncio.sleep(0)  # lets it begin
        refused = await is_refused(server.port)
        slow.may_answer.set()
        await stopping

        assert refused
        assert (await running).status_code == 200
        assert not slow.cancelled


async def is_refused(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


async def test_stop_cancels_what_outlasts_the_grace() -> None:
    slow = Slow()
    async with served(slow) as server:
        running = asyncio.create_task(ask(server))
        await slow.asked.wait()

        async with asyncio.timeout(DEADLINE_S):
            await server.stop(0.01)

        assert slow.cancelled
        assert (await running).status_code == 500


async def test_stop_does_not_wait_for_idle_connections() -> None:
    async with served(peer) as server, httpx.AsyncClient(trust_env=False) as client:
        await client.get(f"http://127.0.0.1:{server.port}/")

        async with asyncio.timeout(DEADLINE_S):
            await server.stop(grace_s=3600)

        assert await is_refused(server.port)


async def test_a_stopped_servers_port_is_free_again() -> None:
    first = await serving.start_server(peer, "127.0.0.1", 0, flag="--nmi-port")
    await ask(first)
    await first.stop(0)

    second = await serving.start_server(peer, "127.0.0.1", first.port, flag="--nmi-port")
    answer = await ask(second)
    await second.stop(0)

    assert answer.status_code == 200


async def test_a_server_leaves_the_signals_alone() -> None:
    handled = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in handled]

    async with served(peer):
        assert [signal.getsignal(number) for number in handled] == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_termination_is_the_first_signal_and_later_ones_are_ignored(number: signal.Signals) -> None:
    loop = asyncio.get_running_loop()
    terminated = serving.wait_for_termination(loop)
    try:
        os.kill(os.getpid(), number)
        assert await asyncio.wait_for(terminated, DEADLINE_S) is number

        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0)
        assert terminated.result() is number
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        loop.remove_signal_handler(signal.SIGINT)


async def test_the_servers_own_chatter_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="uvicorn")
    async with served(peer) as server:
        await ask(server)

    assert [record for record in caplog.records if record.name.startswith("uvicorn")] == []
