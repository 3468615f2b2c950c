"""AzureHosts against the sandbox's Resource Manager and Entra ID, where the contract does not reach."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from apps.clock import SystemClock
from apps.sandbox.faults import Fault
from apps.sandbox.hosts import Host as SandboxHost
from apps.sandbox.options import NodeSpec, SandboxOptions, identity_id, scale_set_id, scale_set_nodes, vm_id
from apps.sandbox.sandbox import Sandbox
from podidentity_azure.cloud import AzureConfig, load_azure_config
from podidentity_azure.hosts import AzureHosts
from podidentity_azure.quotas import Quotas
from podidentity_core.errors import (
    ConfigurationError,
    Conflict,
    NotFound,
    PermissionRefused,
    PodIdentityError,
    Throttled,
    TransientError,
)
from podidentity_core.resource_ids import Host, IdentityResource, host_of, parse_identity_resource
from podidentity_core.testing.fakes import FakeMeter


@pytest.fixture
def host(sandbox: Sandbox) -> Host:
    return host_of(sandbox.options.nodes[0].provider_id)


@pytest.fixture
def state(sandbox: Sandbox, host: Host) -> SandboxHost:
    return sandbox.azure.host(host.resource_id)


@pytest.fixture
def config(sandbox: Sandbox) -> AzureConfig:
    config = load_azure_config(sandbox.azure_json, sandbox.client_environment)
    return replace(config, cloud=replace(config.cloud, compute_api_version="2024-03-01"))


def opened(config: AzureConfig, meter: Any, environ: Mapping[str, str]) -> AzureHosts:
    return AzureHosts(config, clock=SystemClock(), meter=meter, agent="test", environ=environ)


@pytest.fixture
async def hosts(sandbox: Sandbox, config: AzureConfig, meter: Any) -> AsyncIterator[AzureHosts]:
    made = opened(config, meter, sandbox.client_environment)
    yield made
    await made.aclose()


@pytest.fixture
def web(sandbox: Sandbox) -> IdentityResource:
    return parse_identity_resource(sandbox.azure.add_identity(identity_id("web")).resource_id)


@pytest.fixture
def meter() -> FakeMeter:
    return FakeMeter()


DURATION = "cloud_provider_operations_duration_seconds"
ERRORS = "cloud_provider_operations_errors_count"


async def test_a_change_is_measured_as_a_read_and_a_write(
    hosts: AzureHosts, host: Host, web: IdentityResource, meter: FakeMeter
) -> None:
    await hosts.change(host, add=[web], remove=[])

    assert {name: len(samples) for name, samples in meter.observed.items()} == {
        f"{DURATION}:vmss_get": 1,
        f"{DURATION}:vmss_update": 1,
    }
    assert not [name for name in meter.counts if name.startswith(ERRORS)]


async def test_a_failed_write_is_counted(
    sandbox: Sandbox, hosts: AzureHosts, host: Host, web: IdentityResource, meter: FakeMeter
) -> None:
    sandbox.azure.refuse(web.text)

    with pytest.raises(PodIdentityError):
        await hosts.change(host, add=[web], remove=[])
    with pytest.raises(NotFound):
        await hosts.attached(replace(host, name="missing"))

    assert (meter.counts[f"{ERRORS}:vmss_update"], meter.counts[f"{ERRORS}:vmss_get"]) == (1, 1)


async def test_the_operation_is_polled_and_the_host_is_read_once(
    sandbox: Sandbox, hosts: AzureHosts, host: Host, web: IdentityResource
) -> None:
    await hosts.change(host, add=[web], remove=[])

    seen = [(entry.method, "/operations/" in entry.path) for entry in sandbox.faults.seen("arm")]
    assert seen[:2] == [("GET", False), ("PATCH", False)]
    assert set(seen[2:]) == {("GET", True)}


async def test_who_may_not_follow_the_operation_still_learns_its_end(
    sandbox: Sandbox, hosts: AzureHosts, host: Host, state: SandboxHost, web: IdentityResource
) -> None:
    sandbox.faults.add(Fault("arm", match="/operations/", times=None, status=403))

    result = await hosts.change(host, add=[web], remove=[])

    assert result.attached == {web}
    assert state.served == {web.key}


async def test_an_operation_that_fails_is_told_and_the_identity_is_put_there_by_the_next_try(
    sandbox: Sandbox, hosts: AzureHosts, host: Host, state: SandboxHost, web: IdentityResource
) -> None:
    sandbox.azure.fail_next_operation("InternalOperationError")

    with pytest.raises(TransientError, match="InternalOperationError"):
        await hosts.change(host, add=[web], remove=[])
    assert state.identity.folded == {web.key}, "Resource Manager lists it all the same"
    assert (await hosts.attached(host)).attached == frozenset()
    result = await hosts.change(host, add=[web], remove=[])

    assert result.attached == {web}
    assert state.served == {web.key}


async def test_a_write_of_somebody_else_between_read_and_write_is_a_conflict(
    sandbox: Sandbox, hosts: AzureHosts, host: Host, state: SandboxHost, web: IdentityResource
) -> None:
    sandbox.faults.add(Fault("arm", method="PATCH", latency_s=0.3))
    change = asyncio.create_task(hosts.change(host, add=[web], remove=[]))
    async with asyncio.timeout(20):
        while not sandbox.faults.seen("arm", "GET"):  # noqa: ASYNC110  -- a server's record has no event
            await asyncio.sleep(0.005)

    state.etag += 1

    with pytest.raises(Conflict, match="PreconditionFailed"):
        await change
    assert state.identity.assigned == ()
    assert (await hosts.change(host, add=[web], remove=[])).attached == {web}, "the next one reads the host anew"


async def test_a_throttled_host_says_how_long_and_is_asked_once(
    sandbox: Sandbox, hosts: AzureHosts, host: Host, web: IdentityResource
) -> None:
    sandbox.faults.add(Fault("arm", method="PATCH", times=None, status=429, headers={"retry-after": "1200"}))

    with pytest.raises(Throttled) as caught:
        await hosts.change(host, add=[web], remove=[])

    assert caught.value.retry_after_s == 1200
    assert len(sandbox.faults.seen("arm", "PATCH")) == 1


async def test_a_lost_answer_is_a_passing_trouble_and_the_next_try_finds_the_work_done(
    sandbox: Sandbox, hosts: AzureHosts, host: Host, web: IdentityResource
) -> None:
    sandbox.faults.add(Fault("arm", match="/operations/", times=None, action="close"))

    with pytest.raises(TransientError):
        await hosts.change(host, add=[web], remove=[])
    sandbox.faults.clear()
    result = await hosts.change(host, add=[web], remove=[])

    assert result.attached == {web}
    assert len(sandbox.faults.seen("arm", "PATCH")) == 1


@pytest.mark.parametrize(
    ("fault", "arrives"),
    [
        pytest.param(Fault("arm", method="PATCH", action="close"), False, id="cut before the host is changed"),
        pytest.param(Fault("arm", method="PATCH", cut_after=0, action="close"), True, id="cut after it is changed"),
        pytest.param(Fault("arm", method="PATCH", action="hang"), False, id="no answer"),
    ],
)
async def test_a_write_whose_answer_is_lost_is_settled_by_reading_the_host(
    sandbox: Sandbox,
    hosts: AzureHosts,
    host: Host,
    state: SandboxHost,
    web: IdentityResource,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    arrives: bool,
) -> None:
    await hosts.attached(host)  # has the token
    monkeypatch.setattr("podidentity_azure.compute.CALL_LIMIT_S", 2.0)
    sandbox.faults.add(fault)

    with pytest.raises(TransientError):
        await hosts.change(host, add=[web], remove=[])
    found = await hosts.attached(host)

    assert found.attached == ({web} if arrives else frozenset())
    assert state.served == {resource.key for resource in found.attached}
    assert len(sandbox.faults.seen("arm", "PATCH")) == 1
    assert len(sandbox.azure.operations) == arrives


async def test_a_wrong_secret_is_refused_in_the_words_of_entra(
    sandbox: Sandbox, config: AzureConfig, host: Host, meter: Any
) -> None:
    hosts = opened(replace(config, client_secret="wr0ng"), meter, sandbox.client_environment)

    with pytest.raises(PermissionRefused, match="AADSTS7000215") as caught:
        await hosts.attached(host)

    assert "wr0ng" not in str(caught.value)
    await hosts.aclose()


async def test_entra_is_asked_once_and_not_for_its_cloud(sandbox: Sandbox, hosts: AzureHosts, host: Host) -> None:
    await hosts.attached(host)
    await hosts.attached(host)

    assert [(entry.method, entry.path.rsplit("/", 2)[1:]) for entry in sandbox.faults.seen("entra")] == [
        ("POST", ["v2.0", "token"])
    ]


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
async def test_either_variable_names_the_certificates_to_trust(
    sandbox: Sandbox, config: AzureConfig, host: Host, meter: Any, variable: str
) -> None:
    hosts = opened(config, meter, {variable: str(sandbox.ca_file)})

    assert (await hosts.attached(host)).attached == frozenset()

    await hosts.aclose()


async def test_without_them_the_sandbox_is_not_trusted(config: AzureConfig, host: Host, meter: Any) -> None:
    hosts = opened(config, meter, {})

    with pytest.raises(TransientError, match="certificate"):
        await hosts.attached(host)

    await hosts.aclose()


@pytest.mark.parametrize("content", [None, "no certificates"])
def test_certificates_that_cannot_be_used_are_named(
    config: AzureConfig, meter: Any, tmp_path: Any, content: str | None
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)

    with pytest.raises(ConfigurationError, match=r"ca\.pem \(REQUESTS_CA_BUNDLE or SSL_CERT_FILE\)"):
        opened(config, meter, {"REQUESTS_CA_BUNDLE": str(path)})


async def test_a_new_configuration_counts_from_the_next_call_and_cuts_no_other_off(
    sandbox: Sandbox, hosts: AzureHosts, config: AzureConfig, host: Host, web: IdentityResource
) -> None:
    sandbox.entra.register(config.tenant_id, "another", "s3cret")
    change = asyncio.create_task(hosts.change(host, add=[web], remove=[]))
    async with asyncio.timeout(20):
        while not sandbox.azure.operations:  # noqa: ASYNC110  -- nor has its state
            await asyncio.sleep(0.005)

    await hosts.reconfigure(replace(config, client_id="another", client_secret="s3cret"))
    result = await change
    again = await hosts.attached(host)

    assert result.attached == again.attached == {web}
    assert len(sandbox.faults.seen("entra", "POST")) == 2


async def test_a_closed_one_opens_again_when_it_is_called(hosts: AzureHosts, host: Host) -> None:
    await hosts.aclose()
    await hosts.attached(host)
    await hosts.aclose()
    await hosts.aclose()

    assert (await hosts.attached(host)).attached == frozenset()


async def test_a_managed_identity_gets_its_token_from_the_node(
    sandbox: Sandbox, host: Host, meter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = sandbox.options.nodes[0].name
    mic = sandbox.azure.add_identity(identity_id("mic"))
    sandbox.azure.attach(host.resource_id, [mic.resource_id])
    settings = json.loads(sandbox.azure_json.read_text())
    settings |= {"useManagedIdentityExtension": True, "userAssignedIdentityID": mic.principal.client_id}
    sandbox.azure_json.write_text(json.dumps(settings))
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", sandbox.imds_urls[node])
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # nobody listens there
    config = load_azure_config(sandbox.azure_json, sandbox.client_environment)
    hosts = opened(config, meter, sandbox.client_environment)

    assert len((await hosts.attached(host)).attached) == 1

    (request,) = sandbox.faults.seen("imds")
    assert f"client_id={mic.principal.client_id}" in request.query
    assert sandbox.faults.seen("entra") == []
    await hosts.aclose()


# Azure's budgets


REQUESTS = "cloud_provider_requests_count"
LEFT = "cloud_provider_remaining_requests"
VM = NodeSpec("vm-node", vm_id("vm-1"))
SET_2 = NodeSpec("set-2-node", scale_set_id("set-2"), "0")
ELSEWHERE = NodeSpec("elsewhere", scale_set_id("set-3", subscription="5a4db0c5-0000-4000-8000-000000000002"), "0")


@asynccontextmanager
async def azure(meter: FakeMeter, **options: Any) -> AsyncIterator[tuple[Sandbox, AzureHosts]]:
    """A sandbox with a scale set, and whatever *options* say, with an adapter at work on it."""
    options = {"nodes": scale_set_nodes(1), "operation_s": 0.1, "run_pods": False, **options}
    async with Sandbox(SandboxOptions(**options)) as sandbox:
        config = load_azure_config(sandbox.azure_json, sandbox.client_environment)
        async with aclosing(opened(config, meter, sandbox.client_environment)) as hosts:
            yield sandbox, hosts


async def test_every_request_is_counted_and_what_is_left_is_shown(
    hosts: AzureHosts, host: Host, web: IdentityResource, meter: FakeMeter
) -> None:
    await hosts.change(host, add=[web], remove=[])

    requests = {name: count for name, count in meter.counts.items() if name.startswith(REQUESTS)}
    polls = requests.pop(f"{REQUESTS}:POLL:success")
    assert polls >= 1
    assert requests == {f"{REQUESTS}:GET:success": 1, f"{REQUESTS}:PATCH:success": 1}
    assert meter.gauges[f"{LEFT}:Microsoft.Compute/GetVMScaleSetResource"] == 35
    assert meter.gauges[f"{LEFT}:Microsoft.Compute/VMScaleSetActionsResource"] == 11
    assert meter.gauges[f"{LEFT}:Microsoft.Compute/GetOperationResource"] == pytest.approx(45 - polls, abs=1)
    assert meter.gauges[f"{LEFT}:subscription-writes"] == 199
    assert meter.gauges[f"{LEFT}:subscription-global-reads"] == pytest.approx(3749, abs=1)


def too_many(limit: str) -> dict[str, Any]:
    """As the compute provider says it."""
    told = "The server rejected the request because too many requests have been received for this subscription."
    detail = {"code": "TooManyRequests", "target": limit, "message": "{}"}
    return {"code": "OperationNotAllowed", "message": told, "details": [detail]}


BY_RESOURCE_MANAGER = {
    "code": "SubscriptionRequestsThrottled",
    "message": "Number of 'read' requests for subscription 's' actor 'o' exceeded. Try again after '120' seconds.",
}
BY_POLICY = {
    "code": "ResourceReadFailed",
    "message": "Policy required full resource content … failed with status '429'.",
}


@pytest.mark.parametrize(
    ("body", "remaining", "concerned"),
    [
        pytest.param({"error": BY_RESOURCE_MANAGER}, "", {SET_2, VM}, id="Resource Manager: the subscription"),
        pytest.param(
            too_many("HighCostGet"), "Microsoft.Compute/HighCostGet;0", {SET_2}, id="compute: sets of the subscription"
        ),
        pytest.param(
            too_many("GetVMScaleSetResource"),
            "Microsoft.Compute/GetVMScaleSetResource;0",
            set(),
            id="compute: the host",
        ),
        pytest.param({"error": BY_POLICY}, "", set(), id="Azure Policy: the host"),
    ],
)
async def test_a_429_keeps_those_hosts_back_that_it_is_about_and_no_others(
    meter: FakeMeter, body: dict[str, Any], remaining: str, concerned: set[NodeSpec]
) -> None:
    async with azure(meter, nodes=(*scale_set_nodes(1), SET_2, VM, ELSEWHERE)) as (sandbox, hosts):
        first = host_of(sandbox.options.nodes[0].provider_id)
        headers = {"retry-after": "120", "x-ms-ratelimit-remaining-resource": remaining}
        sandbox.faults.add(Fault("arm", status=429, body=body, headers=headers))

        kept_back = {}
        for node in (*sandbox.options.nodes[:1], *sandbox.options.nodes):
            try:
                await hosts.attached(host_of(node.provider_id))
            except Throttled as error:
                kept_back[node] = error.retry_after_s

        assert kept_back == {node: pytest.approx(120, abs=5) for node in (sandbox.options.nodes[0], *concerned)}
        asked = Counter(entry.path.lower() for entry in sandbox.faults.seen("arm"))
        assert asked.pop(first.key) == 1, "it waits"
        assert set(asked) == {node.host_id.lower() for node in sandbox.options.nodes[1:] if node not in concerned}
        assert meter.counts[f"{REQUESTS}:GET:throttled"] == 1


async def test_a_budget_that_somebody_else_has_used_up_delays_that_host_alone(meter: FakeMeter) -> None:
    async with azure(meter, nodes=(*scale_set_nodes(1), VM), enforce_limits=True) as (sandbox, hosts):
        first, other = (host_of(node.provider_id) for node in sandbox.options.nodes)
        sandbox.arm._limits.now = lambda: 0.0  # nothing comes back
        for _ in range(36):
            sandbox.arm._limits.take("GetVMScaleSetResource", first.key)

        with pytest.raises(Throttled) as caught:
            await hosts.attached(first)
        await hosts.attached(other)

        assert caught.value.retry_after_s == 5
        assert [entry.status for entry in sandbox.faults.seen("arm")] == [429, 200]


async def test_hosts_that_are_changed_as_fast_as_they_may_be_never_meet_a_429(meter: FakeMeter) -> None:
    """Until half of them have used up what Azure would allow."""
    nodes = tuple(NodeSpec(f"n-{number}", vm_id(f"vm-{number}")) for number in range(40))
    sent_away = 0
    enough = asyncio.Event()

    async def keep_changing(hosts: AzureHosts, host: Host, one: IdentityResource, two: IdentityResource) -> None:
        nonlocal sent_away
        while True:
            try:
                await hosts.change(host, add=[one], remove=[two])
            except Throttled as error:
                sent_away += 1
                if sent_away == len(nodes) // 2:
                    enough.set()
                await asyncio.sleep(error.retry_after_s)
            one, two = two, one

    async with azure(meter, nodes=nodes, enforce_limits=True) as (sandbox, hosts):
        pair = [parse_identity_resource(sandbox.azure.add_identity(identity_id(name)).resource_id) for name in "ab"]
        tasks = [asyncio.create_task(keep_changing(hosts, host_of(node.provider_id), *pair)) for node in nodes]
        await asyncio.wait_for(enough.wait(), 100)
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)

        assert {type(end) for end in ends} == {asyncio.CancelledError}
        statuses = Counter((entry.method, entry.status) for entry in sandbox.faults.seen("arm"))
        print(f"{dict(statuses)}, {sent_away} times sent away")
        assert set(statuses) - {("GET", 0), ("PATCH", 0)} == {("GET", 200), ("PATCH", 200)}, "0: cut off by the end"


async def test_without_our_own_budget_they_do(meter: FakeMeter, monkeypatch: pytest.MonkeyPatch) -> None:
    async def admit(*_: object) -> None: ...

    monkeypatch.setattr(Quotas, "admit", admit)
    async with azure(meter, nodes=(VM,), enforce_limits=True) as (sandbox, hosts):
        host = host_of(VM.provider_id)
        pair = [parse_identity_resource(sandbox.azure.add_identity(identity_id(name)).resource_id) for name in "ab"]

        for number in range(6):
            await hosts.change(host, add=[pair[number % 2]], remove=[pair[number % 2 - 1]])
        with pytest.raises(Throttled) as caught:
            await hosts.change(host, add=pair[:1], remove=pair[1:])

        assert sandbox.faults.seen("arm")[-1].status == 429
        assert caught.value.retry_after_s == pytest.approx(30, abs=5)


BUSY_S = 1.0
"""What a busy machine may add. That the waits alone keep within half a second is in test_operations.py."""


async def test_the_end_of_an_operation_of_5_s_is_seen_within_half_a_second(meter: FakeMeter) -> None:
    async with azure(meter, operation_s=5.0, enforce_limits=True) as (sandbox, hosts):
        host = host_of(sandbox.options.nodes[0].provider_id)
        for name in ("first", "second"):
            identity = parse_identity_resource(sandbox.azure.add_identity(identity_id(name)).resource_id)
            await hosts.change(host, add=[identity], remove=[])

        for operation in sandbox.azure.operations:
            assert operation.ended_at is not None
            assert operation.reported_at is not None
            print(f"{operation.polls} polls, lag {operation.reported_at - operation.ended_at:.3f} s")
            assert operation.reported_at - operation.ended_at < 0.5 + BUSY_S
        assert sandbox.azure.operations[1].polls <= 5
