"""MIC on a real API server that goes away, answers late or cuts connections, or itself killed: no pod loses by that."""

import time
from collections.abc import Iterator
from contextlib import closing, suppress
from random import Random

import pytest

from apps.sandbox.sandbox import SandboxOptions
from tests.cluster.azure import AzureSide
from tests.cluster.build import find_servers
from tests.cluster.cluster import Cluster
from tests.cluster.control_plane import ControlPlane
from tests.cluster.errors import NotInTime
from tests.cluster.isolation import RUN
from tests.cluster.kubelet import Kubelet
from tests.cluster.mic_plane import KILLED, SILENT, Plane, install, running_plane
from tests.cluster.mic_relay import Late, on_time
from tests.cluster.mic_scene import OPTIONS, Replicas, Scene, churn
from tests.cluster.outage import DEFAULT_LEASE_S, outage
from tests.cluster.processes import Processes
from tests.cluster.programs import Programs
from tests.cluster.waiting import until

SHORT_LEASE_S = 2.0
LABELS = [f"label-{number}" for number in range(6)]
KILLS, KILLING_S = 50, 90.0
WORK_S = 3.0
"""On any machine a new leader has begun to work after this time; most of it goes into loading Azure's libraries."""
CUTS_S = 20.0
SLOW_S = 10.0
CAUGHT_UP_S = 60
"""Half a minute is NMI's longest wait before it tries again to watch."""


@pytest.fixture(scope="module")
def plane(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """Give a control plane that only this module harms, on the node of the tier's own."""
    servers = Processes(tmp_path_factory.mktemp("own-control-plane"))
    try:
        with running_plane(find_servers(), servers, RUN / "own") as running:
            yield running
            running.apiserver.kill()  # at SIGTERM it waits for its watches
    finally:
        servers.stop_all()


@pytest.fixture(scope="module")
def admin(plane: Plane) -> Iterator[Cluster]:
    """Give this module's API server as its administrator uses it, with everything installed."""
    with closing(Cluster(plane.control_plane)) as cluster:
        install(cluster)
        yield cluster


@pytest.fixture
def sandbox_options() -> SandboxOptions:
    """Give an Azure with two nodes on one scale set."""
    return OPTIONS


@pytest.fixture
def scene(plane: Plane, cluster: Cluster, azure: AzureSide, kubelet: Kubelet, programs: Programs) -> Scene:
    """Give a cluster without pods and identities, and no MIC yet."""
    return Scene(plane, cluster, azure, kubelet, programs)


@pytest.fixture
def behind_relay(plane: Plane, scene: Scene, processes: Processes, azure: AzureSide) -> Iterator[Scene]:
    """Give a scene whose programs come to the API server by a relay."""
    with closing(Cluster(plane.behind_relay)) as seen_by_programs:
        scene.programs = Programs(processes, seen_by_programs, azure)
        yield scene


@pytest.mark.parametrize(
    ("how", "away_s", "lease_s"), [(KILLED, 30, DEFAULT_LEASE_S), (SILENT, 12, SHORT_LEASE_S)], ids=[KILLED, SILENT]
)
def test_while_the_api_server_is_away_known_pods_are_served_and_afterwards_all_is_caught_up(
    scene: Scene, how: str, away_s: int, lease_s: float, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = outage(scene, how, away_s, lease_s)

    with capsys.disabled():
        print(f"\n{seen}")
    assert seen.asked > away_s * 0.8
    assert seen.refused == {}
    assert seen.writes_without_lead == 0
    assert seen.first_token_s < CAUGHT_UP_S


def wait_for_request(scene: Scene) -> None:
    """Return when Azure is asked for anything, which a leader does as the first thing for its pods, or in a while."""
    seen = scene.azure.sandbox.faults.seen
    before = len(seen("arm"))
    with suppress(NotInTime):
        until(lambda: len(seen("arm")) > before, "a request to Azure", within_s=WORK_S)


def test_leaders_that_are_killed_at_any_instant_leave_nothing_undone(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fifty kills, or as many as a busy machine has time for; after every fifth the lease has to run out."""
    chance, began_s, kills = seeded(20), time.monotonic(), 0
    scene.identities(*LABELS)
    replicas, during_writes = Replicas(scene, SHORT_LEASE_S), 0
    with churn(scene, chance, LABELS) as changed:
        while kills < KILLS and time.monotonic() < began_s + KILLING_S:
            replicas.wait_for_leader()
            if kills % 2:
                wait_for_request(scene)
            time.sleep(chance.uniform(0.0, 1.0))
            during_writes += scene.host.operation is not None
            replicas.kill_leader()
            if kills % 5:
                replicas.free_lease()
            kills += 1
    killed_s, writes = time.monotonic() - began_s, len(scene.writes())
    settled_s = scene.settled()

    with capsys.disabled():
        print(
            f"\n{kills} kills in {killed_s:.0f} s, {during_writes} of them during a write to the host; "
            f"{len(changed)} changes, {writes} writes; settled {settled_s:.1f} s after the last"
        )
    assert kills >= 10
    assert len(changed) > kills
    assert writes > kills / 5  # else they were killed before they came to anything
    assert during_writes > 0
    replicas.assert_all_run()
    scene.end_all()
    scene.settled()
    replicas.assert_all_run()


def seeded(seed: int) -> Random:
    """Return chance that is the same in each run."""
    return Random(seed)  # noqa: S311  # no secret


def two_seconds(_now_s: float) -> float:
    """Let every answer take two seconds."""
    return 2.0


def stopped_again_and_again(now_s: float) -> float:
    """Let no answer come for two seconds, and then all of them, within 0.4 s."""
    return max(0.0, 2.0 - now_s % 2.4)


@pytest.mark.parametrize("late", [two_seconds, stopped_again_and_again])
def test_an_etcd_that_is_slow_only_delays(scene: Scene, late: Late, capsys: pytest.CaptureFixture[str]) -> None:
    chance = seeded(7)
    scene.identities(*LABELS)
    replicas = Replicas(scene, DEFAULT_LEASE_S)
    scene.start("stays", LABELS[0])
    scene.settled()
    scene.plane.back.late = late
    try:
        with churn(scene, chance, LABELS, at_once=4) as changed:
            time.sleep(SLOW_S)
        settled_s = scene.settled()
    finally:
        scene.plane.back.late = on_time

    with capsys.disabled():
        print(f"\n{len(changed)} changes, {len(scene.writes())} writes to the host; settled {settled_s:.1f} s later")
    assert len(changed) >= 4
    assert not [line for process in replicas.running.values() for line in process.lines() if "lost leader" in line]
    replicas.assert_all_run()
    scene.end_all()
    scene.settled()


def test_connections_that_are_cut_at_any_instant_only_delay(
    behind_relay: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of all the connections at a time: watches, renewals of the lease, writes."""
    scene, chance = behind_relay, seeded(11)
    scene.identities(*LABELS)
    replicas = Replicas(scene, SHORT_LEASE_S)
    scene.start("stays", LABELS[0])
    scene.settled()
    ends_s = time.monotonic() + CUTS_S
    with churn(scene, chance, LABELS) as changed:
        while time.monotonic() < ends_s:
            scene.plane.front.cut_one(chance)
            time.sleep(chance.uniform(0.2, 1.0))
    settled_s = scene.settled()

    with capsys.disabled():
        print(f"\n{scene.plane.front.cuts} cuts, {len(changed)} changes; settled {settled_s:.1f} s after the last")
    assert scene.plane.front.cuts > CUTS_S / 2
    assert len(changed) > CUTS_S
    replicas.assert_all_run()
    scene.end_all()
    scene.settled()
