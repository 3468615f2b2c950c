"""Microsoft's own SDKs, unchanged, against the sandbox: azure-identity and azure-mgmt-compute, both colours."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any

import azure.identity
import pytest
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ResourceNotFoundError
from azure.identity.aio import ClientSecretCredential, ManagedIdentityCredential
from azure.mgmt.compute.aio import ComputeManagementClient

from apps.sandbox.options import RESOURCE_GROUP, SUBSCRIPTION, TENANT, NodeSpec, identity_id, scale_set_nodes, vm_id
from apps.sandbox.sandbox import Sandbox, SandboxOptions

POLL_S = 0.02


@pytest.fixture
def options(options: SandboxOptions) -> SandboxOptions:
    """A scale set and a VM."""
    return dataclasses.replace(options, nodes=(*scale_set_nodes(1), NodeSpec("vm-node", vm_id("vm1"))))


@pytest.fixture
def environment(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The process environment as the sandbox asks for it, and the parsed custom cloud."""
    for key, value in sandbox.client_environment.items():
        monkeypatch.setenv(key, value)
    cloud: dict[str, Any] = json.loads(sandbox.environment_json.read_text())
    return cloud


@pytest.fixture
async def compute(sandbox: Sandbox, environment: dict[str, Any]) -> AsyncIterator[ComputeManagementClient]:
    """A client configured from azure.json and environment.json alone."""
    config = json.loads(sandbox.azure_json.read_text())
    async with (
        ClientSecretCredential(
            config["tenantId"],
            config["aadClientId"],
            config["aadClientSecret"],
            authority=environment["activeDirectoryEndpoint"],
            connection_verify=str(sandbox.ca_file),  # aiohttp looks at SSL_CERT_FILE only when it is imported
        ) as credential,
        ComputeManagementClient(
            credential,
            config["subscriptionId"],
            base_url=environment["resourceManagerEndpoint"].rstrip("/"),
            credential_scopes=[f"{environment['resourceManagerEndpoint']}/.default"],
            polling_interval=POLL_S,
            connection_verify=str(sandbox.ca_file),
        ) as client,
    ):
        yield client


async def test_identities_are_added_and_removed_with_long_running_operations(
    compute: ComputeManagementClient, sandbox: Sandbox
) -> None:
    ids = [sandbox.azure.add_identity(identity_id(name)).resource_id for name in "ab"]
    for operations, name, host in (
        (compute.virtual_machine_scale_sets, "aks-pool1-12345678-vmss", sandbox.options.nodes[0].host_id),
        (compute.virtual_machines, "vm1", vm_id("vm1")),
    ):
        add: Any = {"identity": {"type": "UserAssigned", "userAssignedIdentities": {key: {} for key in ids}}}
        added = await (await operations.begin_update(RESOURCE_GROUP, name, add)).result()
        remove: Any = {"identity": {"type": "UserAssigned", "userAssignedIdentities": {ids[0]: None}}}
        await (await operations.begin_update(RESOURCE_GROUP, name, remove)).result()
        read = await operations.get(RESOURCE_GROUP, name)

        assert added.identity is not None
        assert set(added.identity.user_assigned_identities or {}) == set(ids)
        assert read.identity is not None
        assert list(read.identity.user_assigned_identities or {}) == [ids[1]]
        assert sandbox.azure.host(host).served == {ids[1].lower()}


async def test_errors_arrive_with_their_codes(compute: ComputeManagementClient, sandbox: Sandbox) -> None:
    with pytest.raises(ResourceNotFoundError) as missing:
        await compute.virtual_machines.get(RESOURCE_GROUP, "none")
    body: Any = {"identity": {"type": "UserAssigned", "userAssignedIdentities": {identity_id("none"): {}}}}
    with pytest.raises(HttpResponseError) as refused:
        await compute.virtual_machines.begin_update(RESOURCE_GROUP, "vm1", body)
    sandbox.azure.add_identity(identity_id("a"))
    sandbox.azure.fail_next_operation("InternalExecutionError")
    body = {"identity": {"type": "UserAssigned", "userAssignedIdentities": {identity_id("a"): {}}}}
    poller = await compute.virtual_machines.begin_update(RESOURCE_GROUP, "vm1", body)
    with pytest.raises(HttpResponseError) as failed:
        await poller.result()

    codes = [error.value.error and error.value.error.code for error in (missing, refused, failed)]
    assert codes == ["ResourceNotFound", "FailedIdentityOperation", "InternalExecutionError"]


async def test_managed_identities_get_tokens_that_arm_accepts(
    sandbox: Sandbox, environment: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = sandbox.azure.add_identity(identity_id("app"))
    sandbox.azure.attach(sandbox.options.nodes[0].host_id, [made.resource_id])
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", next(iter(sandbox.imds_urls.values())))
    async with (
        ManagedIdentityCredential(client_id=made.principal.client_id) as credential,
        ComputeManagementClient(
            credential,
            SUBSCRIPTION,
            base_url=sandbox.arm_url,
            credential_scopes=["https://management.azure.com/.default"],
            connection_verify=str(sandbox.ca_file),
        ) as client,
    ):
        names = [vm.name async for vm in client.virtual_machines.list(RESOURCE_GROUP)]
    sync = azure.identity.ManagedIdentityCredential(identity_config={"resource_id": made.resource_id})
    with sync:
        token = await asyncio.to_thread(sync.get_token, "https://vault.azure.net/.default")

    assert names == ["vm1"]
    assert token.token.count(".") == 2


async def test_the_synchronous_secret_credential_works_too(sandbox: Sandbox, environment: dict[str, Any]) -> None:
    def token(secret: str) -> str:
        with azure.identity.ClientSecretCredential(
            TENANT, sandbox.client_id, secret, authority=sandbox.entra_url, disable_instance_discovery=True
        ) as credential:
            return credential.get_token("https://vault.azure.net/.default").token

    assert sandbox.entra.issuer.verify(await asyncio.to_thread(token, sandbox.client_secret))["tid"] == TENANT
    with pytest.raises(ClientAuthenticationError, match="AADSTS7000215"):
        await asyncio.to_thread(token, "wrong")


async def test_azure_json_can_name_a_managed_identity_instead(
    options: SandboxOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Sandbox(dataclasses.replace(options, use_managed_identity=True)) as sandbox:
        config = json.loads(sandbox.azure_json.read_text())
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", next(iter(sandbox.imds_urls.values())))
        async with (
            ManagedIdentityCredential(client_id=config["userAssignedIdentityID"]) as credential,
            ComputeManagementClient(
                credential,
                SUBSCRIPTION,
                base_url=sandbox.arm_url,
                credential_scopes=[f"{sandbox.arm_url}//.default"],
                connection_verify=str(sandbox.ca_file),
            ) as client,
        ):
            vm = await client.virtual_machines.get(RESOURCE_GROUP, "vm1")

    assert (config["useManagedIdentityExtension"], config["aadClientSecret"]) == (True, "msi")
    assert vm.identity is not None
    assert list(vm.identity.user_assigned_identities or {}) == [identity_id("mic")]
