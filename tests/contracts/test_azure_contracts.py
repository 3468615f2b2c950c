"""The fakes and the real adapters keep the same contracts; the real ones against the sandbox, over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from apps.clock import SystemClock
from apps.metrics import PrometheusMeter
from apps.sandbox.faults import Fault
from apps.sandbox.identity_rules import HostIdentity
from apps.sandbox.options import identity_id, scale_set_nodes, vm_id
from apps.sandbox.sandbox import NodeSpec, Sandbox, SandboxOptions
from podidentity_azure.cloud import load_azure_config
from podidentity_azure.hosts import AzureHosts
from podidentity_azure.imds import ImdsTokens
from podidentity_core.errors import Throttled, TransientError
from podidentity_core.model import Identity
from podidentity_core.resource_ids import Host, IdentityResource, host_of, parse_identity_resource
from podidentity_core.testing import builders
from podidentity_core.testing.contracts import (
    HostIdentitiesContract,
    NodeTokenSourceContract,
    TokenSourceContract,
)
from podidentity_core.testing.fakes import FakeHosts, FakeTokens

OPERATION_S = 0.2
"""How long a write takes: long enough to be interrupted."""


class FakeHostWorld:
    host = builders.scale_set()
    missing = builders.scale_set("missing")

    def __init__(self) -> None:
        self.clock = SystemClock()
        self.hosts = FakeHosts(self.clock, duration_s=OPERATION_S)

    def identity(self, name: str) -> IdentityResource:
        return builders.resource(name)

    def put(self, *identities: IdentityResource, system_assigned: bool = False, deleting: bool = False) -> None:
        self.hosts.put(self.host, *identities, system_assigned=system_assigned, deleting=deleting)

    def refuse(self, identity: IdentityResource) -> None:
        self.hosts.refuse(identity)

    def listed(self) -> frozenset[IdentityResource]:
        return self.hosts.listed(self.host)

    def usable(self) -> frozenset[IdentityResource]:
        return self.hosts.usable(self.host)

    def has_system_assigned(self) -> bool:
        return self.hosts.has_system_assigned(self.host)

    def writes(self) -> int:
        return len(self.hosts.changes)

    def preempt(self, identity: IdentityResource) -> None:
        self.hosts.preempt(self.host, identity)


class TestFakeHosts(HostIdentitiesContract):
    @pytest.fixture
    def world(self) -> FakeHostWorld:
        return FakeHostWorld()


class SandboxHostWorld:
    """ARM of the sandbox. Its state is looked at directly, ARM's answers only by the adapter."""

    def __init__(self, sandbox: Sandbox, hosts: AzureHosts, host: Host) -> None:
        self.hosts = hosts
        self.host = host
        self.missing = replace(host, name="missing")
        self._azure = sandbox.azure
        self._state = sandbox.azure.host(host.resource_id)

    def identity(self, name: str) -> IdentityResource:
        made = self._azure.add_identity(identity_id(name))
        return parse_identity_resource(made.resource_id)

    def put(self, *identities: IdentityResource, system_assigned: bool = False, deleting: bool = False) -> None:
        self._state.identity = HostIdentity()
        self._azure.attach(self.host.resource_id, [entry.text for entry in identities], system=system_assigned)
        self._state.state = "Deleting" if deleting else "Succeeded"

    def refuse(self, identity: IdentityResource) -> None:
        self._azure.refuse(identity.text)

    def listed(self) -> frozenset[IdentityResource]:
        return _identities(self._state.identity.assigned)

    def usable(self) -> frozenset[IdentityResource]:
        return _identities(self._state.served)

    def has_system_assigned(self) -> bool:
        return self._state.identity.system

    def writes(self) -> int:
        return len(self._azure.operations)

    def preempt(self, identity: IdentityResource) -> None:
        body = {"identity": {"type": "UserAssigned", "userAssignedIdentities": {identity.text: {}}}}
        self._azure.change(self._state, body, "somebody else")


def _identities(texts: tuple[str, ...] | frozenset[str]) -> frozenset[IdentityResource]:
    return frozenset(parse_identity_resource(text) for text in texts)


NODES = (*scale_set_nodes(1), NodeSpec("vm-1", vm_id("vm-1")))


class TestAzureHosts(HostIdentitiesContract):
    @pytest.fixture(params=[("scale set", "2019-12-01"), ("VM", "2024-03-01")], ids=lambda param: param[0])
    async def world(self, request: pytest.FixtureRequest) -> AsyncIterator[SandboxHostWorld]:
        kind, api_version = request.param
        node = NODES[kind == "VM"]
        async with Sandbox(SandboxOptions(nodes=NODES, operation_s=OPERATION_S, run_pods=False)) as sandbox:
            config = load_azure_config(sandbox.azure_json, sandbox.client_environment)
            config = replace(config, cloud=replace(config.cloud, compute_api_version=api_version))
            hosts = AzureHosts(
                config,
                clock=SystemClock(),
                meter=PrometheusMeter(),
                agent="test",
                environ=sandbox.client_environment,
            )
            yield SandboxHostWorld(sandbox, hosts, host_of(node.provider_id))
            await hosts.aclose()


class FakeTokenWorld:
    def __init__(self) -> None:
        self.clock = SystemClock()
        self.tokens = FakeTokens(self.clock, known=[builders.client_id("web"), builders.client_id("other")])

    def identity(self) -> Identity:
        return builders.identity("web")

    def unknown(self) -> Identity:
        return builders.identity("unknown")

    def now_s(self) -> float:
        return self.clock.wall_s()

    def throttle(self, retry_after_s: float) -> None:
        self.tokens.fail_next(Throttled("too often", retry_after_s=retry_after_s))

    def break_down(self) -> None:
        self.tokens.fail_next(TransientError("broken"))

    def default_client_id(self) -> str:
        return ""

    def other_client_id(self) -> str:
        return builders.client_id("other")


class TestFakeTokens(TokenSourceContract):
    @pytest.fixture
    def world(self) -> FakeTokenWorld:
        return FakeTokenWorld()


class TestFakeNodeTokens(NodeTokenSourceContract):
    @pytest.fixture
    def world(self) -> FakeTokenWorld:
        return FakeTokenWorld()


class SandboxTokenWorld:
    """IMDS of one node of the sandbox."""

    def __init__(self, sandbox: Sandbox, tokens: ImdsTokens, host_id: str) -> None:
        self.tokens = tokens
        self._faults = sandbox.faults
        self._clock = SystemClock()
        self._own, self._other = (sandbox.azure.add_identity(identity_id(name)) for name in ("web", "other"))
        sandbox.azure.attach(host_id, [self._own.resource_id, self._other.resource_id], system=True)
        self._system = sandbox.azure.host(host_id).system

    def identity(self) -> Identity:
        return replace(builders.identity("web"), client_id=self._own.principal.client_id)

    def unknown(self) -> Identity:
        return builders.identity("unknown")

    def now_s(self) -> float:
        return self._clock.wall_s()

    def throttle(self, retry_after_s: float) -> None:
        headers = {"retry-after": f"{retry_after_s:.0f}"}
        self._faults.add(Fault("imds", times=None, status=429, headers=headers))

    def break_down(self) -> None:
        self._faults.add(Fault("imds", times=None, action="close"))

    def default_client_id(self) -> str:
        assert self._system is not None
        return self._system.client_id

    def other_client_id(self) -> str:
        return self._other.principal.client_id


@pytest.fixture
async def sandbox_world() -> AsyncIterator[SandboxTokenWorld]:
    async with Sandbox(SandboxOptions(nodes=NODES, run_pods=False)) as sandbox:
        node = NODES[0]
        url = sandbox.imds_urls[node.name]
        tokens = ImdsTokens(url, clock=SystemClock(), meter=PrometheusMeter(), agent="test")
        yield SandboxTokenWorld(sandbox, tokens, node.host_id)
        await tokens.aclose()


class TestImdsTokens(TokenSourceContract):
    @pytest.fixture
    def world(self, sandbox_world: SandboxTokenWorld) -> SandboxTokenWorld:
        return sandbox_world


class TestImdsNodeTokens(NodeTokenSourceContract):
    @pytest.fixture
    def world(self, sandbox_world: SandboxTokenWorld) -> SandboxTokenWorld:
        return sandbox_world
