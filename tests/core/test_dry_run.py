"""A dry run: MIC plans as always, says what it would do, and writes nothing."""

from __future__ import annotations

import asyncio
import logging

import pytest

from podidentity_core.model import Thing
from podidentity_core.services.assignment import AssignmentPorts, AssignmentService, AssignmentSettings
from podidentity_core.services.dry_run import DryEvents, DryHosts, DryLock, DryStore
from podidentity_core.testing.builders import assignment, binding, identity, node, pod, resource, vm
from podidentity_core.testing.clock import FakeClock
from podidentity_core.testing.fakes import FakeCluster, FakeHosts, FakeMeter

LEFT = assignment(pod("gone"), identity("db"), binding("db"))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def hosts(clock: FakeClock) -> FakeHosts:
    made = FakeHosts(clock)
    made.put(vm(), resource("db"))
    return made


async def dry(cluster: FakeCluster, hosts: FakeHosts, clock: FakeClock) -> FakeMeter:
    """Let MIC run dry for a minute."""
    meter = FakeMeter()
    ports = AssignmentPorts(
        cluster=cluster,
        store=DryStore(),
        hosts=DryHosts(hosts),
        events=DryEvents(),
        lock=DryLock(),
        clock=clock,
        meter=meter,
        chance=lambda: 0.0,
    )
    work = asyncio.create_task(AssignmentService(ports, AssignmentSettings()).run())
    await clock.advance(60)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    return meter


async def test_it_says_each_step_of_the_whole_path_and_takes_none(
    hosts: FakeHosts, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="podidentity_core")
    things: list[Thing] = [node(), identity(), binding(), pod(), LEFT]
    cluster = FakeCluster(*things)

    meter = await dry(cluster, hosts, clock)

    said = [record.message for record in caplog.records if record.message.startswith("dry run: ")]
    name = "default/web-0-default-web"
    assert sorted(said) == sorted(
        [
            f"dry run: would create AzureAssignedIdentity {name} (Created)",
            f"dry run: would set AzureAssignedIdentity {LEFT.key} to Unassigned",
            f"dry run: would put {resource()} on {vm()}, and take {resource('db')} off",
            f"dry run: would set AzureAssignedIdentity {name} to Assigned",
            (
                "dry run: would tell Binding default/web: binding applied: "
                "Binding web applied on node node-1 for pod web-0-default-web"
            ),
            f"dry run: would delete AzureAssignedIdentity {LEFT.key}",
        ]
    )
    assert (cluster.calls, hosts.changes, hosts.listed(vm())) == ([], [], {resource("db")})
    assert set(cluster.assignments) == {LEFT.key}
    assert meter.counts["assigned_identity_addition_count"] == 1


async def test_a_cluster_in_order_gives_nothing_to_say(
    hosts: FakeHosts, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="podidentity_core")
    hosts.put(vm(), resource())

    await dry(FakeCluster(node(), identity(), binding(), pod(), assignment()), hosts, clock)

    assert [record.message for record in caplog.records if "dry run" in record.message] == []
