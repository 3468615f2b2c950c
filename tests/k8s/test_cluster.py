"""Watching a cluster: selection, resuming, starting over, back-off, and every way in which a watch can break."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs

import pytest

from apps.clock import SystemClock
from apps.sandbox.faults import Fault
from apps.sandbox.sandbox import Sandbox
from podidentity_core.model import (
    Assignment,
    Binding,
    Change,
    ExceptionRule,
    Gone,
    Identity,
    Key,
    Node,
    Pod,
    Seen,
    Synced,
    Unusable,
)
from podidentity_core.ports import Clock
from podidentity_core.testing import builders
from podidentity_core.testing.contracts.cluster import Follower, following
from podidentity_k8s.api import Connection, KubeApi
from podidentity_k8s.bodies import new_assignment
from podidentity_k8s.cluster import KubeCluster
from podidentity_k8s.config import load_credentials
from podidentity_k8s.reflector import Pace
from podidentity_k8s.resources import Resource, mic_resources, nmi_resources
from tests.k8s.helpers import Relay, SteppedClock, kubeconfig_to, server_port, until

GROUP = "aadpodidentity.k8s.io/v1"
RULES = "azurepodidentityexceptions"
QUICK = Pace(first_pause_s=0.01, longest_pause_s=0.05)
RULE_RESOURCE = next(one for one in nmi_resources("any") if one.kind is ExceptionRule)


def cluster(
    api: KubeApi,
    resources: Sequence[Resource] = (RULE_RESOURCE,),
    *,
    clock: Clock | None = None,
    pace: Pace = QUICK,
    random: Callable[[], float] = lambda: 0.5,
) -> KubeCluster:
    return KubeCluster(api, resources, clock=clock or SystemClock(), random=random, pace=pace)


def put_rule(sandbox: Sandbox, name: str, **spec: Any) -> None:
    sandbox.cluster.create(
        {
            "apiVersion": GROUP,
            "kind": "AzurePodIdentityException",
            "metadata": {"name": name, "namespace": "default"},
            "spec": spec or {"podLabels": {"app": name}},
        }
    )


def remove_rule(sandbox: Sandbox, name: str) -> None:
    sandbox.cluster.delete(sandbox.cluster.registry.named(RULES), "default", name)


def put_pod(sandbox: Sandbox, name: str, node: str, **labels: str) -> None:
    sandbox.cluster.create(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "labels": labels},
            "spec": {"nodeName": node, "containers": [{"name": "main", "image": "main"}]},
        }
    )


def names(told: Follower) -> set[str]:
    return {key.name for _, key in told.things}


def asked(sandbox: Sandbox, match: str = "") -> list[dict[str, list[str]]]:
    return [parse_qs(one.query) for one in sandbox.faults.seen("kube", "GET", match)]


def lists(sandbox: Sandbox) -> int:
    return len([one for one in asked(sandbox, RULES) if "watch" not in one])


async def test_a_list_comes_in_pages(sandbox: Sandbox, api: KubeApi) -> None:
    for number in range(1100):
        put_rule(sandbox, f"rule-{number}")

    async with following(cluster(api)) as told:
        await told.until_synced()

    assert len(told.things) == 1100
    assert [query["limit"] for query in asked(sandbox, "limit")] == [["500"]] * 3
    assert len(told.batches) == 4  # three pages and `Synced`


async def test_a_watch_asks_for_bookmarks_from_the_version_of_the_list(sandbox: Sandbox, api: KubeApi) -> None:
    async with following(cluster(api, random=lambda: 0.5)) as told:
        await told.until_synced()
        await until(lambda: asked(sandbox, "watch=true"))

    (query,) = asked(sandbox, "watch=true")
    assert query["allowWatchBookmarks"] == ["true"]
    assert query["timeoutSeconds"] == ["450"]
    assert query["resourceVersion"] == [str(sandbox.store.version)]


async def test_mic_watches_labelled_pods_only_and_loses_one_with_its_label(sandbox: Sandbox, api: KubeApi) -> None:
    put_pod(sandbox, "bound", "node-1", aadpodidbinding="web")
    put_pod(sandbox, "other", "node-1", app="web")

    async with following(cluster(api, mic_resources())) as told:
        await told.until_synced()
        assert names(told) == {"bound"}
        sandbox.cluster.change("pods", "default", "bound", lambda pod: pod["metadata"]["labels"].clear())
        await told.until(lambda: not told.things)

    assert {type(change.thing) for change in told.changes if isinstance(change, Seen)} == {Pod}


async def test_nmi_watches_its_node_only(sandbox: Sandbox, api: KubeApi) -> None:
    long = "node-" * 20 + "a"
    for node in (long, "node-2"):
        put_pod(sandbox, f"pod-on-{node[-1]}", node, app="web")
        sandbox.cluster.create(new_assignment(replace(builders.assignment(node=node), name=f"assigned-on-{node[-1]}")))
    put_rule(sandbox, "rule")

    async with following(cluster(api, nmi_resources(long))) as told:
        await told.until_synced()
    async with following(cluster(api, nmi_resources(long, scale_features=False))) as all_told:
        await all_told.until_synced()

    assert names(told) == {"pod-on-a", "assigned-on-a", "rule"}
    assert names(all_told) == {"pod-on-a", "assigned-on-a", "assigned-on-2", "rule"}


def test_what_is_watched() -> None:
    assert {one.kind for one in mic_resources()} == {Pod, Node, Identity, Binding, Assignment}
    assert {one.kind for one in nmi_resources("node-1")} == {Pod, Assignment, ExceptionRule}


async def test_a_bad_object_is_unusable_until_it_is_corrected(sandbox: Sandbox, api: KubeApi) -> None:
    identity = {
        "apiVersion": GROUP,
        "kind": "AzureIdentity",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"type": 0, "resourceID": "nonsense", "clientID": "c"},
    }
    sandbox.cluster.create(identity)

    async with following(cluster(api, mic_resources())) as told:
        await told.until_synced()
        (bad,) = [change for change in told.changes if isinstance(change, Unusable)]
        assert (bad.kind, bad.key) == (Identity, Key("default", "web"))
        sandbox.cluster.change(
            "azureidentities", "default", "web", lambda one: one["spec"].update(resourceID=builders.resource().text)
        )
        await told.until(lambda: (Identity, bad.key) in told.things)


# How a watch breaks. Each line: what goes wrong (once), and whether a list is needed afterwards.
BREAKS = [
    pytest.param({"match": "watch=true", "status": 500}, False, id="watch refused"),
    pytest.param({"match": "watch=true", "status": 429}, False, id="watch throttled"),
    pytest.param({"match": "watch=true", "status": 403}, False, id="watch forbidden"),
    pytest.param({"match": "watch=true", "action": "close"}, False, id="connection reset"),
    pytest.param({"match": "watch=true", "cut_after": 0}, False, id="stream ended at once"),
    pytest.param({"match": "watch=true", "cut_after": 0, "action": "close"}, False, id="stream cut"),
    pytest.param({"match": "watch=true", "status": 410}, True, id="version too old, by status"),
    pytest.param({"match": "watch=true", "status": 200, "body": "<html>\n"}, False, id="lines that are no JSON"),
    pytest.param({"match": "watch=true", "status": 200, "body": '{"type":"ADD'}, False, id="a line that was cut"),
    pytest.param(
        {"match": "watch=true", "status": 502, "body": "<html>", "headers": {"content-type": "text/html"}},
        False,
        id="a proxy's page",
    ),
    pytest.param(
        {
            "match": "watch=true",
            "status": 200,
            "body": json.dumps({"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}})
            + "\n",
        },
        True,
        id="version too old, by event",
    ),
    pytest.param(
        {
            "match": "watch=true",
            "status": 200,
            "body": json.dumps({"type": "ERROR", "object": {"kind": "Status", "code": 500, "message": "etcd"}}) + "\n",
        },
        True,
        id="another error by event",
    ),
    pytest.param({"match": "limit=", "status": 500}, False, id="list refused"),
    pytest.param({"match": "limit=", "status": 200, "body": "[]"}, False, id="a list that is none"),
    pytest.param({"match": "limit=", "status": 410}, False, id="list expired"),
]


@pytest.mark.parametrize(("fault", "lists_again"), BREAKS)
async def test_after_any_break_nothing_is_lost(
    sandbox: Sandbox, connection: Connection, fault: dict[str, Any], lists_again: bool
) -> None:
    put_rule(sandbox, "early")
    sandbox.faults.add(Fault("kube", **fault))
    api = KubeApi(connection, clock=SystemClock(), random=lambda: 0.5, retries=0)

    async with following(cluster(api)) as told:
        await told.until_synced()
        put_rule(sandbox, "late")
        remove_rule(sandbox, "early")
        await told.until(lambda: names(told) == {"late"})

    assert lists(sandbox) == (2 if lists_again or fault["match"] == "limit=" else 1)
    assert told.changes.count(Synced()) == 1


@pytest.mark.parametrize(("fault", "_lists_again"), BREAKS)
async def test_a_break_that_lasts_is_met_with_growing_pauses(
    sandbox: Sandbox, connection: Connection, fault: dict[str, Any], _lists_again: bool
) -> None:
    clock = SteppedClock()
    sandbox.kube.bookmark_s = 0.01  # so that there is something to cut
    sandbox.faults.add(Fault("kube", times=None, **fault))
    api = KubeApi(connection, clock=clock, random=lambda: 0.5, retries=0)

    async with following(cluster(api, clock=clock, pace=Pace(), random=lambda: 1.0)):
        await until(lambda: len(clock.slept_s) >= 9)

    assert clock.slept_s[:9] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


async def test_after_an_outage_in_which_our_version_became_too_old_the_list_comes_at_once(
    sandbox: Sandbox, connection: Connection
) -> None:
    clock = SteppedClock()
    api = KubeApi(connection, clock=clock, random=lambda: 0.5, retries=0)

    sandbox.faults.add(Fault("kube", match="watch=true", status=503, times=5))
    sandbox.faults.add(Fault("kube", match="watch=true", status=410))

    async with following(cluster(api, clock=clock, pace=Pace(), random=lambda: 1.0)) as told:
        await told.until_synced()
        put_rule(sandbox, "late")
        await told.until(lambda: names(told) == {"late"})

    assert lists(sandbox) == 2
    assert clock.slept_s == [0.5, 1.0, 2.0, 4.0, 8.0, 0.5]


async def test_pauses_are_cut_by_chance_so_that_clients_do_not_march(sandbox: Sandbox, connection: Connection) -> None:
    clock = SteppedClock()
    sandbox.faults.add(Fault("kube", times=None, status=500))
    api = KubeApi(connection, clock=clock, random=lambda: 0.5, retries=0)

    async with following(cluster(api, clock=clock, pace=Pace(), random=lambda: 0.0)):
        await until(lambda: len(clock.slept_s) >= 3)

    assert clock.slept_s[:3] == [0.25, 0.5, 1.0]


async def test_a_healthy_time_ends_the_growing(sandbox: Sandbox, connection: Connection) -> None:
    clock = SteppedClock()
    sandbox.faults.add(Fault("kube", times=4, status=500))
    api = KubeApi(connection, clock=clock, random=lambda: 0.5, retries=0)

    async with following(cluster(api, clock=clock, pace=Pace(idle_s=0.2), random=lambda: 1.0)) as told:
        await told.until_synced()
        clock.now_s += 60
        await until(lambda: len(clock.slept_s) >= 5)

    assert clock.slept_s[:5] == [0.5, 1.0, 2.0, 4.0, 0.5]


async def test_history_that_is_gone_leads_to_a_list_that_shows_what_vanished(sandbox: Sandbox) -> None:
    for name in ("stays", "goes", "comes-again"):
        put_rule(sandbox, name)
    async with (
        Relay(server_port(sandbox.kubeconfig)).running() as relay,
        connected(sandbox, relay) as api,
        following(cluster(api)) as told,
    ):
        await told.until_synced()
        before = len(told.changes)
        await until(lambda: asked(sandbox, "watch=true"))
        outage = sandbox.faults.add(Fault("kube", match="watch=true", status=503, times=None))
        relay.cut()
        await until(lambda: len(asked(sandbox, "watch=true")) > 1)
        remove_rule(sandbox, "goes")
        remove_rule(sandbox, "comes-again")
        put_rule(sandbox, "comes-again")
        put_rule(sandbox, "new")
        sandbox.kube.compact()
        sandbox.faults.active.remove(outage)
        await told.until(lambda: names(told) == {"stays", "comes-again", "new"} and len(told.changes) > before + 2)

    after = told.changes[before:]
    assert sorted(kind_and_name(change) for change in after) == ["comes-again", "gone comes-again", "gone goes", "new"]


def kind_and_name(change: Change) -> str:
    if isinstance(change, Gone):
        return f"gone {change.key.name}"
    assert isinstance(change, Seen)
    return change.thing.key.name


async def test_a_continue_token_that_expires_starts_the_list_again(sandbox: Sandbox, api: KubeApi) -> None:
    for number in range(600):
        put_rule(sandbox, f"rule-{number}")
    sandbox.faults.add(Fault("kube", match="continue=", status=410))

    async with following(cluster(api)) as told:
        await told.until_synced()

    assert len(told.things) == 600
    assert len([change for change in told.changes if isinstance(change, Seen)]) == 600
    assert lists(sandbox) == 4


async def test_a_silent_stream_is_given_up_and_resumed_without_a_list(sandbox: Sandbox) -> None:
    async with Relay(server_port(sandbox.kubeconfig)).running() as relay, connected(sandbox, relay) as api:
        pace = replace(QUICK, idle_s=0.3)
        async with following(cluster(api, pace=pace)) as told:
            await told.until_synced()
            await until(lambda: asked(sandbox, "watch=true"))
            put_rule(sandbox, "seen")
            await told.until(lambda: names(told) == {"seen"})  # the stream has begun
            relay.hold(new_ones=False)
            put_rule(sandbox, "missed")
            await told.until(lambda: names(told) == {"seen", "missed"})

        assert lists(sandbox) == 1


@asynccontextmanager
async def connected(sandbox: Sandbox, relay: Relay) -> AsyncIterator[KubeApi]:
    credentials = await load_credentials(str(kubeconfig_to(relay.port, sandbox.kubeconfig)))
    async with Connection(credentials, user_agent="test") as connection:
        yield KubeApi(connection, clock=SystemClock(), random=lambda: 0.5)


async def test_bookmarks_keep_the_version_fresh(sandbox: Sandbox) -> None:
    sandbox.kube.bookmark_s = 0.02
    async with (
        Relay(server_port(sandbox.kubeconfig)).running() as relay,
        connected(sandbox, relay) as api,
        following(cluster(api)) as told,
    ):
        await told.until_synced()
        put_pod(sandbox, "elsewhere", "node-1")  # the version moves on without any change of what is watched
        moved = str(sandbox.store.version)
        async with asyncio.timeout(10):
            while asked(sandbox, "watch=true")[-1:] == [] or resumed_from(sandbox) != moved:
                relay.cut()
                await asyncio.sleep(0.1)

    assert lists(sandbox) == 1


def resumed_from(sandbox: Sandbox) -> str:
    return asked(sandbox, "watch=true")[-1]["resourceVersion"][0]


async def test_there_is_no_synced_before_every_resource_was_listed(sandbox: Sandbox, api: KubeApi) -> None:
    put_rule(sandbox, "rule")
    refused = sandbox.faults.add(Fault("kube", match="/pods", status=403, times=None))

    async with following(cluster(api, nmi_resources("node-1"))) as told:
        await told.until(lambda: names(told) == {"rule"})
        await until(lambda: len(asked(sandbox, "/pods")) >= 3)
        assert Synced() not in told.changes
        sandbox.faults.active.remove(refused)
        await told.until_synced()


async def test_a_refusal_is_logged_with_the_servers_words(
    sandbox: Sandbox, api: KubeApi, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.faults.add(Fault("kube", match=RULES, status=403))

    async with following(cluster(api)) as told:
        await told.until_synced()

    (record,) = caplog.records
    assert record.getMessage().startswith(f"watch of /apis/{GROUP}/{RULES} ended: GET /apis/{GROUP}/{RULES}: A fault")


async def test_closing_ends_every_watch(sandbox: Sandbox, api: KubeApi) -> None:
    async with following(cluster(api, mic_resources())) as told:
        await told.until_synced()
        await until(lambda: len(asked(sandbox, "watch=true")) == 5)
        assert len(watching()) == 5

    assert watching() == []


def watching() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("watch ")]


async def test_a_bug_ends_the_stream_loudly(sandbox: Sandbox, api: KubeApi) -> None:
    def broken(_: Any) -> ExceptionRule:
        raise ZeroDivisionError

    put_rule(sandbox, "rule")
    stream = cluster(api, [replace(RULE_RESOURCE, convert=broken)]).changes()

    with pytest.raises(ZeroDivisionError):
        await anext(stream)

    assert watching() == []
