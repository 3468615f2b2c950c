"""A test of that controller, with the core's own test support: builders for the values, fakes for the ports."""

import pytest
from controller import apply, needs

from podidentity_core.errors import IdentitiesRefused
from podidentity_core.testing.builders import binding, identity, node, pod, resource, vm
from podidentity_core.testing.clock import FakeClock
from podidentity_core.testing.fakes import FakeHosts

CLUSTER = (node("node-1"), identity("web"), binding("web"), pod("web-0"))


def test_nobody_needs_anything_without_a_binding() -> None:
    assert needs([node("node-1"), identity("web"), pod("web-0")]) == ()


async def test_a_host_gets_what_its_pods_need() -> None:
    hosts = FakeHosts(FakeClock())
    hosts.put(vm("node-1"), resource("others"))

    await apply(CLUSTER, hosts)

    assert hosts.usable(vm("node-1")) == {resource("others"), resource("web")}


async def test_an_identity_that_azure_refuses_is_named() -> None:
    hosts = FakeHosts(FakeClock())
    hosts.put(vm("node-1"))
    hosts.refuse(resource("web"))

    with pytest.raises(IdentitiesRefused) as refusal:
        await apply(CLUSTER, hosts)

    assert refusal.value.resource_ids == {resource("web").text}
