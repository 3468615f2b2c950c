"""What every PodReader must do.

Subclass the contract, name the subclass `Test...`, and give it the fixture `world`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

import pytest

from podidentity_core.errors import PermissionRefused, TransientError
from podidentity_core.model import BINDING_LABEL, Key, Pod, PodPhase
from podidentity_core.ports import PodReader
from podidentity_core.testing import builders

NODE = "node-1"
"""The node whose pods are asked for."""
_MANY = 1001
"""More than a server puts into two of its usual pages."""


class PodWorld(Protocol):
    """The implementation, and the cluster behind it as tests set it. Namespaces `default` and `other` exist."""

    reader: PodReader
    """It asks for the pods of `NODE`."""

    async def put(self, pod: Pod) -> None:
        """Let *pod* exist, or be like this from now on."""
        ...

    async def put_unusable(self, key: Key) -> None:
        """Let there be a pod that cannot be read."""
        ...

    async def remove(self, pod: Pod) -> None:
        """Let *pod* vanish."""
        ...

    def forbid(self) -> None:
        """Let the next call be forbidden."""
        ...

    def break_down(self) -> None:
        """Answer no further call in a useful way."""
        ...


_POD = builders.pod(node=NODE, ips=("10.0.0.1",))
_KINDS = (
    _POD,
    replace(_POD, ips=("10.0.0.1", "fd00::1")),
    replace(_POD, ips=(), phase=PodPhase.PENDING),
    replace(_POD, phase=PodPhase.SUCCEEDED),
    replace(_POD, phase=PodPhase.FAILED),
    replace(_POD, host_network=True),
    replace(_POD, label=None),
    replace(_POD, labels={"app": "agent"}),
    replace(_POD, service_account="builder", owner_replica_set="mic-5f7"),
    replace(_POD, namespace="other"),
)
_NAMES = (
    *("running", "with two addresses", "pending", "succeeded", "failed", "on the host's network"),
    *("without the binding's label", "with labels", "with an account and an owner", "of another namespace"),
)


def contents(pods: Iterable[Pod]) -> list[Pod]:
    """Give *pods* without what a server chooses, and with the binding's label in one place only."""
    return [
        replace(pod, uid="", labels={name: text for name, text in pod.labels.items() if name != BINDING_LABEL})
        for pod in pods
    ]


class PodReaderContract:
    """Subclass it, and give it the fixture `world`."""

    async def test_a_node_without_pods_has_none(self, world: PodWorld) -> None:
        assert await world.reader.pods() == []

    @pytest.mark.parametrize("pod", _KINDS, ids=_NAMES)
    async def test_every_pod_comes_as_it_is(self, world: PodWorld, pod: Pod) -> None:
        """Which of them may ask for tokens is not the reader's affair."""
        await world.put(pod)

        assert contents(await world.reader.pods()) == contents([pod])

    async def test_pods_have_a_uid_that_tells_a_successor_from_its_predecessor(self, world: PodWorld) -> None:
        await world.put(_POD)
        (first,) = await world.reader.pods()
        await world.remove(_POD)
        await world.put(replace(_POD, uid="of-the-successor"))
        (second,) = await world.reader.pods()

        assert "" not in (first.uid, second.uid)
        assert first.uid != second.uid

    async def test_each_call_tells_what_is_there_at_that_moment(self, world: PodWorld) -> None:
        ended = replace(_POD, phase=PodPhase.SUCCEEDED)
        await world.put(_POD)
        seen = [contents(await world.reader.pods())]
        await world.put(ended)
        seen.append(contents(await world.reader.pods()))
        await world.remove(ended)
        seen.append(contents(await world.reader.pods()))

        assert [[pod.phase for pod in pods] for pods in seen] == [[PodPhase.RUNNING], [PodPhase.SUCCEEDED], []]

    async def test_all_come_and_each_once_however_many_there_are(self, world: PodWorld) -> None:
        names = [f"web-{number}" for number in range(_MANY)]
        for name in names:
            await world.put(replace(_POD, name=name, uid=f"uid-of-{name}"))

        assert sorted(pod.name for pod in await world.reader.pods()) == sorted(names)

    async def test_a_pod_that_cannot_be_read_hides_no_other(self, world: PodWorld) -> None:
        await world.put_unusable(Key("default", "broken"))
        await world.put(_POD)

        assert [pod.key for pod in await world.reader.pods()] == [_POD.key]

    async def test_a_missing_right_is_told(self, world: PodWorld) -> None:
        world.forbid()

        with pytest.raises(PermissionRefused):
            await world.reader.pods()

    async def test_a_server_that_does_not_work_is_a_passing_trouble(self, world: PodWorld) -> None:
        await world.put(_POD)
        world.break_down()

        with pytest.raises(TransientError):
            await world.reader.pods()
