"""The lives of the two programs: who leads, what a restart finds, and how they end."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from apps.running import first_of, stopped
from apps.sandbox.faults import Fault
from tests.apps.daemons import Daemon, until
from tests.apps.raw_http import DEADLINE_S, connect, parsed, request
from tests.apps.stage import Stage, free_port, now_s, stage

LEASE_S = 2.0
LEASE = "/leases/aad-pod-identity-mic"
SHORT_LEASE = "--leader-election-duration=2s"
WORKS = "sync thread started."
SYNCED = "pod cache synchronized"


@pytest_asyncio.fixture
async def alone() -> AsyncIterator[Stage]:
    """A sandbox on which a test starts the programs that it wants."""
    async with stage() as started:
        yield started


async def assigned(stage: Stage, name: str) -> None:
    """Start a pod with an identity of its own, and wait until it can be used."""
    stage.identity(name)
    await stage.pod(name)
    await until(lambda: stage.assignments.get(f"{name}/{name}") == "Assigned", f"the assignment of {name}")


async def pair_of_mics(stage: Stage) -> tuple[Daemon, Daemon]:
    """Start two MICs; the first leads, and the second has seen that."""
    first = await stage.mic(SHORT_LEASE, "--leader-election-instance=first")
    await first.line(WORKS)
    before = len(stage.sandbox.faults.seen("kube", "GET", LEASE))  # a leader only writes it
    second = await stage.mic(SHORT_LEASE, "--leader-election-instance=second")
    await until(lambda: len(stage.sandbox.faults.seen("kube", "GET", LEASE)) > before, "a look at the lease")
    return first, second


async def test_when_the_leader_is_killed_the_other_takes_over_within_the_lease_and_goes_on(alone: Stage) -> None:
    first, second = await pair_of_mics(alone)
    await assigned(alone, "before")
    alone.identity("amidst")
    await alone.pod("amidst")
    await until(lambda: "amidst/amidst" in alone.assignments)
    assert WORKS not in second.output

    killed_s = now_s()
    await first.end(signal.SIGKILL)
    await second.line(WORKS)
    took_s = now_s() - killed_s
    await until(lambda: alone.assignments["amidst/amidst"] == "Assigned")
    await assigned(alone, "after")

    print(f"the second MIC led {took_s:.2f} s after the first was killed; the lease is {LEASE_S:.0f} s")
    assert took_s <= LEASE_S * 2.5  # a lease and a half, and what a busy machine adds
    assert set(alone.assignments.values()) == {"Assigned"}


async def test_a_leader_that_is_asked_to_end_hands_over_at_once(alone: Stage) -> None:
    first, second = await pair_of_mics(alone)
    await assigned(alone, "before")

    asked_s = now_s()
    code, _ = await asyncio.gather(first.end(), second.line(WORKS))
    took_s = now_s() - asked_s
    await assigned(alone, "after")

    print(f"the second MIC led {took_s:.2f} s after the first was asked to end")
    assert code == 0
    assert "received SIGTERM, shutting down" in first.output
    assert took_s < LEASE_S  # a crash would take all of it, and longer


async def test_a_mic_that_cannot_renew_its_lease_stops_working_and_campaigns_again(alone: Stage) -> None:
    mic = await alone.mic(SHORT_LEASE)
    await mic.line(WORKS)
    alone.sandbox.faults.add(Fault("kube", match="/leases/", status=500, times=None))
    await mic.line("lost leader lease")
    lost = len(mic.lines)
    began_s = now_s()
    alone.identity("meanwhile")
    await alone.pod("meanwhile")
    await until(lambda: sum(seen.at > began_s for seen in alone.sandbox.faults.seen("kube", match=LEASE)) >= 3)
    assert alone.writes(began_s) == []

    alone.sandbox.faults.clear()
    await mic.line(WORKS, after=lost)

    await until(lambda: alone.assignments.get("meanwhile/meanwhile") == "Assigned")
    assert mic.process.returncode is None


async def test_a_restarted_mic_finds_its_work_done_and_writes_nothing(alone: Stage) -> None:
    first = await alone.mic()
    for name in ("one", "two"):
        await assigned(alone, name)
    assert await first.end() == 0

    again_s = now_s()
    second = await alone.mic()
    await second.line(SYNCED)
    await assigned(alone, "three")  # once this is done, everything before it has been looked at

    assert alone.writes(again_s) == ["POST", "PATCH three-default-three"]
    assert len(alone.patches(again_s)) == 1
    assert len(alone.events(again_s)) <= 3  # of the election and of the third pod


async def test_a_mic_killed_amidst_an_operation_is_continued_without_a_second_patch(alone: Stage) -> None:
    first = await alone.mic(SHORT_LEASE)
    await first.line(SYNCED)
    alone.identity("amidst")
    await alone.pod("amidst")
    await until(lambda: alone.patches())
    await first.end(signal.SIGKILL)
    assert alone.assignments == {"amidst/amidst": "Created"}

    await alone.mic(SHORT_LEASE)
    await until(lambda: alone.assignments == {"amidst/amidst": "Assigned"})

    assert len(alone.patches()) == 1
    assert [write.split()[0] for write in alone.writes()] == ["POST", "PATCH"]


async def test_pods_that_went_while_no_mic_ran_lose_their_identities(alone: Stage) -> None:
    first = await alone.mic()
    await assigned(alone, "gone")
    await first.end()
    alone.delete_pod("gone")

    await alone.mic()
    await until(lambda: not alone.assignments)

    assert alone.host.identity.assigned == ()


async def page(port: int, path: str) -> str:
    async with httpx.AsyncClient(trust_env=False) as client:
        return (await client.get(f"http://127.0.0.1:{port}{path}")).text


async def test_probes_tell_a_leader_from_a_candidate_and_metrics_count_its_work(alone: Stage) -> None:
    probes, metrics = (free_port(), free_port()), (free_port(), free_port())
    for probe, metric in zip(probes, metrics, strict=True):
        lease = "--leader-election-duration=6s"  # long enough for a busy machine, on which nobody must lose it here
        mic = await alone.mic(lease, f"--http-probe-port={probe}", f"--prometheus-port={metric}")
        if probe == probes[0]:
            await mic.line(WORKS)
    await assigned(alone, "counted")
    await until(lambda: len(alone.sandbox.faults.seen("kube", match="/leases/")) > 2)

    assert await page(probes[0], "/healthz") == "Active"
    assert "aadpodidentity_assigned_identity_addition_count 1" in (await page(metrics[0], "/metrics")).splitlines()
    assert 'operation_type="vmss_update"' in await page(metrics[0], "/metrics")
    try:
        candidate = await page(probes[1], "/healthz")
    except httpx.ConnectError:
        candidate = "Not Active"  # it is still starting
    assert candidate == "Not Active"


async def test_nmi_ends_at_once_when_nothing_is_under_way_though_connections_are_open(alone: Stage) -> None:
    nmi = await alone.nmi()
    _, idle = await connect(alone.nmi_port, "127.1.0.1")
    asked_s = now_s()

    code = await nmi.end()

    assert (code, now_s() - asked_s < 6) == (0, True)
    assert "received SIGTERM, shutting down" in nmi.output
    idle.close()


async def test_nmi_tells_a_request_that_waits_to_ask_again_before_it_ends(alone: Stage) -> None:
    """Nobody on the node is served until the next NMI listens, so the end waits for no assignment."""
    metrics = free_port()
    nmi = await alone.nmi("--retry-attempts-for-created=10", f"--prometheus-port={metrics}")
    address = await alone.pod("late")
    reader, writer = await connect(alone.nmi_port, address)
    writer.write(request("/metadata/identity/oauth2/token?resource=x"))
    async with asyncio.timeout(DEADLINE_S):
        while "aadpodidentity_nmi_waiting_requests 1" not in await page(metrics, "/metrics"):
            pass
    asked_s = now_s()

    code, answer = await asyncio.gather(nmi.end(), reader.read())
    writer.close()
    reply = parsed(answer)

    assert (code, now_s() - asked_s < 6) == (0, True)
    assert (reply.status, reply.header("retry-after")) == (503, "1")
    assert b"PI203" in reply.body


async def test_a_restarted_nmi_answers_at_once_from_what_the_cluster_says(alone: Stage) -> None:
    mic, first = await alone.mic(), await alone.nmi()
    await mic.line(SYNCED)
    await alone.first_work()
    alone.identity("kept")
    address = await alone.pod("kept")
    before = await alone.token(address)
    await first.end()

    await alone.nmi()
    after = await alone.token(address)  # perhaps before NMI has read anything: then it waits for that

    assert (before.status, after.status) == (200, 200)
    assert json.loads(before.body)["client_id"] == json.loads(after.body)["client_id"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_mic_with_success(alone: Stage, number: signal.Signals) -> None:
    mic = await alone.mic()
    await mic.line(WORKS)

    assert await mic.end(number) == 0
    assert f"received {number.name}, shutting down" in mic.output
    assert "Traceback" not in mic.output


async def test_what_breaks_a_task_is_raised_and_stopping_ends_the_others() -> None:
    terminated: asyncio.Future[signal.Signals] = asyncio.get_running_loop().create_future()

    async def broken() -> None:
        raise RuntimeError("broken")

    working = asyncio.create_task(asyncio.Event().wait())
    with pytest.raises(RuntimeError, match="broken"):
        await first_of(terminated, asyncio.create_task(broken()), working)
    await stopped(working)

    assert working.cancelled()


async def test_a_signal_ends_the_wait_and_leaves_the_tasks_to_the_caller() -> None:
    terminated: asyncio.Future[signal.Signals] = asyncio.get_running_loop().create_future()
    terminated.set_result(signal.SIGTERM)
    task = asyncio.create_task(asyncio.Event().wait())

    await first_of(terminated, task)

    assert not task.done()
    await stopped(task)
