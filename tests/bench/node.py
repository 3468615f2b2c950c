"""A node of the sandbox's cluster with NMI as a process of its own, its log going to a file."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from apps.sandbox.faults import Seen
from apps.sandbox.options import SandboxOptions, identity_id
from apps.sandbox.sandbox import Sandbox
from tests.bench.load import Job, pod_address
from tests.bench.measuring import Server
from tests.bench.processes import SERVERS_CORE, program

CRDS = tuple(sorted((Path(__file__).parents[2] / "deploy/chart/crds").glob("*.yaml")))
IDENTITIES = 10
"""Pod n has identity n % 10."""


TOKEN = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource="
WARM = f"{TOKEN}https://management.azure.com/"
COLD = f"{TOKEN}https://{{}}.vault.example/"
"""What to ask for: always the same, or something else each time."""

_UNLIMITED = "from podidentity_azure import imds; imds.PER_SECOND = 10**6; from apps.nmi.__main__ import main; main()"


@dataclass(frozen=True)
class Node:
    """NMI, and the sandbox around it. The pod after the last one has no identity."""

    pods: int
    server: Server
    sandbox: Sandbox

    def job(self, job: Job, number: int = 0) -> Job:
        """Return *job* for the pods of this node, with numbers from *number* on."""
        return replace(job, pods=self.pods, step=max(1, self.pods // job.connections), number=number)

    def case(self, job: Job) -> str:
        """Say what is special about *job*, for a table."""
        return f"{job.connections} x {'close' if job.close else 'keep-alive'}, {self.pods} pods"

    def slow_imds(self, latency_s: float) -> None:
        """Let the metadata service take so long from now on."""
        (imds,) = self.sandbox.imds.values()
        imds.latency_s = latency_s

    def imds_requests(self) -> Sequence[Seen]:
        """Return what the metadata service was asked since the last time, and forget it."""
        seen = self.sandbox.faults.seen("imds")
        self.sandbox.faults.forget()
        return seen


@asynccontextmanager
async def node(pods: int, *, limited: bool = True) -> AsyncIterator[Node]:
    """A node with *pods* pods that have an identity, and one that has none. No request waits for an identity.

    Unless *limited*, neither IMDS nor NMI counts how often IMDS is asked.
    """
    with tempfile.TemporaryFile() as log:
        async with Sandbox(SandboxOptions(crds=CRDS, run_pods=False, enforce_limits=limited)) as sandbox:
            _fill(sandbox, pods)
            name = sandbox.options.nodes[0].name
            host, _, metadata_port = sandbox.imds_urls[name].removeprefix("http://").partition(":")
            flags = (
                *(f"--node={name}", "--nmi-port=0", "--http-probe-port=0", "--prometheus-port=0"),
                *(f"--metadata-ip={host}", f"--metadata-port={metadata_port}"),
                *("--interception=false", "--allow-network-plugin-kubenet"),
                *("--retry-attempts-for-created=0", "--retry-attempts-for-assigned=0"),
            )
            environ = {**os.environ, **sandbox.client_environment}
            start = ("-m", "apps.nmi") if limited else ("-c", _UNLIMITED)
            async with program((*start, *flags), environ, core=SERVERS_CORE, stderr=log) as process:
                yield Node(pods, Server(process.pid, await _port_in(log.fileno())), sandbox)


async def _port_in(log: int) -> int:
    async with asyncio.timeout(20):
        while True:
            for line in os.pread(log, 65536, 0).decode().splitlines():
                if "listening on" in line:
                    return int(line.rpartition(":")[2])
            await asyncio.sleep(0.05)  # the log is a file, which tells nobody that it grows


def _fill(sandbox: Sandbox, pods: int) -> None:
    references = [_references(sandbox, f"bench-{number}") for number in range(IDENTITIES)]
    for number in range(pods + 1):
        name = f"pod-{number}"
        _create_pod(sandbox, name, pod_address(number))
        if number < pods:
            _assign(sandbox, name, references[number % IDENTITIES])


def _references(sandbox: Sandbox, name: str) -> dict[str, Any]:
    made = sandbox.azure.add_identity(identity_id(name))
    sandbox.azure.attach(sandbox.options.nodes[0].host_id, [made.resource_id])
    identity = made_object("AzureIdentity", name, resourceID=made.resource_id, clientID=made.principal.client_id)
    binding = made_object("AzureIdentityBinding", name, azureIdentity=name, selector=name)
    return {"azureIdentityRef": identity, "azureBindingRef": binding}


def _create_pod(sandbox: Sandbox, name: str, address: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}}
    spec = {"nodeName": sandbox.options.nodes[0].name, "containers": [{"name": "main", "image": "none"}]}
    status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
    sandbox.cluster.create({**pod, "spec": spec, "status": status})


def _assign(sandbox: Sandbox, pod: str, references: dict[str, Any]) -> None:
    node_name = sandbox.options.nodes[0].name
    made = made_object("AzureAssignedIdentity", pod, **references, pod=pod, podNamespace="default", nodename=node_name)
    made["metadata"]["labels"] = {"nodename": node_name}
    sandbox.cluster.create({**made, "status": {"status": "Assigned", "availableReplicas": 1}})


def made_object(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    """An object of one of the four kinds."""
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": "aadpodidentity.k8s.io/v1", "kind": kind, "metadata": metadata, "spec": spec}
