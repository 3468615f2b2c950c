"""A cluster and an Azure in one process: how it is put together, how it starts and how it ends."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml

from apps.sandbox import files
from apps.sandbox.arm import Arm
from apps.sandbox.cluster import Cluster
from apps.sandbox.control import Control
from apps.sandbox.entra import Entra
from apps.sandbox.faults import Faults
from apps.sandbox.hosts import Azure
from apps.sandbox.imds import Imds, Machine
from apps.sandbox.kube import Kube
from apps.sandbox.limits import Limits
from apps.sandbox.node import Nodes
from apps.sandbox.options import TENANT, NodeSpec, Program, SandboxOptions, identity_id
from apps.sandbox.resources import NODES
from apps.sandbox.serving import Address, Listeners
from apps.sandbox.tls import server_context
from apps.sandbox.tokens import TokenIssuer

__all__ = ["NodeSpec", "Program", "Sandbox", "SandboxOptions"]


class Sandbox:
    """An async context manager: inside it, everything answers on loopback addresses.

    *cluster* and *azure* are the state, for tests to look at and to change; *kube*, *arm*, *entra* and *imds* (by node)
    the servers; *kube_url*, *kube_tls_url*, *arm_url*, *entra_url*, *imds_urls* and *control_url* where they listen;
    *kubeconfig*, *azure_json*, *environment_json* and *ca_file* the files for clients. *faults* makes things go wrong
    and has the record of requests.
    """

    def __init__(self, options: SandboxOptions | None = None) -> None:
        self.options = options or SandboxOptions()
        self.cluster = Cluster(self.options.history)
        self.store = self.cluster.store
        self.azure = Azure(TENANT, self.options.operation_s)
        self.faults = Faults()
        self.client_id = str(uuid.uuid4())
        self.client_secret = secrets.token_urlsafe(24)
        self.token = secrets.token_urlsafe(24)
        self.state_dir = self.options.state_dir or Path()
        self.imds: dict[str, Imds] = {}
        self.imds_urls: dict[str, str] = {}
        self.node_addresses: dict[str, str] = {}
        self._listeners = Listeners()
        self._nodes: Nodes | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    @property
    def client_environment(self) -> dict[str, str]:
        """Return the variables that point kubectl and Azure SDKs at this sandbox."""
        return {
            "KUBECONFIG": str(self.kubeconfig),
            "AZURE_ENVIRONMENT_FILEPATH": str(self.environment_json),
            "AZURE_AUTHORITY_HOST": self.entra_url,
            "REQUESTS_CA_BUNDLE": str(self.ca_file),
            "SSL_CERT_FILE": str(self.ca_file),
        }

    def cut(self, url: str) -> None:
        """Reset all connections to the server at *url*, watches among them; what comes next, faults decide."""
        self._listeners.cut(int(url.rpartition(":")[2]))

    async def _start(self) -> None:
        if self.options.state_dir is None:
            self.state_dir = Path(tempfile.mkdtemp(prefix="podidentity-sandbox-"))
        self.state_dir.mkdir(parents=True, exist_ok=True)
        context, self.ca_file = server_context(self.state_dir)
        issuer = TokenIssuer()
        limits = Limits(self.options.enforce_limits, time.monotonic)
        self._serve_cluster()
        self._serve_azure(issuer, limits)
        for number, spec in enumerate(self.options.nodes, start=1):
            self._add_node(number, spec, issuer, limits)
        self._write_files()
        for path in self.options.crds:
            for crd in yaml.safe_load_all(path.read_text()):
                self.cluster.create(crd)
        await self._listeners.start(context)
        if self.options.run_pods:
            self._nodes = Nodes(self.cluster, self.node_addresses, self.options.images)
            self.kube.logs = self._nodes.log
            self._nodes.start()

    async def _stop(self) -> None:
        if self._nodes is not None:
            await self._nodes.stop()
        self.azure.close()
        self.store.close()
        await self._listeners.stop()
        if self.options.state_dir is None and self.state_dir != Path():
            shutil.rmtree(self.state_dir, ignore_errors=True)

    def _serve_cluster(self) -> None:
        self.kube = Kube(self.cluster, self.token, self.options.bookmark_s)
        self.kube_url = self._serve("kube", self.kube)
        # Go clients, kubectl among them, send their token over TLS only.
        address = self._listeners.bind(tls=True)
        self.kube_tls_url = _url("https", address)
        self._listeners.serve(address, self.faults.guard("kube", self.kube))
        address = self._listeners.bind()
        self.control_url = _url("http", address)
        self._listeners.serve(address, Control(self.faults, self.azure, self.kube))

    def _serve_azure(self, issuer: TokenIssuer, limits: Limits) -> None:
        address = self._listeners.bind(tls=True)
        self.entra_url = _url("https", address)
        self.entra = Entra(issuer, self.entra_url)
        self.entra.register(TENANT, self.client_id, self.client_secret)
        self._listeners.serve(address, self.faults.guard("entra", self.entra))
        address = self._listeners.bind(tls=True)
        self.arm_url = _url("https", address)
        self.arm = Arm(self.azure, issuer, self.arm_url, limits)
        self._listeners.serve(address, self.faults.guard("arm", self.arm))

    def _add_node(self, number: int, spec: NodeSpec, issuer: TokenIssuer, limits: Limits) -> None:
        host = self.azure.add_host(spec.host_id, computer_name=spec.name)
        if spec.instance:
            host.instances.append(spec.instance)
        address = f"127.2.{number >> 8}.{number & 255}"
        machine = Machine(spec.name, spec.host_id, spec.instance, address)
        imds = Imds(self.azure, issuer, machine, limits, self.options.token_s)
        self.imds[spec.name] = imds
        self.imds_urls[spec.name] = self._serve(f"imds/{spec.name}", imds, address)
        self.node_addresses[spec.name] = address
        self.cluster.create(_node(spec, address), NODES)

    def _serve(self, name: str, application: Kube | Imds, host: str = "127.0.0.1") -> str:
        address = self._listeners.bind(host)
        self._listeners.serve(address, self.faults.guard(name, application))
        return _url("http", address)

    def _write_files(self) -> None:
        scale_sets = [host.resource_id for host in self.azure.hosts.values() if host.is_scale_set]
        primary = scale_sets[0].rsplit("/", 1)[1] if scale_sets else ""
        text = files.kubeconfig(self.kube_tls_url, self.token, self.ca_file)
        self.kubeconfig = files.write_private(self.state_dir / "kubeconfig", text)
        text = files.environment(self.arm_url, self.entra_url)
        self.environment_json = files.write_private(self.state_dir / "environment.json", text)
        text = files.azure_json(self._credentials(), primary)
        self.azure_json = files.write_private(self.state_dir / "azure.json", text)

    def _credentials(self) -> dict[str, object]:
        if not self.options.use_managed_identity:
            secret = {"aadClientId": self.client_id, "aadClientSecret": self.client_secret}
            return {**secret, "useManagedIdentityExtension": False, "userAssignedIdentityID": ""}
        mic = self.azure.add_identity(identity_id("mic"))
        for host in self.azure.hosts.values():
            self.azure.attach(host.resource_id, [mic.resource_id])
        msi = {"aadClientId": "msi", "aadClientSecret": "msi", "useManagedIdentityExtension": True}
        return {**msi, "userAssignedIdentityID": mic.principal.client_id}


def _url(scheme: str, address: Address) -> str:
    return f"{scheme}://{address[0]}:{address[1]}"


def _node(spec: NodeSpec, address: str) -> dict[str, object]:
    labels = {"kubernetes.io/hostname": spec.name, "kubernetes.io/os": "linux"}
    return {
        "metadata": {"name": spec.name, "labels": labels},
        "spec": {"providerID": spec.provider_id},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": address},
                {"type": "Hostname", "address": spec.name},
            ],
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            "nodeInfo": {"kubeletVersion": "v1.32.0-sandbox", "operatingSystem": "linux"},
        },
    }
