"""One identity that Azure refuses for good, and one host that hangs: what they cost everybody else, and Azure.

Four hosts, each with a pod for every one of fifty identities, on a simulated clock.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection

import pytest

from podidentity_core.model import Thing
from podidentity_core.ports import HostState
from podidentity_core.resource_ids import Host, IdentityResource
from podidentity_core.services.assignment import AssignmentSettings
from podidentity_core.services.hosts import HostLimits
from podidentity_core.testing.builders import binding, identity, node, pod, resource, vm
from tests.core.mic import ARM_S, Mic

HOSTS, IDENTITIES = 4, 50
BAD, HANGING = resource("id-0"), vm("node-0")
HOUR_S = 3600.0
DEFAULTS = AssignmentSettings(limits=HostLimits(grace_s=60.0))


def cluster() -> list[Thing]:
    things: list[Thing] = [node(f"node-{host}") for host in range(HOSTS)]
    for number in range(IDENTITIES):
        name = f"id-{number}"
        things += [identity(name), binding(name, selector=name)]
        things += [pod(f"{name}-on-{host}", label=name, node=f"node-{host}") for host in range(HOSTS)]
    return things


class Asked:
    """Counts what MIC asks of each host; the hanging one never answers."""

    def __init__(self, mic: Mic, hanging: Host | None) -> None:
        self.writes: Counter[Host] = Counter()
        self._change = mic.hosts.change
        self._hanging = hanging
        mic.hosts.change = self._asked  # type: ignore[method-assign]

    async def _asked(
        self, host: Host, *, add: Collection[IdentityResource], remove: Collection[IdentityResource]
    ) -> HostState:
        self.writes[host] += 1
        if host == self._hanging:
            await asyncio.Event().wait()
        return await self._change(host, add=add, remove=remove)


def assigned(mic: Mic) -> int:
    """How many of the good pods, on the hosts that answer, have their identities."""
    good = [name for name in mic.states if not name.startswith("id-0-") and "-on-0-" not in name]
    return sum(mic.states[name] == "Assigned" for name in good)


async def time_to_all(mic: Mic) -> float:
    """How long until all good pods on hosts that answer have their identities."""
    began_s = mic.clock.monotonic_s()
    while assigned(mic) < (IDENTITIES - 1) * (HOSTS - 1):
        assert mic.clock.monotonic_s() < began_s + 60, assigned(mic)
        await mic.after(0.5)
    return mic.clock.monotonic_s() - began_s


async def without_trouble() -> float:
    mic = Mic(*cluster(), settings=DEFAULTS)
    await mic.start()
    took_s = await time_to_all(mic)
    await mic.crash()
    return took_s


@pytest.mark.parametrize(
    ("named", "rounds", "writes"),
    [
        pytest.param(True, 1, 5, id="Azure names it"),
        # Fifty are halved until one is left; meanwhile the halves that Azure takes are written.
        pytest.param(False, 7, 9, id="Azure names nobody"),
    ],
)
async def test_the_others_are_served_and_azure_is_spared(named: bool, rounds: int, writes: int) -> None:
    usual_s = await without_trouble()
    mic = Mic(*cluster(), settings=DEFAULTS)
    mic.hosts.refuse(BAD, named=named)
    asked = Asked(mic, HANGING)
    await mic.start()
    took_s = await time_to_all(mic)
    await mic.after(HOUR_S - took_s)
    good = {host: sum(change.host == host for change in mic.hosts.changes) for host in asked.writes}
    refused = [asked.writes[host] - good[host] for host in asked.writes if host != HANGING]
    print(f"all others: {took_s:.2f} s ({usual_s:.2f} s without); refused writes an hour and host: {max(refused)}")
    await mic.crash()

    retries_s = DEFAULTS.limits.retry_interval_s * rounds
    assert took_s <= usual_s + retries_s + (0 if named else ARM_S * rounds)
    assert asked.writes[HANGING] == 1
    assert max(refused) <= writes
