"""A sandbox with the two programs beside it, and pods that ask for tokens from their own addresses."""

from __future__ import annotations

import base64
import random
import re
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest
from azure.core.pipeline.transport import AioHttpTransport
from azure.identity.aio import ManagedIdentityCredential

from apps.sandbox.hosts import Operation, UserAssigned
from apps.sandbox.options import SandboxOptions, identity_id
from apps.sandbox.resources import PODS
from apps.sandbox.sandbox import Sandbox
from apps.sandbox.status import StatusError
from tests.apps.daemons import ANY_PORTS, Daemon, daemon, until
from tests.apps.raw_http import Reply, request, send

CRDS = tuple(sorted((Path(__file__).parents[2] / "deploy/chart/crds").glob("*.yaml")))
VAULT = "https://vault.azure.net"
API = "aadpodidentity.k8s.io/v1"
ABSENT_S = 2
"""How long NMI holds a request of a pod for which there is no assignment."""


@dataclass
class Stage:
    """What a test works with; *nmi_port* is 0 where no NMI runs."""

    sandbox: Sandbox
    stack: AsyncExitStack
    nmi_port: int = 0

    @property
    def host(self) -> Any:
        return self.sandbox.azure.host(self.sandbox.options.nodes[0].host_id)

    @property
    def assignments(self) -> dict[str, str]:
        """The state of every AzureAssignedIdentity by the name of its pod and identity; empty where none is written."""
        return {
            f"{body['spec']['pod']}/{body['spec']['azureIdentityRef']['metadata']['name']}": (
                body.get("status", {}).get("status", "")
            )
            for body in self.sandbox.cluster.objects("azureassignedidentities")
        }

    def forget_polls(self) -> None:
        """Let ARM forget how often it was asked: MIC asks less often the less is left of a host's budget."""
        self.sandbox.arm._limits._levels.clear()

    async def mic(self, *flags: str) -> Daemon:
        """Start a MIC, which ends with the stage."""
        files = (f"--kubeconfig={self.sandbox.kubeconfig}", f"--cloudconfig={self.sandbox.azure_json}")
        environ = self.sandbox.client_environment
        at_once = "--identity-grace-period=0s"
        return await self.stack.enter_async_context(daemon("mic", *files, *ANY_PORTS, at_once, *flags, environ=environ))

    async def first_work(self) -> None:
        """Let MIC assign something: the first time it loads Azure's libraries, which takes long on a busy machine."""
        self.identity("first-work")
        await self.pod("first-work")
        await until(lambda: self.assignments.get("first-work/first-work") == "Assigned", "MIC's first work")

    async def nmi(self, *flags: str) -> Daemon:
        """Start an NMI that listens, and note its port."""
        started = await self.stack.enter_async_context(
            daemon("nmi", *nmi_flags(self.sandbox), *flags, environ=self.sandbox.client_environment)
        )
        found = re.search(r"listening on 127\.0\.0\.1:(\d+)", await started.line("listening on 127.0.0.1:"))
        assert found is not None
        self.nmi_port = int(found[1])
        return started

    def identity(self, name: str, *, selector: str = "", namespace: str = "default", **spec: Any) -> UserAssigned:
        """Create an identity in Azure, an AzureIdentity and a binding, all of one name."""
        made = self.sandbox.azure.add_identity(identity_id(name))
        ids = {"resourceID": made.resource_id, "clientID": made.principal.client_id}
        self.azure_identity(name, namespace=namespace, **{**ids, **spec})
        self.binding(name, selector=selector, namespace=namespace)
        return made

    def azure_identity(self, name: str, *, namespace: str = "default", **spec: Any) -> None:
        self._create("AzureIdentity", name, namespace, {"type": 0, **spec})

    def binding(self, name: str, *, identity: str = "", selector: str = "", namespace: str = "default") -> None:
        spec = {"azureIdentity": identity or name, "selector": selector or name}
        self._create("AzureIdentityBinding", name, namespace, spec)

    def namespace(self, name: str) -> None:
        self.sandbox.cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

    def secret(self, name: str, data: Mapping[str, bytes], *, namespace: str = "default") -> None:
        """Let a Secret exist that holds just *data*."""
        encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
        metadata = {"name": name, "namespace": namespace}
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": encoded}
        with suppress(StatusError):
            self.delete("secrets", name, namespace=namespace)
        self.sandbox.cluster.create(body)

    async def pod(
        self,
        name: str,
        label: str = "",
        *,
        namespace: str = "default",
        labels: Mapping[str, str] | None = None,
        node: str = "",
    ) -> str:
        """Start a pod, by default with its own name as label and on any node; return its address once it runs."""
        placed = {"nodeName": node} if node else {}
        spec = {"containers": [{"name": "main", "image": "none"}], **placed}
        metadata = {
            "name": name,
            "namespace": namespace,
            "labels": {"aadpodidbinding": label or name, **(labels or {})},
        }
        self.sandbox.cluster.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}, PODS)

        def address() -> str:
            body = self.sandbox.store.get(PODS, namespace, name).body
            return str(body.get("status", {}).get("podIP", ""))

        return str(await until(address, f"an address of pod {name}"))

    def running_pod(self, name: str, address: str) -> None:
        """Let a pod run at *address*; for a sandbox that starts none by itself."""
        spec = {"nodeName": self.sandbox.options.nodes[0].name, "containers": [{"name": "main", "image": "none"}]}
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
        self.sandbox.cluster.create({**_thing("v1", "Pod", name, spec), "status": status}, PODS)

    def assigned_pod(self, name: str, address: str) -> UserAssigned:
        """Let a pod run at *address*, its identity assigned and on the node already."""
        node = self.sandbox.options.nodes[0]
        self.running_pod(name, address)
        made = self.sandbox.azure.add_identity(identity_id(name))
        self.sandbox.azure.attach(node.host_id, [made.resource_id])
        ids = {"type": 0, "resourceID": made.resource_id, "clientID": made.principal.client_id}
        identity = _thing(API, "AzureIdentity", name, ids)
        binding = _thing(API, "AzureIdentityBinding", name, {"azureIdentity": name, "selector": name})
        whose = {"pod": name, "podNamespace": "default", "nodename": node.name}
        what = {"azureIdentityRef": identity, "azureBindingRef": binding}
        assignment = _thing(API, "AzureAssignedIdentity", name, {**what, **whose})
        assignment["metadata"]["labels"] = {"nodename": node.name}
        self.sandbox.cluster.create({**assignment, "status": {"status": "Assigned", "availableReplicas": 1}})
        return made

    def identity_named(self, name: str) -> UserAssigned:
        return self.sandbox.azure.identities[identity_id(name).lower()]

    def delete(self, plural: str, name: str, *, namespace: str = "default") -> None:
        cluster = self.sandbox.cluster
        cluster.delete(cluster.registry.named(plural), namespace, name)

    def delete_pod(self, name: str) -> None:
        self.sandbox.cluster.delete(PODS, "default", name, 0)

    async def token(self, address: str, **query: str) -> Reply:
        """Ask NMI for a token from *address*."""
        asked = urlencode({"api-version": "2018-02-01", "resource": VAULT, **query})
        return await send(self.nmi_port, request(f"/metadata/identity/oauth2/token?{asked}"), address=address)

    def writes(self, since: float = 0.0) -> list[str]:
        """Every write of an AzureAssignedIdentity that the API server has taken since *since*, as `VERB name`."""
        seen = self.sandbox.faults.seen("kube", match="/azureassignedidentities")
        return [
            f"{entry.method} {entry.path.partition('azureassignedidentities')[2].strip('/')}".strip()
            for entry in seen
            if entry.method != "GET" and entry.at >= since and entry.status < 300
        ]

    def events(self, since: float = 0.0) -> list[str]:
        """Every write of an Event that the API server has taken since *since*."""
        seen = self.sandbox.faults.seen("kube", match="/events")
        return [entry.method for entry in seen if entry.method != "GET" and entry.at >= since and entry.status < 300]

    def patches(self, since: float = 0.0) -> list[Operation]:
        """The operations that were begun since *since*."""
        return [operation for operation in self.sandbox.azure.operations if operation.started_at >= since]

    def _create(self, kind: str, name: str, namespace: str, spec: Mapping[str, Any]) -> None:
        self.sandbox.cluster.create(_thing(API, kind, name, spec, namespace))


def _thing(version: str, kind: str, name: str, spec: Mapping[str, Any], namespace: str = "default") -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": dict(spec)}


def nmi_flags(sandbox: Sandbox) -> tuple[str, ...]:
    """Flags that make NMI serve the sandbox's first node, on a free port and without interception."""
    node = sandbox.options.nodes[0].name
    host, _, port = sandbox.imds_urls[node].removeprefix("http://").partition(":")
    waits = ("--retry-attempts-for-created=1", "--retry-attempts-for-assigned=10")
    return (
        *(f"--node={node}", "--nmi-port=0", f"--metadata-ip={host}", f"--metadata-port={port}", *ANY_PORTS),
        *(
            "--interception=false",
            "--allow-network-plugin-kubenet",
            *waits,
            f"--find-identity-retry-interval={ABSENT_S}",
        ),
    )


@asynccontextmanager
async def stage(**options: Any) -> AsyncIterator[Stage]:
    """Start a sandbox, by default one whose ARM takes half a second; whatever is started on it ends with it."""
    async with (
        Sandbox(SandboxOptions(**{"crds": CRDS, "operation_s": 0.5, **options})) as sandbox,
        AsyncExitStack() as stack,
    ):
        yield Stage(sandbox, stack)


async def sdk_token(port: int, address: str, monkeypatch: pytest.MonkeyPatch, *, resource: str = VAULT) -> str:
    """Ask the NMI at *port* as an application at *address* does, through azure-identity."""
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", f"http://127.0.0.1:{port}")
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(local_addr=(address, 0))) as session:
        transport = AioHttpTransport(session=session, session_owner=False)
        async with ManagedIdentityCredential(transport=transport, retry_total=0) as credential:
            return str((await credential.get_token(f"{resource}/.default")).token)


def free_port() -> int:
    """A port on which nobody listens, and which the system gives to nobody who asks for any."""
    while True:
        port = random.randrange(20_000, 32_000)  # noqa: S311  # no secret
        with suppress(OSError), socket.create_server(("", port)):
            return port


def now_s() -> float:
    """The time that the sandbox notes with requests and operations."""
    return time.monotonic()
