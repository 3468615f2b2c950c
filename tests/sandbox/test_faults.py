"""Faults on demand, by Python and by the control endpoint, and the record of requests."""

import asyncio
from typing import Any

import httpx
import pytest

from apps.sandbox.faults import Fault
from apps.sandbox.options import identity_id
from apps.sandbox.sandbox import Sandbox
from tests.sandbox.objects import pod

PODS = "/api/v1/namespaces/default/pods"
IMDS_TOKEN = "/metadata/identity/oauth2/token"


async def test_a_status_comes_in_the_servers_own_shape_as_often_as_asked(
    kube: httpx.AsyncClient, arm: httpx.AsyncClient, imds: httpx.AsyncClient, sandbox: Sandbox
) -> None:
    host = sandbox.options.nodes[0].host_id
    sandbox.faults.add(Fault("kube", match="/pods", status=409, times=2))
    sandbox.faults.add(Fault("arm", method="PATCH", status=429, headers={"retry-after": "7"}))
    sandbox.faults.add(Fault("imds", status=500, body={"error": "unknown"}))

    refused = [(await kube.get(PODS)).status_code for _ in range(3)]
    other = await kube.get("/api/v1/nodes")
    read = await arm.get(host, params={"api-version": "2024-11-01"})
    throttled = await arm.patch(host, params={"api-version": "2024-11-01"}, json={})
    broken = await imds.get(IMDS_TOKEN)

    assert refused == [409, 409, 200]
    assert (other.status_code, read.status_code) == (200, 200)
    assert (throttled.status_code, throttled.headers["retry-after"]) == (429, "7")
    assert throttled.json()["error"]["code"] == "TooManyRequests"
    assert (broken.status_code, broken.json()) == (500, {"error": "unknown"})


async def test_a_status_of_the_api_server_is_a_status_object(kube: httpx.AsyncClient, sandbox: Sandbox) -> None:
    sandbox.faults.add(Fault("kube", match="watch=", status=410))

    answer = await kube.get(PODS, params={"watch": "true"})

    assert (answer.status_code, answer.json()["reason"]) == (410, "Expired")


async def test_latency_delays_and_nothing_more(kube: httpx.AsyncClient, sandbox: Sandbox) -> None:
    sandbox.faults.add(Fault("kube", latency_s=0.2))
    loop = asyncio.get_running_loop()

    started = loop.time()
    answer = await kube.get(PODS)
    slow_s = loop.time() - started

    assert answer.status_code == 200
    assert slow_s >= 0.2


async def test_a_closed_connection_has_no_answer(kube: httpx.AsyncClient, sandbox: Sandbox) -> None:
    sandbox.faults.add(Fault("kube", action="close"))

    with pytest.raises(httpx.TransportError):
        await kube.get(PODS)

    assert (await kube.get(PODS)).status_code == 200
    assert [seen.status for seen in sandbox.faults.seen("kube", match="/pods")] == [0, 200]


async def test_a_hanging_request_ends_only_with_the_client(kube: httpx.AsyncClient, sandbox: Sandbox) -> None:
    sandbox.faults.add(Fault("kube", action="hang"))

    with pytest.raises(httpx.ReadTimeout):
        await kube.get(PODS, timeout=0.2)

    assert (await kube.get(PODS)).status_code == 200


@pytest.mark.parametrize("action", ["", "close"])
async def test_a_watch_is_cut_after_some_events(kube: httpx.AsyncClient, sandbox: Sandbox, action: str) -> None:
    for name in "abc":
        sandbox.cluster.create(pod(name))
    sandbox.faults.add(Fault("kube", match="watch=true", cut_after=2, action=action))
    lines: list[str] = []

    async def read() -> None:
        async with kube.stream("GET", PODS, params={"watch": "true"}) as answer:
            async for line in answer.aiter_lines():
                lines.append(line)  # noqa: PERF401 - what came before the cut counts

    if action == "close":
        with pytest.raises(httpx.TransportError):
            await read()
    else:
        await asyncio.wait_for(read(), 5)
    assert len(lines) == 2


async def test_connections_can_be_cut_watches_among_them(kube: httpx.AsyncClient, sandbox: Sandbox) -> None:
    began = asyncio.Event()

    async def watch() -> None:
        async with kube.stream("GET", PODS, params={"watch": "true"}) as answer:
            began.set()
            await answer.aread()

    watching = asyncio.create_task(watch())
    await began.wait()
    sandbox.cut(sandbox.kube_tls_url)
    assert (await kube.get(PODS)).status_code == 200
    assert not watching.done()

    sandbox.cut(sandbox.kube_url)

    with pytest.raises(httpx.TransportError):
        await asyncio.wait_for(watching, 5)
    assert (await kube.get(PODS)).status_code == 200


async def test_faults_can_be_limited_to_one_node_and_cleared(sandbox: Sandbox, imds: httpx.AsyncClient) -> None:
    node = sandbox.options.nodes[0].name
    sandbox.faults.add(Fault("imds/other", status=503, times=None))
    elsewhere = await imds.get("/metadata/versions")
    sandbox.faults.add(Fault(f"imds/{node}", status=503, times=None))
    here = [(await imds.get("/metadata/versions")).status_code for _ in range(2)]
    sandbox.faults.clear()

    assert (elsewhere.status_code, here) == (200, [503, 503])
    assert (await imds.get("/metadata/versions")).status_code == 200


def test_an_unknown_action_is_an_error(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="unknown action"):
        sandbox.faults.add(Fault("kube", action="explode"))


async def test_requests_are_recorded_in_order(kube: httpx.AsyncClient, sandbox: Sandbox) -> None:
    await kube.get(PODS, params={"limit": 1})
    await kube.post(PODS, json=pod("a"))
    await kube.post(PODS, json=pod("a"))

    seen = [(entry.method, entry.path, entry.status) for entry in sandbox.faults.seen("kube")]
    assert seen == [("GET", PODS, 200), ("POST", PODS, 201), ("POST", PODS, 409)]
    assert len(sandbox.faults.seen("kube", "POST")) == 2
    assert len(sandbox.faults.seen(match="limit=1")) == 1
    sandbox.faults.forget()
    assert sandbox.faults.seen() == []


async def test_another_process_can_do_the_same_over_http(kube: httpx.AsyncClient, sandbox: Sandbox) -> None:
    identity = identity_id("x")
    async with httpx.AsyncClient(base_url=sandbox.control_url) as control:
        orders: list[dict[str, Any]] = [
            {"fault": {"server": "kube", "match": "/pods", "status": 503}},
            {"refuse": identity, "code": "LinkedAuthorizationFailed"},
        ]
        for order in orders:
            assert (await control.post("/", json=order)).status_code == 200
        state = (await control.get("/")).json()
        broken = await kube.get(PODS)
        bad = await control.post("/", json={"fault": {"server": "kube", "nonsense": 1}})
        after = (await control.post("/", json={"clear": True, "accept": identity})).json()
        lost = await control.get("/other")

    assert state["faults"][0]["status"] == 503
    assert state["refused"] == {identity.lower(): "LinkedAuthorizationFailed"}
    assert broken.status_code == 503
    assert (bad.status_code, lost.status_code) == (400, 404)
    assert (after["faults"], after["refused"]) == ([], {})
    assert [request["status"] for request in after["requests"]] == [503]
