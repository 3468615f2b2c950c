"""Leading: taking over, being lost, being released; and that never two lead, whatever the network does."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from apps.clock import SystemClock
from apps.sandbox.faults import Fault
from apps.sandbox.sandbox import Sandbox
from podidentity_core.ports import Clock
from podidentity_k8s.api import Connection, KubeApi
from podidentity_k8s.config import load_credentials
from podidentity_k8s.events import KubeEvents
from podidentity_k8s.lease import LeaseLock
from tests.k8s.helpers import Relay, SteppedClock, kubeconfig_to, server_port, until

LEASE = "leases/mic"
D = 15.0


@pytest.fixture
def stepped() -> SteppedClock:
    return SteppedClock()


def lock(
    connection: Connection, clock: Clock, *, identity: str = "us", duration_s: float = D, **extra: Any
) -> LeaseLock:
    api = KubeApi(connection, clock=clock, random=random.random, retries=0)
    return LeaseLock(
        api,
        namespace="default",
        name="mic",
        identity=identity,
        clock=clock,
        random=random.random,
        duration_s=duration_s,
        **extra,
    )


class Lead:
    """A campaign in the background, and what became of its work."""

    def __init__(self, lock: LeaseLock) -> None:
        self.lock = lock
        self.working = False
        self.turns: list[tuple[float, float]] = []
        self.refuses_to_end = asyncio.Event()
        self.refuses_to_end.set()

    async def work(self) -> None:
        started_s = time.monotonic()
        self.working = True
        try:
            await asyncio.Event().wait()
        finally:
            await self.refuses_to_end.wait()
            self.working = False
            self.turns.append((started_s, time.monotonic()))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Lead]:
        task = asyncio.create_task(self.lock.lead(self.work))
        try:
            yield self
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def put_lease(sandbox: Sandbox, holder: str, **spec: Any) -> None:
    sandbox.cluster.create(
        {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": "mic", "namespace": "default", "labels": {"team": "us"}},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15, "leaseTransitions": 4, **spec},
        }
    )


def change_lease(sandbox: Sandbox, **spec: Any) -> None:
    sandbox.cluster.change("leases", "default", "mic", lambda lease: lease["spec"].update(spec))


def lease(sandbox: Sandbox) -> dict[str, Any]:
    (found,) = sandbox.cluster.objects("leases", "default")
    return dict(found)


def looks(sandbox: Sandbox) -> int:
    return len(sandbox.faults.seen("kube", "GET", LEASE))


async def several_looks(sandbox: Sandbox) -> None:
    """Wait until a candidate has looked at the lease, anew, and decided."""
    before = looks(sandbox)
    await until(lambda: looks(sandbox) >= before + 3)


async def test_a_new_lease_is_made(sandbox: Sandbox, connection: Connection, stepped: SteppedClock) -> None:
    async with Lead(lock(connection, stepped)).running() as lead:
        await until(lambda: lead.working)
        spec = lease(sandbox)["spec"]

    assert spec["holderIdentity"].startswith("us_")
    assert spec["leaseDurationSeconds"] == 15
    assert spec["leaseTransitions"] == 0
    assert spec["acquireTime"] == spec["renewTime"] == "2023-11-14T22:30:00.000000Z"


async def test_the_lease_of_a_living_leader_is_left_alone(
    sandbox: Sandbox, connection: Connection, stepped: SteppedClock
) -> None:
    put_lease(sandbox, "them", renewTime="2000-01-01T00:00:00.000000Z")
    async with Lead(lock(connection, stepped)).running() as lead:
        for _ in range(5):
            await several_looks(sandbox)
            stepped.now_s += D - 0.1
            change_lease(sandbox, renewTime=f"2000-01-01T00:00:{int(stepped.now_s) % 60:02}.000000Z")
        await several_looks(sandbox)

        assert not lead.working
        assert lease(sandbox)["spec"]["holderIdentity"] == "them"


async def test_it_is_taken_over_when_nothing_changed_for_its_duration(
    sandbox: Sandbox, connection: Connection, stepped: SteppedClock
) -> None:
    put_lease(sandbox, "them", acquireTime="2000-01-01T00:00:00.000000Z")
    async with Lead(lock(connection, stepped)).running() as lead:
        await several_looks(sandbox)
        stepped.now_s += D - 0.1
        await several_looks(sandbox)
        assert not lead.working

        stepped.now_s += 0.2
        await until(lambda: lead.working)

        taken = lease(sandbox)
        assert taken["spec"]["holderIdentity"].startswith("us_")
        assert taken["spec"]["leaseTransitions"] == 5
        assert taken["metadata"]["labels"] == {"team": "us"}


async def test_a_longer_duration_of_the_leader_counts(
    sandbox: Sandbox, connection: Connection, stepped: SteppedClock
) -> None:
    put_lease(sandbox, "them", leaseDurationSeconds=60)
    async with Lead(lock(connection, stepped)).running() as lead:
        await several_looks(sandbox)
        stepped.now_s += 59
        await several_looks(sandbox)
        assert not lead.working

        stepped.now_s += 2
        await until(lambda: lead.working)


async def test_a_released_lease_is_taken_at_once(
    sandbox: Sandbox, connection: Connection, stepped: SteppedClock
) -> None:
    put_lease(sandbox, "")
    async with Lead(lock(connection, stepped)).running() as lead:
        await until(lambda: lead.working)


async def test_two_processes_with_one_identity_do_not_lead_together(
    sandbox: Sandbox, connection: Connection, stepped: SteppedClock
) -> None:
    async with Lead(lock(connection, stepped, identity="same")).running() as first:
        await until(lambda: first.working)
        async with Lead(lock(connection, stepped, identity="same")).running() as second:
            await several_looks(sandbox)

            assert first.working
            assert not second.working


async def test_it_is_renewed_and_stays_held(sandbox: Sandbox, connection: Connection, stepped: SteppedClock) -> None:
    async with Lead(lock(connection, stepped)).running() as lead:
        await until(lambda: lead.working)
        for _ in range(8):
            stepped.now_s += D / 4
            before = lease(sandbox)["metadata"]["resourceVersion"]
            await until(lambda before=before: lease(sandbox)["metadata"]["resourceVersion"] != before)  # type: ignore[misc]  # bound now
            assert lead.lock.is_held()

        assert lead.turns == []
        assert lease(sandbox)["spec"]["acquireTime"] < lease(sandbox)["spec"]["renewTime"]


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 403}, {"action": "close"}, {"status": 429}])
async def test_work_ends_at_two_thirds_when_the_server_refuses(
    sandbox: Sandbox, connection: Connection, stepped: SteppedClock, fault: dict[str, Any]
) -> None:
    async with Lead(lock(connection, stepped)).running() as lead:
        await until(lambda: lead.working)
        sandbox.faults.add(Fault("kube", match=LEASE, times=None, **fault))
        failures = len(sandbox.faults.seen("kube", "PUT", LEASE))
        await until(lambda: len(sandbox.faults.seen("kube", "PUT", LEASE)) > failures + 3)
        stepped.now_s += D * 2 / 3 - 0.5
        assert lead.lock.is_held()
        assert lead.working

        stepped.now_s += 1

        assert not lead.lock.is_held()
        await until(lambda: not lead.working)


async def test_after_an_outage_we_lead_again_without_waiting_for_ourselves(
    sandbox: Sandbox, connection: Connection, stepped: SteppedClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with Lead(lock(connection, stepped)).running() as lead:
        await until(lambda: lead.working)
        outage = sandbox.faults.add(Fault("kube", match=LEASE, times=None, status=503))
        await until(lambda: len([one for one in sandbox.faults.seen("kube", "PUT", LEASE) if one.status == 503]) > 2)
        stepped.now_s += D
        await until(lambda: "cannot release" in caplog.text)

        sandbox.faults.active.remove(outage)
        await until(lambda: lead.working)

        assert len(lead.turns) == 1
        assert lease(sandbox)["spec"]["leaseTransitions"] == 0


async def test_work_ends_in_time_when_the_server_hangs(sandbox: Sandbox, connection: Connection) -> None:
    async with Lead(lock(connection, SystemClock(), duration_s=1.5)).running() as lead:
        await until(lambda: lead.working)
        sandbox.faults.add(Fault("kube", match=LEASE, action="hang", times=None))
        started_s = time.monotonic()

        await until(lambda: not lead.working)

        assert time.monotonic() - started_s < 1.5


async def test_when_somebody_else_has_taken_it_work_ends_at_once(
    sandbox: Sandbox, connection: Connection, stepped: SteppedClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with Lead(lock(connection, stepped)).running() as lead:
        await until(lambda: lead.working)
        change_lease(sandbox, holderIdentity="them")

        await until(lambda: not lead.working)

        assert not lead.lock.is_held()
    assert lease(sandbox)["spec"]["holderIdentity"] == "them"
    assert "lost leader lease" in caplog.text


async def test_a_deleted_lease_ends_the_work(sandbox: Sandbox, connection: Connection, stepped: SteppedClock) -> None:
    async with Lead(lock(connection, stepped)).running() as lead:
        await until(lambda: lead.working)
        sandbox.cluster.delete(sandbox.cluster.registry.named("leases"), "default", "mic")

        await until(lambda: len(lead.turns) == 1)
        await until(lambda: lead.working)  # and the next campaign makes it again


async def test_a_write_of_others_that_leaves_us_the_holder_does_no_harm(
    sandbox: Sandbox, connection: Connection, stepped: SteppedClock
) -> None:
    async with Lead(lock(connection, stepped)).running() as lead:
        await until(lambda: lead.working)
        sandbox.cluster.change("leases", "default", "mic", lambda one: one["metadata"].update(labels={"a": "b"}))
        version = int(lease(sandbox)["metadata"]["resourceVersion"])
        stepped.now_s += 1
        await until(lambda: int(lease(sandbox)["metadata"]["resourceVersion"]) > version)

        assert lead.turns == []
        assert lease(sandbox)["metadata"]["labels"] == {"a": "b"}


async def test_a_renewal_whose_answer_was_lost_does_no_harm(
    sandbox: Sandbox, connection: Connection, stepped: SteppedClock
) -> None:
    async with Lead(lock(connection, stepped)).running() as lead:
        await until(lambda: lead.working)
        sandbox.faults.add(Fault("kube", method="PUT", match=LEASE, cut_after=0, action="close"))
        await until(lambda: not sandbox.faults.active)
        renewals = len(sandbox.faults.seen("kube", "PUT", LEASE))
        await until(lambda: len(sandbox.faults.seen("kube", "PUT", LEASE)) > renewals + 2)

        assert lead.turns == []


async def test_on_the_end_it_is_released_after_the_work(
    sandbox: Sandbox, connection: Connection, stepped: SteppedClock
) -> None:
    async with Lead(lock(connection, stepped)).running() as lead:
        await until(lambda: lead.working)

    assert lease(sandbox)["spec"]["holderIdentity"] == ""
    assert lease(sandbox)["spec"]["leaseTransitions"] == 0
    assert not lead.lock.is_held()


async def test_it_is_renewed_while_the_work_takes_its_time_to_end(
    sandbox: Sandbox, connection: Connection, stepped: SteppedClock
) -> None:
    lead = Lead(lock(connection, stepped))
    lead.refuses_to_end.clear()
    task = asyncio.create_task(lead.lock.lead(lead.work))
    await until(lambda: lead.working)
    task.cancel()

    for _ in range(4):
        stepped.now_s += D / 3
        before = lease(sandbox)["metadata"]["resourceVersion"]
        await until(lambda before=before: lease(sandbox)["metadata"]["resourceVersion"] != before)  # type: ignore[misc]  # bound now

    assert lease(sandbox)["spec"]["holderIdentity"].startswith("us_")
    lead.refuses_to_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert lease(sandbox)["spec"]["holderIdentity"] == ""


async def test_a_leader_that_is_cut_off_has_stopped_before_the_next_one_starts(
    sandbox: Sandbox, connection: Connection
) -> None:
    clock = SystemClock()
    async with Relay(server_port(sandbox.kubeconfig)).running() as relay:
        credentials = await load_credentials(str(kubeconfig_to(relay.port, sandbox.kubeconfig)))
        async with Connection(credentials, user_agent="test") as through_relay:
            first = Lead(lock(through_relay, clock, identity="first", duration_s=1.5))
            second = Lead(lock(connection, clock, identity="second", duration_s=1.5))
            async with first.running():
                await until(lambda: first.working)
                async with second.running():
                    await until(lambda: looks(sandbox) > 2)
                    relay.hold()

                    while not second.working:
                        assert not (first.lock.is_held() and second.lock.is_held())
                        await asyncio.sleep(0.005)

                    assert not first.working
                    assert not first.lock.is_held()


async def test_the_server_may_be_away_at_first(sandbox: Sandbox, connection: Connection, stepped: SteppedClock) -> None:
    sandbox.faults.add(Fault("kube", match="leases|endpoints", status=503, times=5))
    async with Lead(lock(connection, stepped)).running() as lead:
        await until(lambda: lead.working)


async def test_the_lease_tells_by_events_who_leads(
    sandbox: Sandbox, connection: Connection, stepped: SteppedClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    api = KubeApi(connection, clock=stepped, random=random.random)
    async with (
        KubeEvents(api, clock=stepped) as events,
        Lead(lock(connection, stepped, events=events)).running() as lead,
    ):
        await until(lambda: lead.working)

    told = sandbox.cluster.objects("events")
    assert [(event["reason"], event["message"]) for event in told] == [
        ("LeaderElection", "us became leader"),
        ("LeaderElection", "us stopped leading"),
    ]
    assert told[0]["involvedObject"]["kind"] == "Lease"
    assert told[0]["involvedObject"]["uid"] == lease(sandbox)["metadata"]["uid"]
    for line in (
        "initiating MIC Leader election",
        "attempting to acquire leader lease default/mic...",
        "successfully acquired lease default/mic",
    ):
        assert line in caplog.messages


# The original's lock: an annotation of the Endpoints object of the same name.


def original(holder: str = "old", *, renewed: str = "2023-11-14T22:30:00Z") -> dict[str, Any]:
    record = {"holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": renewed, "leaderTransitions": 0}
    return {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {
            "name": "mic",
            "namespace": "default",
            "annotations": {"control-plane.alpha.kubernetes.io/leader": json.dumps(record)},
        },
    }


def looks_at_original(sandbox: Sandbox) -> int:
    return len(sandbox.faults.seen("kube", "GET", "endpoints/mic"))


async def several_looks_at_original(sandbox: Sandbox) -> None:
    before = looks_at_original(sandbox)
    await until(lambda: looks_at_original(sandbox) >= before + 3)


def renew_original(sandbox: Sandbox, **fields: str) -> None:
    annotations = original(**fields)["metadata"]["annotations"]
    sandbox.cluster.change("endpoints", "default", "mic", lambda one: one["metadata"].update(annotations=annotations))


async def test_while_the_original_leads_we_wait(
    sandbox: Sandbox, connection: Connection, stepped: SteppedClock
) -> None:
    sandbox.cluster.create(original())
    async with Lead(lock(connection, stepped)).running() as lead:
        for second in range(3):
            await several_looks_at_original(sandbox)
            stepped.now_s += 29
            renew_original(sandbox, renewed=f"2023-11-14T22:30:1{second}Z")
        await several_looks_at_original(sandbox)
        assert not lead.working

        stepped.now_s += 31
        await until(lambda: lead.working)


async def test_when_the_original_starts_to_lead_we_stop(
    sandbox: Sandbox, connection: Connection, stepped: SteppedClock
) -> None:
    async with Lead(lock(connection, stepped)).running() as lead:
        await until(lambda: lead.working)
        sandbox.cluster.create(original())

        await until(lambda: not lead.working)

        await several_looks_at_original(sandbox)
        assert not lead.working


@pytest.mark.parametrize(
    "endpoints",
    [
        pytest.param(original(holder=""), id="released"),
        pytest.param(original(renewed="2023-11-14T20:30:00Z"), id="dead for hours"),
        pytest.param({**original(), "metadata": {"name": "mic", "namespace": "default"}}, id="no annotation"),
        pytest.param(
            {
                **original(),
                "metadata": {
                    "name": "mic",
                    "namespace": "default",
                    "annotations": {"control-plane.alpha.kubernetes.io/leader": "nonsense"},
                },
            },
            id="nonsense",
        ),
    ],
)
async def test_a_lock_of_the_original_that_nobody_holds_is_no_reason_to_wait(
    sandbox: Sandbox, connection: Connection, stepped: SteppedClock, endpoints: dict[str, Any]
) -> None:
    sandbox.cluster.create(endpoints)
    async with Lead(lock(connection, stepped)).running() as lead:
        await until(lambda: lead.working)


async def test_without_the_right_to_see_the_originals_lock_we_say_so_once_and_lead(
    sandbox: Sandbox, connection: Connection, stepped: SteppedClock, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.faults.add(Fault("kube", match="endpoints", status=403, times=None))
    async with Lead(lock(connection, stepped)).running() as lead:
        await until(lambda: lead.working)
        await several_looks_at_original(sandbox)

    assert caplog.text.count("grant `get` on endpoints") == 1
