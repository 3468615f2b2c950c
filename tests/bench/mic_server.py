"""The API server that MIC is measured on: a real one with its etcd, or the sandbox's on a machine that cannot."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from apps.sandbox.sandbox import Sandbox
from tests.bench.node import CRDS
from tests.bench.processes import cpu_s
from tests.cluster.build import Servers
from tests.cluster.cluster import Cluster
from tests.cluster.control_plane import start_control_plane
from tests.cluster.isolation import RUN
from tests.cluster.network import create_node_network
from tests.cluster.processes import Processes
from tests.cluster.programs import MANIFEST, MIC_ACCOUNT, identity

WRITES = ("POST", "PUT", "PATCH", "APPLY", "DELETE")
_COUNT = re.compile(
    r'^apiserver_request_total\{.*?resource="(?P<resource>[^"]*)".*?verb="(?P<verb>[^"]*)".*?\} (?P<count>\S+)$', re.M
)


@dataclass(frozen=True)
class ApiServer:
    """An API server with our CRDs. *admin* and *mic* are kubeconfigs; MIC's is that of its ServiceAccount, if real.

    *writes* counts what was written, by resource and verb, since the start; *cpu_s* is the server's processor time.
    """

    admin: Path
    mic: Path
    writes: Callable[[], Counter[tuple[str, str]]]
    cpu_s: Callable[[], float]


@contextmanager
def real_server(servers: Servers) -> Iterator[ApiServer]:
    """Start etcd and kube-apiserver in the namespaces of this run (tests/cluster/isolation.py)."""
    create_node_network()
    logs = RUN / "logs"
    logs.mkdir()
    processes = Processes(logs)
    try:
        control_plane = start_control_plane(servers, processes, RUN)
        with closing(Cluster(control_plane)) as cluster, control_plane.admin_client() as client:
            cluster.apply(CRDS[0].parent, MANIFEST)
            # A server delays creations by 2 s while a CRD is newer than that.
            cluster.create(identity("first", resource_id="", client_id=""))
            cluster.delete("AzureIdentity", "first")
            yield ApiServer(
                control_plane.admin_kubeconfig(),
                cluster.kubeconfig_of(MIC_ACCOUNT),
                lambda: _counted(client),
                lambda: cpu_s(control_plane.apiserver.pid),
            )
    finally:
        processes.stop_all()
        shutil.rmtree(logs)


def sandbox_server(sandbox: Sandbox) -> ApiServer:
    """The sandbox's own, which runs in the benchmark's process and checks no rights."""

    def writes() -> Counter[tuple[str, str]]:
        return Counter(
            (_resource_of(seen.path), seen.method) for seen in sandbox.faults.seen("kube") if seen.method in WRITES
        )

    return ApiServer(sandbox.kubeconfig, sandbox.kubeconfig, writes, lambda: 0.0)


def _counted(client: httpx.Client) -> Counter[tuple[str, str]]:
    counted: Counter[tuple[str, str]] = Counter()
    for found in _COUNT.finditer(client.get("/metrics").raise_for_status().text):
        if found["verb"] in WRITES:
            counted[found["resource"], found["verb"]] += int(float(found["count"]))
    return counted


def _resource_of(path: str) -> str:
    """Return the resource of a request about a namespaced object or a collection of them."""
    after = path.partition("/namespaces/")[2].split("/")
    return after[1] if len(after) > 1 else path.rsplit("/", 1)[-1]
