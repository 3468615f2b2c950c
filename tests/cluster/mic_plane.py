"""A control plane of its own, beside that of the tier, whose parts may fail: no other test notices.

MIC, NMI ──────────────▶ kube-apiserver :7443 ──▶ relay :2477 (late) ──▶ etcd :2479
    └──▶ relay :7444 (cuts) ──▶┘                  the tests read etcd itself ──▶┘
"""

import base64
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from tests.cluster.build import Servers
from tests.cluster.certificates import Certificates, create_certificates
from tests.cluster.cluster import Cluster, Object
from tests.cluster.control_plane import SERVER_NAMES, ControlPlane, apiserver_flags, etcd_flags
from tests.cluster.mic_relay import Relay, running_relay
from tests.cluster.network import NODE_ADDRESS
from tests.cluster.processes import Process, Processes
from tests.cluster.programs import MANIFEST, PROJECT, identity
from tests.cluster.waiting import until

PORT, FRONT_PORT = 7443, 7444
ETCD_RELAY_PORT, ETCD_PORT, ETCD_PEER_PORT = 2477, 2479, 2480
START_S = 60
ASSIGNMENTS = "/registry/aadpodidentity.k8s.io/azureassignedidentities/"

KILLED, SILENT = "killed", "silent"
WAYS_TO_BE_AWAY = (KILLED, SILENT)


@dataclass
class Plane:
    """A running etcd and kube-apiserver. *front* relays to the API server, *back* from it to etcd."""

    control_plane: ControlPlane
    servers: Servers
    processes: Processes
    front: Relay
    back: Relay
    apiserver: Process

    @property
    def behind_relay(self) -> ControlPlane:
        """Return the control plane as those see it who come to it by the relay."""
        folder = self.control_plane.folder / "front"
        folder.mkdir(exist_ok=True)
        return replace(self.control_plane, url=f"https://127.0.0.1:{FRONT_PORT}", folder=folder)

    def go_away(self, how: str) -> None:
        """Let the API server end as in a crash, or say nothing any more while its connections stay open."""
        if how == KILLED:
            self.apiserver.kill()
        else:
            self.apiserver.send(signal.SIGSTOP)

    def come_back(self, how: str) -> None:
        """Undo `go_away`, and return when the API server is ready."""
        if how == KILLED:
            self.apiserver = start_apiserver(self.servers, self.processes, self.control_plane.certificates)
        else:
            self.apiserver.send(signal.SIGCONT)
        wait_until_ready(self.control_plane, self.apiserver)

    def stored_assignments(self) -> list[Object]:
        """Return the AzureAssignedIdentities as etcd has them, which answers whatever ails the API server."""
        first = ASSIGNMENTS.encode()
        wanted = {"key": _encoded(first), "range_end": _encoded(first[:-1] + bytes([first[-1] + 1]))}
        answer = httpx.post(f"http://127.0.0.1:{ETCD_PORT}/v3/kv/range", json=wanted, trust_env=False)
        found: list[dict[str, Any]] = answer.raise_for_status().json().get("kvs", [])
        return [json.loads(base64.b64decode(entry["value"])) for entry in found]


@contextmanager
def running_plane(servers: Servers, processes: Processes, folder: Path) -> Iterator[Plane]:
    """Start etcd, both relays and the API server, with their data in *folder*; whoever owns *processes* stops them."""
    folder.mkdir()
    certificates = create_certificates(folder, ["127.0.0.1", NODE_ADDRESS, "10.96.0.1"], SERVER_NAMES)
    etcd_url = f"http://127.0.0.1:{ETCD_PORT}"
    own = {
        "--listen-client-urls": etcd_url,
        "--advertise-client-urls": etcd_url,
        "--listen-peer-urls": f"http://127.0.0.1:{ETCD_PEER_PORT}",
    }
    processes.start("etcd", [servers.etcd, *_with(etcd_flags(folder / "etcd"), own)])
    with running_relay(ETCD_RELAY_PORT, ETCD_PORT) as back, running_relay(FRONT_PORT, PORT) as front:
        apiserver = start_apiserver(servers, processes, certificates)
        control_plane = ControlPlane(f"https://127.0.0.1:{PORT}", certificates, apiserver, folder)
        wait_until_ready(control_plane, apiserver)
        yield Plane(control_plane, servers, processes, front, back, apiserver)


def start_apiserver(servers: Servers, processes: Processes, certificates: Certificates) -> Process:
    """Start kube-apiserver on the port and with the data that it always has here."""
    own = {"--etcd-servers": f"http://127.0.0.1:{ETCD_RELAY_PORT}", "--secure-port": str(PORT)}
    flags = _with(apiserver_flags(certificates), own)
    return processes.start("kube-apiserver", [servers.apiserver, *flags])


def wait_until_ready(control_plane: ControlPlane, apiserver: Process) -> None:
    """Return when the API server says that it is ready."""

    def is_ready() -> bool:
        assert apiserver.exit_code is None, f"kube-apiserver ended:\n{apiserver.tail()}"
        try:
            return client.get("/readyz").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    with control_plane.admin_client() as client:
        until(is_ready, "kube-apiserver is ready", within_s=START_S)


def install(cluster: Cluster) -> None:
    """Apply our CRDs and the RBAC manifest, and return when the API server lets their objects through."""
    cluster.apply(PROJECT / "deploy" / "chart" / "crds", MANIFEST)
    cluster.create(identity("first", resource_id="", client_id=""))  # takes 2 s: the kind is new
    cluster.delete("AzureIdentity", "first")


def _with(flags: list[str], own: dict[str, str]) -> list[str]:
    """Return *flags* with other values for some of them."""
    kept = [flag for flag in flags if flag.partition("=")[0] not in own]
    assert len(kept) == len(flags) - len(own), f"not all of {list(own)} are in {flags}"
    return [*kept, *(f"{name}={value}" for name, value in own.items())]


def _encoded(key: bytes) -> str:
    return base64.b64encode(key).decode()
