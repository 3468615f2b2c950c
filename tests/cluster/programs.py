"""MIC, NMI and pods' programs, started as deploy/infra and a kubelet would start them."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.azure import AzureSide
from tests.cluster.cluster import Cluster, Object, documents_of
from tests.cluster.isolation import RUN
from tests.cluster.kubelet import RunningPod
from tests.cluster.processes import Process, Processes

PROJECT = Path(__file__).parents[2]
MANIFEST = PROJECT / "deploy" / "infra" / "deployment-rbac.yaml"

MIC_ACCOUNT = "aad-pod-id-mic-service-account"
NMI_ACCOUNT = "aad-pod-id-nmi-service-account"
MIC_PROBE_PORT, MIC_METRICS_PORT = 8080, 8888
ANSWER_S = 60


@dataclass(frozen=True, slots=True)
class Programs:
    """Starts the two daemons with their manifests' command lines and ServiceAccounts, and clients in pods."""

    processes: Processes
    cluster: Cluster
    azure: AzureSide

    def start_mic(self, *flags: str, instance: int = 0) -> Process:
        """Start a replica of MIC; *flags* come after those of the manifest, and so win. Ports differ by *instance*."""
        name = f"mic-{instance}"
        added = (
            f"--kubeconfig={self.cluster.kubeconfig_of(MIC_ACCOUNT)}",
            f"--cloudconfig={self.azure.sandbox.azure_json}",
            f"--leader-election-instance={name}",
            f"--http-probe-port={MIC_PROBE_PORT + 100 * instance}",
            f"--prometheus-port={MIC_METRICS_PORT + 100 * instance}",
        )
        command = [_console_script("mic"), *_manifest_args("Deployment", "mic"), *added, *flags]
        return self.processes.start(
            name, command, environment={**self.azure.environment, "MIC_POD_NAMESPACE": "default"}
        )

    def start_nmi(self, *flags: str) -> Process:
        """Start NMI for the node; *flags* come after those of the manifest, and so win."""
        kubelet_config = RUN / "kubelet"
        kubelet_config.touch()  # as the manifest mounts it: FileOrCreate
        args = [arg.replace("$(NODE_NAME)", self.azure.node.name) for arg in _manifest_args("DaemonSet", "nmi")]
        command = [_console_script("nmi"), *args, f"--kubelet-config={kubelet_config}", *flags]
        kubeconfig = self.cluster.kubeconfig_of(NMI_ACCOUNT)
        return self.processes.start(
            "nmi", command, environment={**self.azure.environment, "KUBECONFIG": str(kubeconfig)}
        )

    def start_client(self, pod: RunningPod, *flags: str) -> Process:
        """Start the program that asks for a token (token_client.py) in *pod*."""
        return self.processes.start(
            f"client-{pod.name}", [sys.executable, "-m", "tests.cluster.token_client", *flags], pod=pod.network
        )

    def ask_token(self, pod: RunningPod, *flags: str) -> dict[str, Any]:
        """Return what the token client in *pod* prints, when it has ended."""
        return answer_of(self.start_client(pod, *flags))


def answer_of(client: Process) -> dict[str, Any]:
    """Return what a started token client prints, when it has ended."""
    assert client.wait_for_exit(within_s=ANSWER_S) == 0, client.tail()
    return dict(json.loads(client.lines()[-1]))


def identity(name: str, resource_id: str, client_id: str, namespace: str = "default") -> Object:
    """Return an AzureIdentity of a user-assigned identity."""
    spec = {"type": 0, "resourceID": resource_id, "clientID": client_id}
    return _object("AzureIdentity", name, namespace, spec)


def binding(name: str, azure_identity: str, selector: str, namespace: str = "default") -> Object:
    """Return an AzureIdentityBinding."""
    return _object("AzureIdentityBinding", name, namespace, {"azureIdentity": azure_identity, "selector": selector})


def pod(name: str, *, selector: str | None = None, namespace: str = "default") -> Object:
    """Return a pod, labelled for the bindings with *selector*."""
    labels = {"aadpodidbinding": selector} if selector else {}
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    containers = [{"name": "main", "image": "none"}]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": containers}}


def _object(kind: str, name: str, namespace: str, spec: Object) -> Object:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "aadpodidentity.k8s.io/v1", "kind": kind, "metadata": metadata, "spec": spec}


def _console_script(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _manifest_args(kind: str, name: str) -> Sequence[str]:
    """Return the args of the only container of an object in the manifest."""
    documents = documents_of(MANIFEST)
    owner = next(d for d in documents if (d["kind"], d["metadata"]["name"]) == (kind, name))
    (container,) = owner["spec"]["template"]["spec"]["containers"]
    return [str(arg) for arg in container["args"]]
