"""MIC and NMI while the API server is away for a time, and when it is back.

    python -m tests.cluster.outage SECONDS [killed|silent]

As root: does with any time what test_mic_failures.py does with half a minute, and prints what happened.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.cluster.azure import running_azure
from tests.cluster.build import find_servers
from tests.cluster.cluster import Cluster
from tests.cluster.isolation import RUN, enter, require_machine
from tests.cluster.kubelet import Kubelet, RunningPod
from tests.cluster.mic_plane import KILLED, WAYS_TO_BE_AWAY, install, running_plane
from tests.cluster.mic_scene import OPTIONS, Replicas, Scene, complaints
from tests.cluster.network import create_node_network
from tests.cluster.processes import Process, Processes
from tests.cluster.programs import Programs
from tests.cluster.waiting import until

SERVED_S = 120
"""For how long a pod's first token is waited for."""
KNOWN, BUSY, GOES, COMES = "known", ("busy-0", "busy-1", "busy-2"), "goes", "comes"
DEFAULT_LEASE_S = 15.0


@dataclass(frozen=True, slots=True)
class Outage:
    """What happened. Times are in seconds; those at the end count from when the API server was ready again."""

    away_s: float
    starting_s: float
    asked: int
    refused: dict[str, int]
    settled_s: float
    first_token_s: float
    writes_without_lead: int
    complaints: dict[str, int]

    def __str__(self) -> str:
        return (
            f"the API server was away for {self.away_s:.0f} s, and {self.starting_s:.1f} s to start\n"
            f"a pod that NMI knew asked for {self.asked} tokens and was refused {sum(self.refused.values())}"
            f" {self.refused or ''}\n"
            f"back again: all pods had their identities, and nobody else, after {self.settled_s:.1f} s; "
            f"a new pod had its token after {self.first_token_s:.1f} s\n"
            f"writes to the host when no lead could be left: {self.writes_without_lead}\n"
            f"warnings and errors logged: {self.complaints}"
        )


@dataclass(frozen=True, slots=True)
class Asker:
    """A pod that asks for a token once a second."""

    process: Process

    def outcomes(self) -> list[tuple[float, str]]:
        """Return when each request ended, and its status or what else became of it."""
        fields = [line.split() for line in self.process.lines()]
        return [(float(ended_s), outcome) for ended_s, outcome in fields]

    def first_served_s(self) -> float:
        """Return when the first request was answered with a token, once there is one."""

        def served() -> list[float]:
            return [ended_s for ended_s, outcome in self.outcomes() if outcome == "200"]

        return until(served, "a token", within_s=SERVED_S)[0]


def start_asking(programs: Programs, running: RunningPod) -> Asker:
    """Start a client in *running*."""
    command = [sys.executable, "-m", "tests.cluster.outage_client"]
    return Asker(programs.processes.start(f"client-{running.name}", command, pod=running.network))


def outage(scene: Scene, how: str, away_s: float, lease_s: float = DEFAULT_LEASE_S) -> Outage:
    """Let the API server be away *how* for *away_s*, in the midst of work, and let pods come and go around it."""
    replicas, nmi = Replicas(scene, lease_s), scene.programs.start_nmi()
    nmi.wait_for_line("in order")
    scene.identities(KNOWN, GOES, COMES, *BUSY)
    known = start_asking(scene.programs, scene.connect(KNOWN))
    scene.start(GOES, node=1)
    known.first_served_s()
    scene.settled()
    served_from_s = time.monotonic()

    for name in BUSY:
        scene.start(name, node=1)
    scene.end(GOES)
    scene.plane.go_away(how)
    gone_s = time.monotonic()
    time.sleep(away_s)
    returns_s = time.monotonic()
    scene.plane.come_back(how)
    back_s = time.monotonic()
    no_lead_s = gone_s + lease_s * 2 / 3  # see podidentity_k8s/lease.py
    late = [held for held in scene.writes(no_lead_s) if held.started_at < returns_s]

    comes = start_asking(scene.programs, scene.connect(COMES))
    scene.end(BUSY[0])
    scene.start(GOES, node=1)
    settled_s = scene.settled()
    first_token_s = comes.first_served_s() - back_s
    replicas.assert_all_run()
    assert nmi.exit_code is None, nmi.tail()
    asked = [outcome for ended_s, outcome in known.outcomes() if ended_s > served_from_s]
    return Outage(
        away_s=away_s,
        starting_s=back_s - returns_s,
        asked=len(asked),
        refused=dict(Counter(outcome for outcome in asked if outcome != "200")),
        settled_s=settled_s,
        first_token_s=first_token_s,
        writes_without_lead=len(late),
        complaints={**replicas.complaints(), "nmi": len(complaints(nmi))},
    )


@contextmanager
def lonely_scene(folder: Path) -> Iterator[Scene]:
    """Give a scene on a node where there is nothing else."""
    create_node_network()
    with ExitStack() as stack:
        servers, programs = Processes(folder), Processes(folder)
        stack.callback(servers.stop_all)
        plane = stack.enter_context(running_plane(find_servers(), servers, RUN / "own"))
        cluster = stack.enter_context(closing(Cluster(plane.control_plane)))
        install(cluster)
        azure = stack.enter_context(running_azure(OPTIONS))
        kubelet = Kubelet(cluster, azure.node.name)
        kubelet.register(azure.node.provider_id)
        stack.callback(programs.stop_all)
        yield Scene(plane, cluster, azure, kubelet, Programs(programs, cluster, azure))


def main() -> int:
    """Print what happens in an outage of the given length; exit code 1 if a known pod was refused a token."""
    parser = argparse.ArgumentParser()
    parser.add_argument("seconds", type=float)
    parser.add_argument("how", choices=WAYS_TO_BE_AWAY, nargs="?", default=KILLED)
    given = parser.parse_args()
    require_machine()
    find_servers()
    enter()
    with TemporaryDirectory() as folder, lonely_scene(Path(folder)) as scene:
        try:
            seen = outage(scene, given.how, given.seconds)
        except AssertionError:
            print(scene.programs.processes.report())
            raise
        print(seen)
    return 1 if seen.refused or seen.writes_without_lead else 0


if __name__ == "__main__":
    sys.exit(main())
