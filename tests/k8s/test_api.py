"""The transport: statuses, repetitions, time-outs, limits, identity of the caller."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

from apps.sandbox.faults import Fault
from apps.sandbox.sandbox import Sandbox
from podidentity_core.errors import Conflict, NotFound, PermissionRefused, RefusedError, Throttled, TransientError
from podidentity_k8s.api import JSON_PATCH, Connection, KubeApi
from podidentity_k8s.config import load_credentials
from podidentity_k8s.limits import RateLimit
from tests.k8s.helpers import Relay, SteppedClock, kubeconfig_to, server_port, until

MAPS = "/api/v1/namespaces/default/configmaps"
BODY = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a": "b"}}
PATCH = [{"op": "replace", "path": "/data/a", "value": "c"}]

Call = Callable[[KubeApi], Awaitable[bytes]]
IDEMPOTENT: dict[str, Call] = {
    "GET": lambda api: api.get(f"{MAPS}/m"),
    "PUT": lambda api: api.put(f"{MAPS}/m", BODY),
    "PATCH": lambda api: api.patch(f"{MAPS}/m", PATCH, content_type=JSON_PATCH),
    "DELETE": lambda api: api.delete(f"{MAPS}/m"),
}


@pytest.fixture
def stepped() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
def api(connection: Connection, stepped: SteppedClock) -> KubeApi:
    return KubeApi(connection, clock=stepped, random=lambda: 1.0)


@pytest.mark.parametrize("method", IDEMPOTENT)
async def test_a_transient_failure_is_repeated_twice(
    sandbox: Sandbox, api: KubeApi, stepped: SteppedClock, method: str
) -> None:
    await api.post(MAPS, BODY)
    sandbox.faults.add(Fault("kube", method=method, status=503, times=2))

    await IDEMPOTENT[method](api)

    assert [one.status for one in sandbox.faults.seen("kube", method)] == [503, 503, 200]
    assert stepped.slept_s == [0.2, 0.4]


@pytest.mark.parametrize("method", IDEMPOTENT)
@pytest.mark.parametrize("fault", [{"status": 500}, {"action": "close"}], ids=["status", "closed"])
async def test_a_lasting_failure_is_told_after_three_attempts(
    sandbox: Sandbox, api: KubeApi, method: str, fault: dict[str, object]
) -> None:
    sandbox.faults.add(Fault("kube", method=method, times=None, **fault))  # type: ignore[arg-type]  # some fields

    with pytest.raises(TransientError, match=f"{method} {MAPS}/m"):
        await IDEMPOTENT[method](api)

    # The HTTP client itself sends an idempotent request again when a connection that it had kept turns out closed.
    assert 3 <= len(sandbox.faults.seen("kube", method)) <= (3 if "status" in fault else 6)


async def test_creating_is_not_repeated_when_nobody_knows_what_happened(sandbox: Sandbox, api: KubeApi) -> None:
    sandbox.faults.add(Fault("kube", method="POST", status=500))

    with pytest.raises(TransientError):
        await api.post(MAPS, BODY)

    assert len(sandbox.faults.seen("kube", "POST")) == 1


async def test_creating_is_repeated_when_the_server_was_too_busy_to_try(
    sandbox: Sandbox, api: KubeApi, stepped: SteppedClock
) -> None:
    sandbox.faults.add(Fault("kube", method="POST", status=429, headers={"Retry-After": "3"}))

    await api.post(MAPS, BODY)

    assert stepped.slept_s == [3.0]


async def test_a_long_retry_after_is_left_to_the_caller(sandbox: Sandbox, api: KubeApi) -> None:
    sandbox.faults.add(Fault("kube", status=429, headers={"Retry-After": "60"}))

    with pytest.raises(Throttled) as told:
        await api.get(MAPS)

    assert told.value.retry_after_s == 60


@pytest.mark.parametrize(
    ("status", "error"), [(401, PermissionRefused), (403, PermissionRefused), (404, NotFound), (409, Conflict)]
)
async def test_an_answer_that_will_not_change_is_not_asked_for_again(
    sandbox: Sandbox, api: KubeApi, status: int, error: type[Exception]
) -> None:
    sandbox.faults.add(Fault("kube", status=status, times=None))

    with pytest.raises(error):
        await api.get(MAPS)

    assert len(sandbox.faults.seen("kube")) == 1


async def test_a_proxys_page_is_no_answer_and_is_not_quoted(sandbox: Sandbox, api: KubeApi) -> None:
    page = {"body": "<html>secret</html>", "headers": {"content-type": "text/html"}}
    sandbox.faults.add(Fault("kube", status=502, times=3, **page))  # type: ignore[arg-type]  # two fields
    sandbox.faults.add(Fault("kube", status=200, times=3, **page))  # type: ignore[arg-type]  # as above

    for _ in range(2):
        with pytest.raises(TransientError) as told:
            await api.get(MAPS)
        assert "secret" not in str(told.value)


async def test_a_server_that_never_answers_ends_with_the_time_out(sandbox: Sandbox, connection: Connection) -> None:
    api = KubeApi(connection, clock=SteppedClock(), random=lambda: 1.0, retries=0)
    sandbox.faults.add(Fault("kube", action="hang", times=None))
    started_s = time.monotonic()

    with pytest.raises(TransientError, match="no answer in time"):
        await api.get(MAPS, timeout_s=0.2)
    with pytest.raises(TransientError, match="no answer in time"):
        async with api.stream(MAPS, query={}, head_s=0.2):
            pass

    assert time.monotonic() - started_s < 5


async def test_a_peer_that_died_in_the_middle_ends_with_the_time_out(sandbox: Sandbox) -> None:
    async with Relay(server_port(sandbox.kubeconfig)).running() as relay:
        credentials = await load_credentials(str(kubeconfig_to(relay.port, sandbox.kubeconfig)))
        async with Connection(credentials, user_agent="test") as connection:
            api = KubeApi(connection, clock=SteppedClock(), random=lambda: 1.0, retries=0)
            await api.get(MAPS)
            relay.hold()

            with pytest.raises(TransientError, match="no answer in time"):
                await api.get(MAPS, timeout_s=0.2)


async def test_a_server_that_is_away_is_a_transient_error(sandbox: Sandbox) -> None:
    async with Relay(1).running() as relay:
        credentials = await load_credentials(str(kubeconfig_to(relay.port, sandbox.kubeconfig)))
    async with Connection(credentials, user_agent="test") as connection:
        api = KubeApi(connection, clock=SteppedClock(), random=lambda: 1.0)

        with pytest.raises(TransientError):
            await api.get(MAPS)


async def test_the_limit_holds_work_back_but_not_the_lease(
    sandbox: Sandbox, connection: Connection, stepped: SteppedClock
) -> None:
    work = KubeApi(connection, clock=stepped, random=lambda: 1.0, limit=RateLimit(2, burst=3, clock=stepped))
    lease = KubeApi(connection, clock=stepped, random=lambda: 1.0)

    for _ in range(6):
        await work.get(MAPS)
    held_back_s = list(stepped.slept_s)
    await lease.get(MAPS)

    assert held_back_s == [0.5, 1.0, 1.5]  # the clock stands still: each waits behind the ones before
    assert stepped.slept_s == held_back_s


async def test_a_burst_comes_back_with_time(stepped: SteppedClock) -> None:
    limit = RateLimit(2, burst=2, clock=stepped)
    for _ in range(3):
        await limit.wait()
    stepped.now_s += 60
    stepped.slept_s.clear()

    for _ in range(3):
        await limit.wait()

    assert stepped.slept_s == [0.5]


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    """A server that answers with the headers of the request, and redirects /moved."""

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/moved":
            raise web.HTTPFound("/elsewhere")
        return web.json_response({"path": request.path, **request.headers})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield runner.addresses[0][1]
    await runner.cleanup()


async def test_the_caller_says_who_it_is(echo: int, sandbox: Sandbox) -> None:
    credentials = await load_credentials(str(kubeconfig_to(echo, sandbox.kubeconfig, scheme="http")))
    async with Connection(credentials, user_agent="aad-pod-identity/MIC/v1") as connection:
        headers = json.loads(await KubeApi(connection, clock=SteppedClock(), random=lambda: 1.0).get("/x"))

    assert headers["User-Agent"] == "aad-pod-identity/MIC/v1"
    assert headers["Authorization"] == f"Bearer {sandbox.token}"
    assert sandbox.token not in repr(credentials)


async def test_a_redirect_is_not_followed_with_our_token(echo: int, sandbox: Sandbox) -> None:
    credentials = await load_credentials(str(kubeconfig_to(echo, sandbox.kubeconfig, scheme="http")))
    async with Connection(credentials, user_agent="test") as connection:
        with pytest.raises(RefusedError, match="HTTP 302"):
            await KubeApi(connection, clock=SteppedClock(), random=lambda: 1.0).get("/moved")


async def test_many_calls_at_once_do_not_wait_for_a_free_connection(sandbox: Sandbox, api: KubeApi) -> None:
    sandbox.faults.add(Fault("kube", match="configmaps", action="hang", times=150))
    hanging = [asyncio.create_task(api.get(MAPS, timeout_s=30)) for _ in range(150)]
    await until(lambda: not sandbox.faults.active)

    await api.get("/api/v1/nodes", timeout_s=5)

    for task in hanging:
        task.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)
