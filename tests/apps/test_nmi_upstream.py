"""NMI as a process, with a metadata service that is slow, throttled, or in trouble.

The service takes 60 ms for a token, and refuses more than 20 calls a second and 5 at once, as Azure's does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlencode

import aiohttp
import pytest
import pytest_asyncio
from azure.core.pipeline.transport import AioHttpTransport
from azure.identity.aio import ManagedIdentityCredential

from apps.sandbox.faults import Fault
from apps.sandbox.options import identity_id
from apps.sandbox.resources import PODS
from tests.apps.daemons import Daemon, daemon
from tests.apps.impatient_nmi import ANSWER_LIMIT_S
from tests.apps.raw_http import Reply, connect, parsed, request
from tests.apps.stage import API, VAULT, Stage, nmi_flags, now_s, stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

LATENCY_S = 0.06
IDENTITIES = 20
RESOURCES = 10
PATIENCE_S = 30.0
AT_ONCE_S = 3.0
"""What an answer without a wait may take on a busy machine: less than any wait for the service."""
BUSY = "https://busy.example"


@dataclass
class Pod:
    """A pod with one identity."""

    address: str
    client_id: str


@dataclass
class Node:
    """NMI with its pods; *imds* is the name of its metadata service in the sandbox's records."""

    stage: Stage
    nmi: Daemon
    pods: list[Pod]
    imds: str

    async def ask(self, pod: Pod, resource: str) -> Reply:
        """Ask for a token on a connection of its own."""
        query = urlencode({"api-version": "2018-02-01", "resource": resource})
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await connect(self.stage.nmi_port, pod.address)
            writer.write(request(f"/metadata/identity/oauth2/token?{query}"))
            raw = await reader.read()
            writer.close()
        return parsed(raw)

    async def ask_sdk(self, pod: Pod, resource: str) -> str:
        """Ask as an application does, whose library tries again as it is used to."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(local_addr=(pod.address, 0))) as session:
            transport = AioHttpTransport(session=session, session_owner=False)
            async with ManagedIdentityCredential(transport=transport) as credential:
                return str((await credential.get_token(f"{resource}/.default")).token)

    def calls(self, match: str = "") -> list[Any]:
        """What the metadata service was asked."""
        return list(self.stage.sandbox.faults.seen(self.imds, match=match))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node() -> AsyncIterator[Node]:
    async with stage(run_pods=False, enforce_limits=True) as started:
        sandbox = started.sandbox
        name = sandbox.options.nodes[0].name
        sandbox.imds[name].latency_s = LATENCY_S
        pods = [create_pod(started, f"pod-{number}", f"127.1.9.{number + 1}") for number in range(IDENTITIES)]
        nmi = await started.stack.enter_async_context(
            daemon("nmi", *nmi_flags(sandbox), environ=sandbox.client_environment, module="tests.apps.impatient_nmi")
        )
        started.nmi_port = int((await nmi.line("listening on 127.0.0.1:")).rpartition(":")[2])
        yield Node(started, nmi, pods, f"imds/{name}")


def create_pod(started: Stage, name: str, address: str) -> Pod:
    """A running pod whose identity is on its node already."""
    sandbox = started.sandbox
    node = sandbox.options.nodes[0]
    made = sandbox.azure.add_identity(identity_id(name))
    sandbox.azure.attach(node.host_id, [made.resource_id])
    status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
    spec = {"nodeName": node.name, "containers": [{"name": "main", "image": "none"}]}
    sandbox.cluster.create({**thing("v1", "Pod", name, **spec), "status": status}, PODS)
    identity = thing(API, "AzureIdentity", name, type=0, resourceID=made.resource_id, clientID=made.principal.client_id)
    binding = thing(API, "AzureIdentityBinding", name, azureIdentity=name, selector=name)
    whose = {"pod": name, "podNamespace": "default", "nodename": node.name}
    assignment = thing(API, "AzureAssignedIdentity", name, azureIdentityRef=identity, azureBindingRef=binding, **whose)
    assignment["metadata"]["labels"] = {"nodename": node.name}
    sandbox.cluster.create({**assignment, "status": {"status": "Assigned", "availableReplicas": 1}})
    return Pod(address, made.principal.client_id)


def thing(version: str, kind: str, name: str, **spec: Any) -> dict[str, Any]:
    """An object of the namespace default."""
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": "default"}, "spec": spec}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kept(node: Node) -> str:
    """The token that NMI has for the first pod already."""
    async with asyncio.timeout(PATIENCE_S):
        while (reply := await node.ask(node.pods[0], VAULT)).status == 503:
            pass  # at the start, on a busy machine, the metadata service may be too slow for this NMI
    assert reply.status == 200
    return token_of(reply)


def token_of(reply: Reply) -> str:
    return str(json.loads(reply.body)["access_token"])


@pytest.fixture(autouse=True)
def _well_again(node: Node) -> Any:
    yield
    node.stage.sandbox.faults.clear()


# As slow and as strict as Azure's


async def test_200_tokens_at_once_are_all_had_without_a_refusal_and_every_identity_has_its_turn(
    node: Node, kept: str
) -> None:
    began_s = now_s()
    asking = [
        asyncio.create_task(node.ask(pod, f"{BUSY}/{number}")) for pod in node.pods for number in range(RESOURCES)
    ]
    warm, waits = [], []
    while not all(task.done() for task in asking):
        asked_s = now_s()
        warm.append(await node.ask(node.pods[0], VAULT))
        waits.append(now_s() - asked_s)
        await asyncio.sleep(0.05)
    replies = [task.result() for task in asking]

    assert [reply.status for reply in replies] == [200] * IDENTITIES * RESOURCES
    calls = node.calls("busy")
    assert [call.status for call in calls] == [200] * IDENTITIES * RESOURCES
    assert {token_of(reply) for reply in warm} == {kept}
    assert max(waits) < AT_ONCE_S
    served = [parse_qs(call.query)["client_id"][0] for call in calls]
    assert max(served.index(pod.client_id) for pod in node.pods) < len(served) / 2
    print(f"{len(replies)} tokens in {now_s() - began_s:.1f} s; {len(warm)} kept ones, the slowest {max(waits):.3f} s")


# In trouble


@dataclass
class Trouble:
    """What the service does, what a pod gets that has no token yet, within which time, and when it is to ask again."""

    fault: dict[str, Any]
    status: int
    within_s: float
    retry_after: str | None = None


WITH_RETRIES_S = 1.5 + AT_ONCE_S
"""Two waits between three tries, of half a second and a second at most."""

TROUBLES = {
    "429 with Retry-After": Trouble({"status": 429, "headers": {"retry-after": "3"}}, 429, AT_ONCE_S, "3"),
    "500": Trouble({"status": 500}, 503, WITH_RETRIES_S),
    "silence": Trouble({"action": "hang"}, 503, ANSWER_LIMIT_S + AT_ONCE_S),
    "closed connections": Trouble({"action": "close"}, 503, WITH_RETRIES_S),
    "an expired token": Trouble(
        {"status": 200, "body": {"access_token": "x", "expires_on": "1", "token_type": "Bearer"}}, 503, AT_ONCE_S
    ),
}


@pytest.mark.parametrize("name", TROUBLES)
async def test_in_trouble_kept_tokens_are_served_and_who_has_none_gets_one_by_asking_again(
    node: Node, kept: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The application's library has its token in the end, and its program knows of no trouble."""
    trouble, resource = TROUBLES[name], f"https://{name.replace(' ', '-').lower()}.example"
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", f"http://127.0.0.1:{node.stage.nmi_port}")
    node.stage.sandbox.faults.add(Fault("imds", times=None, **trouble.fault))

    asked_s = now_s()
    cold = asyncio.create_task(node.ask(node.pods[1], resource))
    application = asyncio.create_task(node.ask_sdk(node.pods[2], f"{resource}/application"))
    warm = await node.ask(node.pods[0], VAULT)
    warm_s = now_s() - asked_s
    refused = await cold
    cold_s = now_s() - asked_s
    await node.nmi.line(f"status ({trouble.status})", f"{resource}/application")
    node.stage.sandbox.faults.clear()
    well = await node.ask(node.pods[1], resource)

    assert (warm.status, token_of(warm)) == (200, kept)
    assert warm_s < AT_ONCE_S
    assert (refused.status, refused.header("retry-after")) == (trouble.status, trouble.retry_after)
    assert set(json.loads(refused.body)) == {"error", "error_description"}
    assert cold_s < trouble.within_s
    assert well.status == 200
    async with asyncio.timeout(PATIENCE_S):
        assert await application


@pytest.mark.parametrize("status", [400, 401, 403])
async def test_where_the_service_decides_the_pod_gets_its_status_its_words_and_the_headers_that_matter(
    node: Node, status: int
) -> None:
    body = b'{"error":"unknown_source","error_description":"Unknown Source <uri>"}'
    matter = {"content-type": "text/plain", "server": "IMDS/150", "x-ms-request-id": "1-2", "www-authenticate": "x"}
    headers = {**matter, "date": "Fri, 31 Dec 1999 23:59:59 GMT", "set-cookie": "a=b", "keep-alive": "timeout=5"}
    node.stage.sandbox.faults.add(Fault("imds", times=None, status=status, body=body.decode(), headers=headers))

    reply = await node.ask(node.pods[1], f"https://refused-{status}.example")

    assert (reply.status, reply.body) == (status, body)
    framing = {"content-length": str(len(body)), "connection": "close"}
    assert {**dict(reply.headers), **framing} == {**matter, **framing}
    assert len(node.calls(f"refused-{status}")) == 1
