"""etcd and kube-apiserver on the node's loopback address, with RBAC on."""

import json
import ssl
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.cluster.build import Servers
from tests.cluster.certificates import Certificates, create_certificates
from tests.cluster.network import NODE_ADDRESS
from tests.cluster.processes import Process, Processes
from tests.cluster.waiting import until

URL = "https://127.0.0.1:6443"
ETCD_URL = "http://127.0.0.1:2379"
SERVICE_RANGE = "10.96.0.0/16"
SERVER_NAMES = ["localhost", "kubernetes.default.svc"]
START_S = 60


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """A running API server and what its administrator needs."""

    url: str
    certificates: Certificates
    apiserver: Process
    folder: Path

    def admin_client(self) -> httpx.Client:
        """Return an HTTP client with the administrator's certificate."""
        trust = self._trust()
        trust.load_cert_chain(self.certificates.admin.certificate, self.certificates.admin.key)
        return httpx.Client(base_url=self.url, verify=trust, trust_env=False, timeout=30)

    def anonymous_client(self) -> httpx.Client:
        """Return an HTTP client without credentials; a bearer token may be added to its requests."""
        return httpx.Client(base_url=self.url, verify=self._trust(), trust_env=False, timeout=30)

    def admin_kubeconfig(self) -> Path:
        """Return a kubeconfig of the administrator, for kubectl by hand."""
        pair = self.certificates.admin
        user = {"client-certificate": str(pair.certificate), "client-key": str(pair.key)}
        return self.kubeconfig("admin", user)

    def kubeconfig(self, name: str, user: dict[str, str], namespace: str = "default") -> Path:
        """Write a kubeconfig that authenticates as *user* (the `user` of the file's format) and return it."""
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "test",
                    "cluster": {"server": self.url, "certificate-authority": str(self.certificates.authority)},
                }
            ],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": name, "namespace": namespace}}],
            "current-context": "test",
        }
        file = self.folder / f"{name}.kubeconfig"
        file.touch(mode=0o600)
        file.write_text(json.dumps(content))  # JSON is YAML
        return file

    def _trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certificates.authority))


def start_control_plane(servers: Servers, processes: Processes, folder: Path) -> ControlPlane:
    """Start both servers with their data in *folder*, and return when the API server is ready."""
    certificates = create_certificates(folder, ["127.0.0.1", NODE_ADDRESS, "10.96.0.1"], SERVER_NAMES)
    processes.start("etcd", [servers.etcd, *etcd_flags(folder / "etcd")])
    apiserver = processes.start("kube-apiserver", [servers.apiserver, *apiserver_flags(certificates)])
    control_plane = ControlPlane(URL, certificates, apiserver, folder)
    with control_plane.admin_client() as client:
        until(lambda: _is_ready(client, apiserver), "kube-apiserver is ready", within_s=START_S)
    return control_plane


def etcd_flags(data: Path) -> list[str]:
    """Return etcd's command line: one member, and no wait for a disk that keeps nothing."""
    return [
        f"--data-dir={data}",
        f"--listen-client-urls={ETCD_URL}",
        f"--advertise-client-urls={ETCD_URL}",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def apiserver_flags(certificates: Certificates) -> list[str]:
    """Return kube-apiserver's command line."""
    return [
        f"--etcd-servers={ETCD_URL}",
        "--bind-address=127.0.0.1",
        "--secure-port=6443",
        f"--advertise-address={NODE_ADDRESS}",  # may not be a loopback address; nothing connects to it
        "--endpoint-reconciler-type=none",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        "--authorization-mode=RBAC",
        # No controller makes the default ServiceAccount of a namespace, without which pods would be refused.
        "--disable-admission-plugins=ServiceAccount",
        f"--client-ca-file={certificates.authority}",
        f"--tls-cert-file={certificates.server.certificate}",
        f"--tls-private-key-file={certificates.server.key}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={certificates.token_key}",
        f"--service-account-signing-key-file={certificates.token_key}",
    ]


def _is_ready(client: httpx.Client, apiserver: Process) -> bool:
    assert apiserver.exit_code is None, f"kube-apiserver ended:\n{apiserver.tail()}"
    try:
        return client.get("/readyz").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
