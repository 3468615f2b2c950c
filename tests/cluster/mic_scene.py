"""Pods that come and go on a real API server, an Azure that notes every wrong removal, and replicas of MIC."""

import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any

from apps.sandbox.hosts import Host, Operation
from apps.sandbox.options import NodeSpec, SandboxOptions, scale_set_id
from tests.cluster.azure import AzureSide
from tests.cluster.cluster import ApiRefused, Cluster
from tests.cluster.errors import NotInTime
from tests.cluster.kubelet import Kubelet, RunningPod, running_status
from tests.cluster.mic_plane import Plane
from tests.cluster.processes import Process
from tests.cluster.programs import Programs, binding, identity, pod
from tests.cluster.waiting import until

SCALE_SET = scale_set_id("aks-pool1-12345678-vmss")
OPTIONS = SandboxOptions(
    nodes=tuple(NodeSpec(f"node-{number}", SCALE_SET, str(number)) for number in range(2)),
    run_pods=False,
    operation_s=0.5,
)
PATIENCE_S = 90
"""How long things may take to settle on a busy machine; waits after failures grow to a minute."""
NEWS_S = 1.0
"""How long news of a pod may take to MIC."""
LOOK_S = 0.1
LEASE = "aad-pod-identity-mic"
AT_ONCE = ("--identity-grace-period=0s", "--update-user-msi-retry-interval=100ms")
ANY_PORTS = ("--http-probe-port=0", "--prometheus-port=0")


@dataclass
class Scene:
    """What a test works with. *pods* has label and node of each pod that runs, by name.

    *violations* are the removals in ARM of an identity that a running pod was told to use: an assignment in `Assigned`
    was stored for it. The identity that a pod needs has the name of the pod's label.
    """

    plane: Plane
    cluster: Cluster
    azure: AzureSide
    kubelet: Kubelet
    programs: Programs
    pods: dict[str, tuple[str, str]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    _since_s: dict[str, float] = field(default_factory=dict)
    _addresses: Iterator[int] = field(default_factory=lambda: count(1))

    def __post_init__(self) -> None:
        for node in OPTIONS.nodes[1:]:
            Kubelet(self.cluster, node.name).register(node.provider_id)
        azure = self.azure.sandbox.azure
        change = azure.change

        def watched(host: Host, body: dict[str, Any], caller: str) -> Operation:
            before = host.identity.folded
            operation = change(host, body, caller)
            removed = before - host.identity.folded
            if removed:
                self.violations.extend(f"{held} of {name}" for name, held in self.in_use() if held in removed)
            return operation

        azure.change = watched  # type: ignore[method-assign]

    @property
    def host(self) -> Host:
        """Return the scale set of both nodes, for reading."""
        return self.azure.sandbox.azure.host(SCALE_SET)

    def in_use(self) -> list[tuple[str, str]]:
        """Return the running pods with an assignment in `Assigned`, and the resource ID in it, in lower case.

        Not those that have just come: no controller can recall a write that was on its way to Azure then.
        """
        latest_s = time.monotonic() - NEWS_S
        running = {name: placed for name, placed in dict(self.pods).items() if self._since_s[name] <= latest_s}
        return [
            (spec["pod"], spec["azureIdentityRef"]["spec"]["resourceID"].lower())
            for spec, status in ((body["spec"], body.get("status", {})) for body in self.plane.stored_assignments())
            if status.get("status") == "Assigned" and running.get(spec["pod"], ("", ""))[1] == spec["nodename"]
        ]

    def identities(self, *names: str) -> None:
        """Create identities in Azure, and for each an AzureIdentity and a binding of its name."""
        for name in names:
            resource_id = self.azure.add_identity(name)
            client_id = self.azure.client_id(resource_id)
            self.cluster.apply(identity(name, resource_id, client_id), binding(name, name, selector=name))

    def start(self, name: str, label: str = "", node: int = 0) -> None:
        """Let a pod run that has no network, by default with its own name as label."""
        placed = pod(name, selector=label or name)
        placed["spec"]["nodeName"] = self._note(name, label, node)
        number = next(self._addresses)
        self.cluster.create(placed)
        status = running_status(f"10.245.{number // 250}.{number % 250 + 1}")
        self.cluster.patch("Pod", name, {"status": status}, part="status")

    def connect(self, name: str) -> RunningPod:
        """Let a pod run on the node of the tests that has a network, with its own name as label."""
        self._note(name, name, 0)
        return self.kubelet.run(pod(name, selector=name))

    def end(self, name: str) -> None:
        """Delete a pod."""
        del self.pods[name]  # first: nobody may learn of it before
        self.cluster.delete("Pod", name)

    def end_all(self) -> None:
        """Delete all pods."""
        for name in list(self.pods):
            self.end(name)

    def unsettled(self) -> list[str]:
        """Return what is not yet as it must be in the end."""
        found = {
            f"{body['spec']['pod']}/{body['spec']['azureIdentityRef']['metadata']['name']}": body.get("status")
            for body in self.cluster.list("AzureAssignedIdentity")
        }
        states = {key: (status or {}).get("status", "") for key, status in found.items()}
        wanted = {f"{name}/{label}": "Assigned" for name, (label, _) in self.pods.items()}
        wrong = [f"{key}: {states.get(key)}" for key in states.keys() | wanted if states.get(key) != wanted.get(key)]
        needed = {label for label, _ in self.pods.values()}
        for what, ids in (("on", self.host.identity.folded), ("served by", self.host.served)):
            wrong += [f"{name} {what} the host" for name in needed ^ {entry.rpartition("/")[2] for entry in ids}]
        return wrong

    def settled(self, within_s: float = PATIENCE_S) -> float:
        """Return, once every pod has its identity and nothing else is left, how many seconds that took."""
        began_s = time.monotonic()
        self.forget_polls()
        while wrong := self.unsettled():
            if time.monotonic() > began_s + within_s:
                raise NotInTime(f"not as it must be after {within_s} s: {wrong}")
            time.sleep(LOOK_S)
        assert self.violations == []
        return time.monotonic() - began_s

    def forget_polls(self) -> None:
        """Let ARM forget how often it was asked: MIC asks less often the less is left of a host's budget."""
        self.azure.do(lambda sandbox: sandbox.arm._limits._levels.clear())

    def writes(self, since_s: float = 0.0) -> list[Operation]:
        """Return the writes to the host since *since_s*, a time of the monotonic clock."""
        return [held for held in self.azure.sandbox.azure.operations if held.started_at >= since_s]

    def _note(self, name: str, label: str, node: int) -> str:
        placed = OPTIONS.nodes[node].name
        self._since_s[name] = time.monotonic()
        self.pods[name] = (label or name, placed)
        return placed


class Replicas:
    """Two MICs, of which one leads; whichever is killed is replaced."""

    def __init__(self, scene: Scene, lease_s: float) -> None:
        self._scene = scene
        self._lease = f"--leader-election-duration={lease_s:g}s"
        self._numbers = count()
        self.running: dict[str, Process] = {}
        for _ in range(2):
            self._start()

    @property
    def leader(self) -> str:
        """Return who holds the Lease and runs; empty when nobody does."""
        try:
            holder = self._scene.cluster.get("Lease", LEASE)["spec"].get("holderIdentity") or ""
        except ApiRefused:
            return ""
        return next((name for name in self.running if holder.startswith(f"{name}_")), "")

    def wait_for_leader(self) -> str:
        """Return the leader's name, once there is one."""
        return until(lambda: self.leader, "a leader", within_s=30)

    def kill_leader(self) -> None:
        """Kill who leads now, and start another."""
        killed = self.running.pop(self.wait_for_leader())
        assert killed.exit_code is None, killed.tail()
        killed.kill()
        self._start()

    def free_lease(self) -> None:
        """Let the lease of a MIC that was killed count as over, so that the test need not wait for that each time."""
        self._scene.cluster.patch("Lease", LEASE, {"spec": {"holderIdentity": ""}})

    def assert_all_run(self) -> None:
        """Check that none has ended by itself, and that none has met what it did not expect."""
        for process in self.running.values():
            assert process.exit_code is None, process.tail()
            assert not [line for line in process.lines() if "Traceback" in line], process.tail()

    def complaints(self) -> dict[str, int]:
        """Return how many warnings and errors each has logged."""
        return {name: len(complaints(process)) for name, process in self.running.items()}

    def _start(self) -> None:
        number = next(self._numbers)
        started = self._scene.programs.start_mic(self._lease, *AT_ONCE, *ANY_PORTS, instance=number)
        self.running[f"mic-{number}"] = started


def complaints(process: Process) -> list[str]:
    """Return the warnings and errors that a program of ours has logged."""
    return [line for line in process.lines() if re.match(r"[WEF]\d{4} ", line)]


@contextmanager
def churn(scene: Scene, chance: Random, labels: Sequence[str], *, at_once: int = 1) -> Iterator[list[str]]:
    """Let pods come and go meanwhile, up to twelve, some under a name that was just used; give the names in order.

    *at_once* is how many changes may be under way together.
    """
    ended, changed = threading.Event(), list[str]()

    def go_on(names: Sequence[str], own: Random) -> None:
        while not ended.wait(own.uniform(0.05, 0.3)):
            name = own.choice(names)
            if name in scene.pods:
                scene.end(name)
            else:
                scene.start(name, own.choice(labels), node=own.randrange(2))
            changed.append(name)
            scene.forget_polls()

    names = [f"pod-{number}" for number in range(12)]
    with ThreadPoolExecutor(at_once) as pool:
        chances = [Random(chance.random()) for _ in range(at_once)]  # noqa: S311  # the same in each run
        under_way = [pool.submit(go_on, names[n::at_once], own) for n, own in enumerate(chances)]
        try:
            yield changed
        finally:
            ended.set()
        for done in under_way:
            done.result()
