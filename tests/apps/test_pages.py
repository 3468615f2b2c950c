"""Probes and metrics, over real sockets."""

import socket
from collections.abc import Awaitable, Callable

import pytest

from apps.metrics import PrometheusMeter
from apps.pages import Page, Text, pages_app, start_metrics, start_probe
from apps.serving import BindError, Server
from tests.apps.test_serving import ask, served


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_the_probe_tells_the_state_of_this_moment(method: str) -> None:
    active = False
    probe = await start_probe(0, lambda: active)

    before = await ask(probe, "/healthz", method=method)
    active = True
    after = await ask(probe, "/healthz", method=method)
    await probe.stop(0)

    assert (before.status_code, before.content) == (200, b"Not Active")
    assert (after.status_code, after.content) == (200, b"Active")
    assert after.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("path", ["/", "/healthz/", "/Healthz", "/metrics", "/debug/pprof/"])
async def test_the_probes_port_has_no_other_page(path: str) -> None:
    probe = await start_probe(0, lambda: True)

    answer = await ask(probe, path)
    await probe.stop(0)

    assert answer.status_code == 404


async def test_metrics_are_rendered_anew_for_each_scrape() -> None:
    meter = PrometheusMeter()
    metrics = await start_metrics(0, meter.render)

    empty = await ask(metrics, "/metrics")
    meter.count("mic_cycle_count")
    full = await ask(metrics, "/metrics")
    await metrics.stop(0)

    assert (empty.status_code, empty.content) == (200, b"")
    assert full.content == meter.render()
    assert full.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


async def test_a_page_that_fails_is_a_500_and_the_server_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    bodies = [b"fine"]
    async with served(pages_app({"/x": Page(lambda: Text(bodies.pop()))})) as server:
        answers = [(await ask(server, "/x")).status_code for _ in range(2)]
        bodies.append(b"fine again")
        answers.append((await ask(server, "/x")).status_code)

    assert answers == [200, 500, 200]
    assert "Exception in ASGI application" in caplog.text


async def test_probe_and_metrics_listen_on_all_interfaces() -> None:
    probe = await start_probe(0, lambda: True)
    hosts = ["127.0.0.1", "127.0.0.9"] + (["[::1]"] if socket.has_dualstack_ipv6() else [])

    answers = [(await ask(probe, "/healthz", host=host)).content for host in hosts]
    await probe.stop(0)

    assert answers == [b"Active"] * len(hosts)


@pytest.mark.parametrize(("start", "flag"), [(start_probe, "--http-probe-port"), (start_metrics, "--prometheus-port")])
async def test_a_port_that_is_taken_on_one_interface_is_taken(
    start: Callable[[int, Callable[[], bytes]], Awaitable[Server]], flag: str, taken: int
) -> None:
    with pytest.raises(BindError, match=rf"^cannot listen on \*:{taken}: address already in use; .* with {flag}$"):
        await start(taken, lambda: b"")


@pytest.mark.parametrize(("method", "status"), [("POST", 200), ("GET", 405), ("HEAD", 405)])
async def test_a_page_that_does_something_answers_to_its_methods_only(method: str, status: int) -> None:
    async with served(pages_app({"/x": Page(lambda: Text(b"done"), methods=("POST",))})) as server:
        assert (await ask(server, "/x", method=method)).status_code == status
