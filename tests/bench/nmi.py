"""NMI as a process with 110 pods and warm tokens, its log going to a file; beside it an empty application."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.sandbox.options import SandboxOptions, identity_id
from apps.sandbox.sandbox import Sandbox
from tests.bench.figures import Figure
from tests.bench.load import ADDRESSES

TOKEN = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://management.azure.com/"
CRDS = tuple(sorted((Path(__file__).parents[2] / "deploy/chart/crds").glob("*.yaml")))
SECONDS = 3.0
CASES = ((1, "keep-alive"), (16, "keep-alive"), (64, "keep-alive"), (16, "close"))
ORIGINAL_PER_S = 2070
"""The best figure of the original on such a machine, with 16 connections (docs/architecture.md)."""


@dataclass(frozen=True)
class Load:
    """What the clients saw, and what the server spent on each request."""

    per_s: float
    p99_ms: float
    cpu_us: float


def run() -> list[Figure]:
    """Measure; takes about half a minute."""
    return asyncio.run(_run())


async def _run() -> list[Figure]:
    async with _nmi() as (nmi, port), _empty() as (empty, empty_port):
        await _load(nmi, port, 64, "keep-alive", seconds=0.5)  # fetches the token
        figures: list[Figure] = []
        for connections, kind in CASES:
            ours = await _load(nmi, port, connections, kind)
            floor = await _load(empty, empty_port, connections, kind)
            figures += _figures(f"{connections} x {kind}", ours, floor)
        figures.append(Figure("NMI memory (PSS), 110 pods, after load", pss_mb(nmi), "MB", "< 75"))
        return figures


def _figures(case: str, ours: Load, floor: Load) -> Iterator[Figure]:
    aimed = case == "16 x keep-alive"
    note = f"empty app: {floor.per_s:,.0f}; p99 {ours.p99_ms:.1f} ms"
    yield Figure(f"warm tokens a second, {case}", ours.per_s, "/s", f">= {10 * ORIGINAL_PER_S}" if aimed else "", note)
    if aimed:
        yield Figure(f"99th percentile, {case}", ours.p99_ms, "ms", "< 5")
    ratio = f"{ours.cpu_us / floor.cpu_us:.2f} times the empty app's {floor.cpu_us:.0f} us"
    yield Figure(f"CPU for a token, {case}", ours.cpu_us, "us", "< 150" if aimed else "", ratio)


async def _load(server: Process, port: int, connections: int, kind: str, seconds: float = SECONDS) -> Load:
    before_s = _cpu_s(server)
    argv = ("-m", "tests.bench.load", str(port), TOKEN, str(connections), str(seconds), kind)
    client = await asyncio.create_subprocess_exec(sys.executable, *argv, stdout=PIPE)
    out, _ = await client.communicate()
    if client.returncode:
        raise RuntimeError(f"the clients failed: {out.decode()}")
    seen: dict[str, Any] = json.loads(out)
    return Load(seen["per_s"], seen["p99_ms"], (_cpu_s(server) - before_s) / seen["requests"] * 1e6)


@asynccontextmanager
async def _nmi() -> AsyncIterator[tuple[Process, int]]:
    with tempfile.TemporaryFile() as log:
        async with Sandbox(SandboxOptions(crds=CRDS, run_pods=False)) as sandbox:
            _fill(sandbox)
            node = sandbox.options.nodes[0].name
            host, _, metadata_port = sandbox.imds_urls[node].removeprefix("http://").partition(":")
            flags = (
                *(f"--node={node}", "--nmi-port=0", "--http-probe-port=0", "--prometheus-port=0"),
                *(f"--metadata-ip={host}", f"--metadata-port={metadata_port}"),
                *("--interception=false", "--allow-network-plugin-kubenet"),
            )
            environ = {**os.environ, **sandbox.client_environment}
            async with program(("-m", "apps.nmi", *flags), environ, stderr=log) as process:
                yield process, await _port_in(log.fileno())


@asynccontextmanager
async def _empty() -> AsyncIterator[tuple[Process, int]]:
    async with program(("-m", "tests.bench.empty"), os.environ, stdout=PIPE) as process:
        assert process.stdout is not None
        yield process, int(await process.stdout.readline())


@asynccontextmanager
async def program(argv: tuple[str, ...], environ: Mapping[str, str], **streams: Any) -> AsyncIterator[Process]:
    """A Python program, which ends with the context."""
    process = await asyncio.create_subprocess_exec(sys.executable, *argv, env=dict(environ), stdin=DEVNULL, **streams)
    try:
        yield process
    finally:
        process.terminate()
        await process.wait()


async def _port_in(log: int) -> int:
    async with asyncio.timeout(20):
        while True:
            for line in os.pread(log, 65536, 0).decode().splitlines():
                if "listening on" in line:
                    return int(line.rpartition(":")[2])
            await asyncio.sleep(0.05)  # the log is a file, which tells nobody that it grows


def _fill(sandbox: Sandbox) -> None:
    """Let there be 110 pods with an assigned identity."""
    node = sandbox.options.nodes[0]
    made = sandbox.azure.add_identity(identity_id("bench"))
    sandbox.azure.attach(node.host_id, [made.resource_id])
    reference = {
        "azureIdentityRef": made_object(
            "AzureIdentity", "bench", resourceID=made.resource_id, clientID=made.principal.client_id
        ),
        "azureBindingRef": made_object("AzureIdentityBinding", "bench", azureIdentity="bench", selector="bench"),
    }
    for number in range(1, ADDRESSES + 1):
        name, address = f"pod-{number}", f"127.1.0.{number}"
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}}
        spec = {"nodeName": node.name, "containers": [{"name": "main", "image": "none"}]}
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
        sandbox.cluster.create({**pod, "spec": spec, "status": status})
        assignment = made_object(
            "AzureAssignedIdentity", name, **reference, pod=name, podNamespace="default", nodename=node.name
        )
        assignment["metadata"]["labels"] = {"nodename": node.name}
        sandbox.cluster.create({**assignment, "status": {"status": "Assigned", "availableReplicas": 1}})


def made_object(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    """An object of one of the four kinds."""
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": "aadpodidentity.k8s.io/v1", "kind": kind, "metadata": metadata, "spec": spec}


def _cpu_s(process: Process) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pss_mb(process: Process) -> float:
    """The memory of *process*, with its share of what it shares."""
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
