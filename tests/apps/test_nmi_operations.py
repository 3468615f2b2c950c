"""What the operator of an NMI meets: its probes, its log, its tokens forgotten, a lost API server, its end."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from apps.sandbox.faults import Fault
from apps.sandbox.hosts import UserAssigned
from tests.apps.daemons import PATIENCE_S, Daemon, daemon
from tests.apps.raw_http import Reply, connect, request, send
from tests.apps.stage import VAULT, Stage, free_port, nmi_flags, now_s, stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

AT_ONCE_S = 3.0
"""What an answer without a wait may take on a busy machine."""
UNKNOWN_S = 1.5 + AT_ONCE_S
"""What the refusal of a request from an unknown address may take."""
END_S = 6.0  # of the 10 s that requests may take
"""What the end may take: two seconds, and one for a busy machine."""
KNOWN, LATE, NOBODY = "127.1.9.1", "127.1.9.2", "127.1.9.99"
"""The addresses of a pod with an identity, of one that appears later, and of none."""


@dataclass
class Nmi:
    """An NMI, the stage it is on, and its two other ports."""

    daemon: Daemon
    stage: Stage
    probe: int
    metrics: int

    async def page(self, path: str, *, method: str = "GET", address: str = "127.0.0.1") -> Reply:
        return await send(self.probe, request(path, method=method, headers={}), address=address)

    async def ready(self) -> tuple[int, str]:
        reply = await self.page("/readyz")
        return reply.status, reply.body.decode().rstrip("\n")

    async def is_probed(self) -> bool:
        """Whether the probe answers already, which it does a moment after NMI listens."""
        assert self.daemon.process.returncode is None, self.daemon.output
        with suppress(ConnectionRefusedError):
            await self.ready()
            return True
        return False

    async def is_ready(self) -> bool:
        return await self.ready() == (200, "ready")

    async def is_busy(self, requests: int) -> bool:
        """Whether it has so many requests that are not answered yet."""
        page = await send(self.metrics, request("/metrics", headers={}), address="127.0.0.1")
        return f"aadpodidentity_nmi_waiting_requests {requests}\n" in page.body.decode()

    async def token(self, address: str = KNOWN, resource: str = VAULT) -> Reply:
        return await self.stage.token(address, resource=resource)

    def asking(self, address: str, resource: str = VAULT) -> asyncio.Task[Reply]:
        return asyncio.create_task(self.token(address, resource))


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110  # another process sets no event
            await asyncio.sleep(0.01)


@dataclass
class Operations:
    """The sandbox, with a pod at KNOWN, and the NMIs of this node."""

    stage: Stage
    identity: UserAssigned

    async def start(self, *flags: str) -> Nmi:
        """Start an NMI that listens, and whose probe answers."""
        probe, metrics = free_port(), free_port()
        own = replace(self.stage, nmi_port=0)
        running = await own.nmi(f"--http-probe-port={probe}", f"--prometheus-port={metrics}", *flags)
        started = Nmi(running, own, probe, metrics)
        await until(started.is_probed)
        return started

    @property
    def node(self) -> str:
        return self.stage.sandbox.options.nodes[0].name

    def calls(self, resource: str) -> int:
        """How often the node's metadata service was asked for a token for *resource*."""
        return len(self.stage.sandbox.faults.seen(f"imds/{self.node}", match=f"resource=[^&]*{resource}"))

    def lose_api_server(self, **fault: Any) -> None:
        """Let the API server answer nothing new, and end what it has begun."""
        self.stage.sandbox.faults.add(Fault("kube", times=None, **fault))
        self.stage.sandbox.cut(self.stage.sandbox.kube_tls_url)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def operations() -> AsyncIterator[Operations]:
    async with stage(run_pods=False) as started:
        yield Operations(started, started.assigned_pod("known", KNOWN))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nmi(operations: Operations) -> Nmi:
    """The NMI that works as usual, but for its log."""
    started = await operations.start("--log-format=json", "--find-identity-retry-interval=1")
    await until(started.is_ready)
    return started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def unkept(operations: Operations) -> Nmi:
    """An NMI that keeps no tokens, and lets requests wait long. It is there until the last test ends it."""
    started = await operations.start("--token-cache-max-age=0", "--retry-attempts-for-created=10")
    await until(started.is_ready)
    return started


@pytest.fixture(autouse=True)
def _well_again(operations: Operations) -> Any:
    yield
    operations.stage.sandbox.faults.clear()
    operations.stage.sandbox.imds[operations.node].latency_s = 0.0


# The start


async def test_before_the_pods_are_known_it_is_not_ready_and_requests_wait(operations: Operations) -> None:
    operations.lose_api_server(status=503)
    nmi = await operations.start()
    asking = nmi.asking(KNOWN)

    assert await nmi.ready() == (503, "the pods of this node have not been read from the API server yet")
    assert (await nmi.page("/healthz")).body == b"Not Active"
    assert not asking.done()
    operations.stage.sandbox.faults.clear()
    reply = await asking

    assert reply.status == 200
    assert await nmi.ready() == (200, "ready")
    assert (await nmi.page("/healthz")).body == b"Active"


async def test_on_kubenet_it_stays_up_serves_nobody_and_says_why(operations: Operations, tmp_path: Path) -> None:
    settings = tmp_path / "kubelet"
    settings.write_text("KUBELET_FLAGS=--network-plugin=kubenet\n")
    port, probe = free_port(), free_port()
    flags = (f"--nmi-port={port}", f"--http-probe-port={probe}", f"--kubelet-config={settings}")
    environ = operations.stage.sandbox.client_environment
    own = (*nmi_flags(operations.stage.sandbox), "--allow-network-plugin-kubenet=false", *flags)
    async with daemon("nmi", *own, environ=environ) as started:
        nmi = Nmi(started, operations.stage, probe, 0)
        await started.line("nothing is served")
        await until(nmi.is_probed)

        status, why = await nmi.ready()
        health = await nmi.page("/healthz")
        with pytest.raises(ConnectionRefusedError):
            await connect(port, KNOWN)
        asked_s = now_s()
        code = await started.end()

    assert (status, health.status, health.body) == (503, 200, b"Not Active")
    assert why.startswith(f"{settings} has --network-plugin=kubenet")
    assert "--allow-network-plugin-kubenet" in why
    assert (code, now_s() - asked_s < END_S) == (0, True)


# Probes and log


async def test_at_work_it_is_ready_and_active(nmi: Nmi) -> None:
    health = await nmi.page("/healthz")

    assert await nmi.ready() == (200, "ready")
    assert (health.status, health.body) == (200, b"Active")


async def test_the_log_is_one_json_object_a_line(nmi: Nmi) -> None:
    await nmi.token()
    await nmi.token(NOBODY)
    refused = json.loads(await nmi.daemon.line("status (404)", NOBODY))
    granted = json.loads(await nmi.daemon.line("status (200)", "pod=default/known"))

    assert all(isinstance(json.loads(line)["msg"], str) for line in nmi.daemon.lines)
    assert "reason=PI305" in refused["msg"]
    assert "identity=default/known" in granted["msg"]


# Tokens


async def test_tokens_are_forgotten_when_the_node_asks_for_it(operations: Operations, nmi: Nmi) -> None:
    """As after a change of roles, which a kept token does not show."""
    resource = "https://forgotten.example"
    for _ in range(2):
        assert (await nmi.token(resource=resource)).status == 200
    assert operations.calls("forgotten") == 1

    told = await nmi.page("/tokens/forget", method="POST")
    again = await nmi.token(resource=resource)

    assert told.status == 200
    assert re.fullmatch(rb"[1-9]\d* tokens forgotten\n", told.body)
    assert again.status == 200
    assert operations.calls("forgotten") == 2


@pytest.mark.parametrize(
    ("method", "address", "status"), [("POST", "127.0.0.2", 403), ("POST", KNOWN, 403), ("GET", "127.0.0.1", 405)]
)
async def test_nobody_else_and_no_look_at_the_page_makes_it_forget(
    operations: Operations, nmi: Nmi, method: str, address: str, status: int
) -> None:
    resource = f"https://{method}-{address}.example".lower()
    await nmi.token(resource=resource)

    refused = await nmi.page("/tokens/forget", method=method, address=address)
    await nmi.token(resource=resource)

    assert refused.status == status
    assert operations.calls(f"{method}-{address}".lower()) == 1


async def test_tokens_are_forgotten_on_sighup(operations: Operations, nmi: Nmi) -> None:
    resource = "https://hangup.example"
    await nmi.token(resource=resource)
    before = len(nmi.daemon.lines)

    nmi.daemon.process.send_signal(signal.SIGHUP)
    await nmi.daemon.line("kept tokens are forgotten", after=before)
    await nmi.token(resource=resource)

    assert operations.calls("hangup") == 2
    assert nmi.daemon.process.returncode is None


async def test_no_token_is_kept_where_the_operator_wants_none_kept(operations: Operations, unkept: Nmi) -> None:
    replies = [await unkept.token(resource="https://unkept.example") for _ in range(3)]

    assert [reply.status for reply in replies] == [200] * 3
    assert operations.calls("unkept") == 3


# Programs of the node


def named(name: str) -> dict[str, str]:
    return {"podns": "default", "podname": name}


async def host_token(nmi: Nmi, headers: Mapping[str, str], address: str = "127.0.0.1") -> Reply:
    return await send(nmi.stage.nmi_port, request(f"/host/token?resource={VAULT}", headers=headers), address=address)


async def test_a_program_of_the_node_gets_the_token_of_the_pod_that_it_names(operations: Operations, nmi: Nmi) -> None:
    reply = await host_token(nmi, named("known"))

    body = json.loads(reply.body)
    assert reply.status == 200
    assert set(body) == {"token", "clientid"}
    assert body["clientid"] == body["token"]["client_id"] == operations.identity.principal.client_id
    assert body["token"]["resource"] == VAULT


@pytest.mark.parametrize(
    ("headers", "address", "status"),
    [
        (named("known"), KNOWN, 403),
        (named("known"), "127.0.0.2", 403),
        (named("known") | {"X-Forwarded-For": "127.0.0.1"}, KNOWN, 403),
        ({}, "127.0.0.1", 400),
        ({"podname": "known"}, "127.0.0.1", 400),
        (named("nobody"), "127.0.0.1", 404),
    ],
    ids=["the pod itself", "another address", "a forwarded address", "no pod", "no namespace", "an unknown pod"],
)
async def test_nobody_else_gets_one(nmi: Nmi, headers: Mapping[str, str], address: str, status: int) -> None:
    reply = await host_token(nmi, headers, address)

    assert reply.status == status
    assert b"access_token" not in reply.body


# A lost API server


async def test_when_the_api_server_is_back_new_pods_are_served_without_a_restart(
    operations: Operations, nmi: Nmi
) -> None:
    operations.lose_api_server(action="close")
    late = operations.stage.assigned_pod("late", LATE)
    refused = await nmi.token(LATE)
    operations.stage.sandbox.faults.clear()

    async with asyncio.timeout(10):
        while (reply := await nmi.token(LATE)).status != 200:
            assert reply.status == 404

    assert refused.status == 404
    assert json.loads(reply.body)["client_id"] == late.principal.client_id


LOST: Mapping[str, dict[str, Any]] = {
    "closed": {"action": "close"},
    "silent": {"action": "hang"},
    "overloaded": {"status": 429, "headers": {"retry-after": "5"}},
}


@pytest.mark.parametrize("name", LOST)
async def test_without_the_api_server_known_pods_are_served_and_others_refused_soon(
    operations: Operations, nmi: Nmi, name: str
) -> None:
    await nmi.token()
    operations.lose_api_server(**LOST[name])

    async with asyncio.timeout(AT_ONCE_S):
        kept, new = await nmi.token(), await nmi.token(resource=f"https://{name}.example")
    async with asyncio.timeout(UNKNOWN_S):
        unknown = await nmi.token(NOBODY)

    assert (kept.status, new.status, unknown.status) == (200, 200, 404)
    assert await nmi.ready() == (200, "ready")


# The end


async def test_at_the_end_who_waits_is_told_to_ask_again_and_who_is_being_served_is_served(
    operations: Operations, unkept: Nmi
) -> None:
    operations.stage.running_pod("unassigned", "127.1.9.3")
    operations.stage.sandbox.imds[operations.node].latency_s = 1.0
    waiting = [unkept.asking(address) for address in ("127.1.9.3", "127.1.9.3", NOBODY)]
    served = unkept.asking(KNOWN, "https://last.example")
    await until(lambda: unkept.is_busy(len([*waiting, served])))
    asked_s = now_s()

    unkept.daemon.process.send_signal(signal.SIGTERM)
    refused = await asyncio.gather(*waiting)
    refused_s = now_s() - asked_s
    assert await unkept.ready() == (503, "this NMI is ending")
    code = await unkept.daemon.exit_code()
    ended_s = now_s() - asked_s

    assert [(reply.status, reply.header("retry-after")) for reply in refused] == [(503, "1")] * 3
    assert all("PI203" in reply.body.decode() for reply in refused)
    assert refused_s < AT_ONCE_S
    assert (await served).status == 200
    assert (code, ended_s < END_S) == (0, True)
