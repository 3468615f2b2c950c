"""A test of that controller, with the core's own test support: builders for the values, fakes for the ports."""

from __future__ import annotations

import pytest
from controller import steps

from podidentity_core.errors import IdentitiesRefused
from podidentity_core.testing.builders import binding, identity, node, pod, resource, vm
from podidentity_core.testing.clock import FakeClock
from podidentity_core.testing.fakes import FakeHosts


def test_a_host_needs_what_its_pods_need() -> None:
    cluster = [node("node-1"), identity("web"), binding("web"), pod("web-0")]

    assert list(steps(cluster)) == ["node-1 needs web"]


def test_nobody_needs_anything_without_a_binding() -> None:
    assert list(steps([node("node-1"), identity("web"), pod("web-0")])) == []


async def test_azure_refuses_an_identity_and_takes_the_next_one() -> None:
    hosts = FakeHosts(FakeClock())
    hosts.put(vm("node-1"))
    hosts.refuse(resource("gone"))

    with pytest.raises(IdentitiesRefused) as refusal:
        await hosts.change(vm("node-1"), add=[resource("gone"), resource("web")], remove=[])
    assert refusal.value.resource_ids == {resource("gone").text}

    state = await hosts.change(vm("node-1"), add=[resource("web")], remove=[])

    assert state.attached == {resource("web")}
