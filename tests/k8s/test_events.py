"""Events: their form, counting, what happens when they cannot be delivered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from apps.sandbox.faults import Fault
from apps.sandbox.sandbox import Sandbox
from podidentity_core.model import Assignment, Binding, Key, Node, Pod, Thing
from podidentity_core.ports import Event, Severity
from podidentity_k8s.api import Connection, KubeApi
from podidentity_k8s.events import KubeEvents
from tests.k8s.helpers import SteppedClock

APPLIED = Event(Binding, Key("default", "web"), "u1", Severity.NORMAL, "binding applied", "Binding web applied")


@pytest.fixture
def stepped() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
def api(connection: Connection, stepped: SteppedClock) -> KubeApi:
    return KubeApi(connection, clock=stepped, random=lambda: 0.5)


@pytest.fixture
async def events(api: KubeApi, stepped: SteppedClock) -> AsyncIterator[KubeEvents]:
    async with KubeEvents(api, clock=stepped) as running:
        yield running


def stored(sandbox: Sandbox) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = sandbox.cluster.objects("events")
    return found


async def test_an_event_has_the_form_that_kubectl_describe_looks_for(sandbox: Sandbox, events: KubeEvents) -> None:
    events.publish(APPLIED)
    await events.delivered()

    (event,) = stored(sandbox)
    assert event["metadata"]["namespace"] == "default"
    assert event["metadata"]["name"].startswith("web.")
    assert event["involvedObject"] == {
        "apiVersion": "aadpodidentity.k8s.io/v1",
        "kind": "AzureIdentityBinding",
        "namespace": "default",
        "name": "web",
        "uid": "u1",
    }
    assert (event["type"], event["reason"], event["message"]) == ("Normal", "binding applied", "Binding web applied")
    assert event["source"] == {"component": "aadpodidentity.k8s.io"}
    assert event["count"] == 1
    assert event["firstTimestamp"] == event["lastTimestamp"] == "2023-11-14T22:30:00Z"


@pytest.mark.parametrize(
    ("kind", "key", "api_version", "name", "namespace"),
    [
        (Pod, Key("shop", "p"), "v1", "Pod", "shop"),
        (Node, Key("", "n"), "v1", "Node", "default"),
        (Assignment, Key("default", "a"), "aadpodidentity.k8s.io/v1", "AzureAssignedIdentity", "default"),
    ],
)
async def test_each_kind_has_its_true_name(
    sandbox: Sandbox,
    events: KubeEvents,
    kind: type[Thing],
    key: Key,
    api_version: str,
    name: str,
    namespace: str,
) -> None:
    sandbox.cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})
    events.publish(replace(APPLIED, kind=kind, key=key))
    await events.delivered()

    (event,) = stored(sandbox)
    assert (event["involvedObject"]["apiVersion"], event["involvedObject"]["kind"]) == (api_version, name)
    assert event["metadata"]["namespace"] == namespace


async def test_a_repeated_event_is_counted(sandbox: Sandbox, events: KubeEvents, stepped: SteppedClock) -> None:
    events.publish(APPLIED)
    await events.delivered()
    stepped.now_s += 60
    events.publish(APPLIED)
    events.publish(APPLIED)
    await events.delivered()

    (event,) = stored(sandbox)
    assert event["count"] == 3
    assert event["firstTimestamp"] < event["lastTimestamp"]


@pytest.mark.parametrize("change", [{"uid": "u2"}, {"message": "another"}, {"severity": Severity.WARNING}])
async def test_what_differs_is_an_event_of_its_own(
    sandbox: Sandbox, events: KubeEvents, change: dict[str, Any]
) -> None:
    events.publish(APPLIED)
    events.publish(replace(APPLIED, **change))
    await events.delivered()

    assert [event["count"] for event in stored(sandbox)] == [1, 1]


async def test_after_a_long_time_a_repetition_is_an_event_of_its_own(
    sandbox: Sandbox, events: KubeEvents, stepped: SteppedClock
) -> None:
    events.publish(APPLIED)
    await events.delivered()
    stepped.now_s += 3600
    events.publish(APPLIED)
    await events.delivered()

    assert [event["count"] for event in stored(sandbox)] == [1, 1]


async def test_an_event_that_has_expired_is_created_anew(sandbox: Sandbox, events: KubeEvents) -> None:
    events.publish(APPLIED)
    await events.delivered()
    (event,) = stored(sandbox)
    sandbox.cluster.delete(sandbox.cluster.registry.named("events"), "default", event["metadata"]["name"])

    events.publish(APPLIED)
    await events.delivered()

    assert [event["count"] for event in stored(sandbox)] == [1]


@pytest.mark.parametrize("fault", [{"status": 403}, {"status": 500}, {"action": "close"}])
async def test_an_event_that_cannot_be_delivered_is_dropped_and_the_next_one_goes_out(
    sandbox: Sandbox, events: KubeEvents, caplog: pytest.LogCaptureFixture, fault: dict[str, Any]
) -> None:
    sandbox.faults.add(Fault("kube", **fault))

    events.publish(APPLIED)
    events.publish(replace(APPLIED, reason="next"))
    await events.delivered()

    assert [event["reason"] for event in stored(sandbox)] == ["next"]
    (record,) = caplog.records
    assert "dropped the event 'binding applied' of AzureIdentityBinding default/web" in record.getMessage()


async def test_a_flood_is_cut_and_never_blocks(
    sandbox: Sandbox, api: KubeApi, stepped: SteppedClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with KubeEvents(api, clock=stepped) as events:
        for number in range(1200):  # before anybody can deliver
            events.publish(replace(APPLIED, message=str(number)))
        await events.delivered()

    assert len(stored(sandbox)) == 1000
    assert [record.getMessage() for record in caplog.records] == [
        "events are dropped, since too many wait, first 'binding applied' of AzureIdentityBinding default/web",
        "200 events were dropped, since too many waited",
    ]


async def test_events_go_out_at_a_rate_of_their_own(
    sandbox: Sandbox, events: KubeEvents, stepped: SteppedClock
) -> None:
    for number in range(60):
        events.publish(replace(APPLIED, message=str(number)))
    await events.delivered()

    assert len(stored(sandbox)) == 60
    assert len([pause for pause in stepped.slept_s if pause > 0.01]) == 10  # a burst of 50, then ten a second


async def test_what_waits_at_the_end_still_goes_out(sandbox: Sandbox, api: KubeApi, stepped: SteppedClock) -> None:
    async with KubeEvents(api, clock=stepped) as events:
        events.publish(APPLIED)

    assert len(stored(sandbox)) == 1


async def test_the_end_does_not_wait_for_a_dead_server(sandbox: Sandbox, api: KubeApi, stepped: SteppedClock) -> None:
    sandbox.faults.add(Fault("kube", action="hang", times=None))
    async with asyncio.timeout(10):
        async with KubeEvents(api, clock=stepped, flush_s=0.1) as events:
            events.publish(APPLIED)

    assert stored(sandbox) == []


async def test_a_long_message_and_a_long_name_are_cut(sandbox: Sandbox, events: KubeEvents) -> None:
    events.publish(replace(APPLIED, key=Key("default", "n" * 253), message="m" * 5000))
    await events.delivered()

    (event,) = stored(sandbox)
    assert len(event["message"]) == 1024
    assert len(event["metadata"]["name"]) == 253
    assert event["involvedObject"]["name"] == "n" * 253
