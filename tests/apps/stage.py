"""A sandbox with the two programs beside it, and pods that ask for tokens from their own addresses."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from apps.sandbox.hosts import Operation, UserAssigned
from apps.sandbox.options import SandboxOptions, identity_id
from apps.sandbox.resources import PODS
from apps.sandbox.sandbox import Sandbox
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
        """The state of every AzureAssignedIdentity by the name of its pod and identity."""
        return {
            f"{body['spec']['pod']}/{body['spec']['azureIdentityRef']['metadata']['name']}": body["status"]["status"]
            for body in self.sandbox.cluster.objects("azureassignedidentities")
        }

    def forget_polls(self) -> None:
        """Let ARM forget how often it was asked: MIC asks less often the less is left of a host's budget."""
        self.sandbox.arm._limits._levels.clear()

    async def mic(self, *flags: str) -> Daemon:
        """Start a MIC, which ends with the stage."""
        files = (f"--kubeconfig={self.sandbox.kubeconfig}", f"--cloudconfig={self.sandbox.azure_json}")
        environ = self.sandbox.client_environment
        return await self.stack.enter_async_context(daemon("mic", *files, *ANY_PORTS, *flags, environ=environ))

    async def nmi(self, *flags: str) -> Daemon:
        """Start an NMI that listens, and note its port."""
        started = await self.stack.enter_async_context(
            daemon("nmi", *nmi_flags(self.sandbox), *flags, environ=self.sandbox.client_environment)
        )
        self.nmi_port = int((await started.line("listening on 127.0.0.1:")).rpartition(":")[2])
        return started

    def identity(self, name: str, *, selector: str = "", **spec: Any) -> UserAssigned:
        """Create an identity in Azure, an AzureIdentity and a binding, all of one name."""
        made = self.sandbox.azure.add_identity(identity_id(name))
        self.azure_identity(name, **{"resourceID": made.resource_id, "clientID": made.principal.client_id, **spec})
        self.binding(name, selector=selector)
        return made

    def azure_identity(self, name: str, **spec: Any) -> None:
        self._create("AzureIdentity", name, {"type": 0, **spec})

    def binding(self, name: str, *, identity: str = "", selector: str = "") -> None:
        self._create("AzureIdentityBinding", name, {"azureIdentity": identity or name, "selector": selector or name})

    async def pod(self, name: str, label: str = "") -> str:
        """Start a pod, by default with its own name as label; return its address once it runs."""
        spec = {"containers": [{"name": "main", "image": "none"}]}
        metadata = {"name": name, "namespace": "default", "labels": {"aadpodidbinding": label or name}}
        self.sandbox.cluster.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}, PODS)

        def address() -> str:
            body = self.sandbox.store.get(PODS, "default", name).body
            return str(body.get("status", {}).get("podIP", ""))

        return str(await until(address, f"an address of pod {name}"))

    def identity_named(self, name: str) -> UserAssigned:
        return self.sandbox.azure.identities[identity_id(name).lower()]

    def delete(self, plural: str, name: str) -> None:
        cluster = self.sandbox.cluster
        cluster.delete(cluster.registry.named(plural), "default", name)

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

    def _create(self, kind: str, name: str, spec: Mapping[str, Any]) -> None:
        metadata = {"name": name, "namespace": "default"}
        self.sandbox.cluster.create({"apiVersion": API, "kind": kind, "metadata": metadata, "spec": dict(spec)})


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


def now_s() -> float:
    """The time that the sandbox notes with requests and operations."""
    return time.monotonic()
