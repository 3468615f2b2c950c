"""MIC as a process of its own with a cluster and an Azure around it, and what it has used and written in a while."""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from apps.sandbox.options import SandboxOptions, identity_id, scale_set_nodes
from apps.sandbox.sandbox import Sandbox
from tests.bench.mic_load import Assignments, Client, client
from tests.bench.mic_server import ApiServer, sandbox_server
from tests.bench.node import CRDS, made_object
from tests.bench.processes import cpu_s, program, pss_mb

READY_S = 30.0


@dataclass(frozen=True)
class Scene:
    """What a case consists of: nodes, spread evenly over scale sets; identities; what Azure takes for an operation."""

    pods: int
    nodes: int
    identities: int
    arm_s: float
    scale_sets: int = 1
    flags: tuple[str, ...] = ()

    def __str__(self) -> str:
        hosts = f"{self.nodes} nodes" if self.scale_sets == 1 else f"{self.nodes} nodes in {self.scale_sets} sets"
        words = f"{self.pods:,} pods, {hosts}, {self.identities} identities, ARM {self.arm_s:g} s"
        return " ".join([words, *self.flags])


@dataclass(frozen=True)
class Used:
    """What happened in a while: writes by resource and verb, requests to ARM by method, processor time."""

    writes: Counter[tuple[str, str]]
    arm: Counter[str]
    mic_cpu_s: float
    server_cpu_s: float
    own_cpu_s: float

    def of(self, resource: str) -> int:
        """Return how often objects of *resource* were written."""
        return sum(count for (name, _), count in self.writes.items() if name == resource)

    def __sub__(self, before: Used) -> Used:
        return Used(
            self.writes - before.writes,
            self.arm - before.arm,
            self.mic_cpu_s - before.mic_cpu_s,
            self.server_cpu_s - before.server_cpu_s,
            self.own_cpu_s - before.own_cpu_s,
        )


@dataclass(frozen=True)
class Bed:
    """A running MIC, and what is around it."""

    scene: Scene
    server: ApiServer
    sandbox: Sandbox
    client: Client
    assignments: Assignments
    pid: int
    log: Path

    def pod(self, name: str, node: int, identity: int) -> dict[str, Any]:
        """Return a pod on the node of that number, with the identity of that number."""
        nodes = self.sandbox.options.nodes
        metadata = {"name": name, "namespace": "default", "labels": {"aadpodidbinding": f"app-{identity}"}}
        spec = {"nodeName": nodes[node % len(nodes)].name, "containers": [{"name": "main", "image": "none"}]}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}

    def pods(self) -> Iterator[dict[str, Any]]:
        """Return the pods of the scene: identities by turns, nodes by chance, the same each time."""
        chance = random.Random(0)  # noqa: S311  # no secret
        for number in range(self.scene.pods):
            yield self.pod(f"pod-{number}", chance.randrange(self.scene.nodes), number % self.scene.identities)

    def used(self) -> Used:
        """Return what was used since the start."""
        arm = Counter(
            "poll" if "/operations/" in seen.path else seen.method for seen in self.sandbox.faults.seen("arm")
        )
        arm["429"] = sum(seen.status == 429 for seen in self.sandbox.faults.seen("arm"))
        return Used(self.server.writes(), arm, cpu_s(self.pid), self.server.cpu_s(), time.process_time())

    def memory_mb(self) -> float:
        """Return MIC's memory (PSS)."""
        return pss_mb(self.pid)

    def dropped_events(self) -> int:
        """Return how many events MIC gave up because too many waited."""
        told = re.findall(rb"(\d+) events were dropped", self.log.read_bytes())
        return sum(map(int, told))


@asynccontextmanager
async def bed(scene: Scene, real: ApiServer | None) -> AsyncIterator[Bed]:
    """Start MIC for *scene*, whose pods do not exist yet, on the *real* server or else on the sandbox's."""
    nodes = tuple(
        node
        for number in range(scene.scale_sets)
        for node in scale_set_nodes(scene.nodes // scene.scale_sets, f"aks-pool{number}-12345678-vmss")
    )
    options = SandboxOptions(
        crds=() if real else CRDS, run_pods=False, nodes=nodes, operation_s=scene.arm_s, enforce_limits=True
    )
    async with AsyncExitStack() as stack:
        sandbox = await stack.enter_async_context(Sandbox(options))
        server = real or sandbox_server(sandbox)
        writing = await stack.enter_async_context(client(server.admin))
        if real:
            await writing.create(_node(node.name, node.provider_id) for node in nodes)
            stack.push_async_callback(writing.wipe)
        await _create_identities(writing, sandbox, scene.identities)
        log = Path(stack.enter_context(TemporaryDirectory())) / "mic.log"
        process = await stack.enter_async_context(_mic(server, sandbox, log, scene.flags))
        seen = await stack.enter_async_context(writing.assignments())
        yield Bed(scene, server, sandbox, writing, seen, process.pid, log)


@asynccontextmanager
async def _mic(
    server: ApiServer, sandbox: Sandbox, log: Path, flags: tuple[str, ...]
) -> AsyncIterator[asyncio.subprocess.Process]:
    argv = (
        *("-m", "apps.mic", f"--kubeconfig={server.mic}", f"--cloudconfig={sandbox.azure_json}"),
        *("--http-probe-port=0", "--prometheus-port=0", *flags),
    )
    environ = {**os.environ, **sandbox.client_environment, "MIC_POD_NAMESPACE": "default"}
    with log.open("wb") as sink:
        async with program(argv, environ, stderr=sink) as process:
            async with asyncio.timeout(READY_S):
                while not _is_synchronized(log):
                    if process.returncode is not None:
                        raise RuntimeError(f"MIC ended with {process.returncode}")
                    await asyncio.sleep(0.05)  # a file tells nobody that it grows
            yield process


def _is_synchronized(log: Path) -> bool:
    return b"pod cache synchronized" in log.read_bytes()


async def _create_identities(writing: Client, sandbox: Sandbox, number: int) -> None:
    for name in (f"id-{one}" for one in range(number)):
        made = sandbox.azure.add_identity(identity_id(name))
        spec = {"type": 0, "resourceID": made.resource_id, "clientID": made.principal.client_id}
        binding = {"azureIdentity": name, "selector": name.replace("id-", "app-")}
        await writing.create(
            (made_object("AzureIdentity", name, **spec), made_object("AzureIdentityBinding", name, **binding))
        )


def _node(name: str, provider_id: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"providerID": provider_id}}
