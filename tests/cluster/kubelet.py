"""What a kubelet does, as far as MIC, NMI and a pod's programs can tell.

A pod is an object bound to the node, a network namespace, and a status with the pod's address. Its
containers are started by the test itself, as processes in the namespace: no image, no runtime.
"""

from dataclasses import dataclass

from tests.cluster.cluster import Cluster, Object
from tests.cluster.network import NODE_ADDRESS, POD_PREFIX, PodNetwork, connect_pod, disconnect_pod

FIRST_HOST, LAST_HOST = 2, 254


@dataclass(frozen=True, slots=True)
class RunningPod:
    """A pod that runs on the node, for the API server and for the network."""

    name: str
    namespace: str
    network: PodNetwork

    @property
    def address(self) -> str:
        """Return the pod's IP address."""
        return self.network.address


class Kubelet:
    """Runs pods on one node of the cluster."""

    def __init__(self, cluster: Cluster, node: str) -> None:
        self.node = node
        self._cluster = cluster
        self._pods: dict[tuple[str, str], RunningPod] = {}

    def register(self, provider_id: str) -> None:
        """Create the Node object, Ready, with *provider_id*."""
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.node},
            "spec": {"providerID": provider_id},
        }
        self._cluster.create(node)
        status = {
            "addresses": [{"type": "InternalIP", "address": NODE_ADDRESS}, {"type": "Hostname", "address": self.node}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        }
        self._cluster.patch("Node", self.node, {"status": status}, part="status")

    def run(self, pod: Object, *, address: str | None = None) -> RunningPod:
        """Create *pod* on the node and bring it to Running, with *address* or the lowest that is free."""
        metadata = pod["metadata"]
        namespace, name = metadata.get("namespace", "default"), metadata["name"]
        network = connect_pod(f"{namespace}-{name}", address or self._free_address())
        running = RunningPod(name, namespace, network)
        self._pods[namespace, name] = running
        self._cluster.create({**pod, "spec": {**pod["spec"], "nodeName": self.node}})
        self._cluster.patch("Pod", name, {"status": running_status(network.address)}, namespace, part="status")
        return running

    def delete(self, pod: RunningPod) -> None:
        """End the pod: its network first, then its object, as when its containers have stopped."""
        disconnect_pod(self._pods.pop((pod.namespace, pod.name)).network)
        self._cluster.delete("Pod", pod.name, pod.namespace)

    def disconnect_all(self) -> None:
        """Remove the networks of all its pods."""
        while self._pods:
            disconnect_pod(self._pods.popitem()[1].network)

    def _free_address(self) -> str:
        used = {pod.address for pod in self._pods.values()}
        candidates = (f"{POD_PREFIX}{host}" for host in range(FIRST_HOST, LAST_HOST + 1))
        return next(address for address in candidates if address not in used)


def running_status(address: str) -> Object:
    """Return the status of a pod whose containers run."""
    return {
        "phase": "Running",
        "hostIP": NODE_ADDRESS,
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [{"type": "Ready", "status": "True"}],
    }


def pod_of_template(owner: Object, name: str) -> Object:
    """Return the pod that the controller of *owner* (a Deployment or DaemonSet) would make, with this *name*."""
    template = owner["spec"]["template"]
    metadata = {**template["metadata"], "name": name, "namespace": owner["metadata"].get("namespace", "default")}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
