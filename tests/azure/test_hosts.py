"""AzureHosts against the sandbox's Resource Manager and Entra ID, where the contract does not reach."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from apps.clock import SystemClock
from apps.sandbox.faults import Fault
from apps.sandbox.hosts import Host as SandboxHost
from apps.sandbox.options import identity_id
from apps.sandbox.sandbox import Sandbox
from podidentity_azure.cloud import AzureConfig, load_azure_config
from podidentity_azure.hosts import AzureHosts
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


DURATION = "cloud_provider_operations_duration_seconds"
ERRORS = "cloud_provider_operations_errors_count"


async def test_a_change_is_measured_as_a_read_and_a_write(
    hosts: AzureHosts, host: Host, web: IdentityResource, meter: Any
) -> None:
    await hosts.change(host, add=[web], remove=[])

    assert meter.observations == [
        (DURATION, {"operation_type": "vmss_get"}),
        (DURATION, {"operation_type": "vmss_update"}),
    ]
    assert meter.counts == []


async def test_a_failed_write_is_counted(
    sandbox: Sandbox, hosts: AzureHosts, host: Host, web: IdentityResource, meter: Any
) -> None:
    sandbox.azure.refuse(web.text)

    with pytest.raises(PodIdentityError):
        await hosts.change(host, add=[web], remove=[])
    with pytest.raises(NotFound):
        await hosts.attached(replace(host, name="missing"))

    assert meter.counts == [(ERRORS, {"operation_type": "vmss_update"}), (ERRORS, {"operation_type": "vmss_get"})]


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
