"""The mark of the type upgrade."""

from __future__ import annotations

from typing import Any

import pytest

from apps.sandbox.faults import Fault
from apps.sandbox.sandbox import Sandbox
from podidentity_core.errors import Conflict
from podidentity_k8s.api import KubeApi
from podidentity_k8s.upgrade import mark_type_upgrade

NAME, KEY = "aad-pod-identity-config", "type-upgrade-status"


async def mark(api: KubeApi) -> None:
    await mark_type_upgrade(api, namespace="default", config_map=NAME, key=KEY, version="v9")


def data(sandbox: Sandbox) -> dict[str, str]:
    found: dict[str, str] = sandbox.cluster.objects("configmaps", "default")[0].get("data", {})
    return found


def put(sandbox: Sandbox, **fields: Any) -> None:
    metadata = {"name": NAME, "namespace": "default", "labels": {"kept": "yes"}}
    sandbox.cluster.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, **fields})


async def test_the_map_is_made_with_the_mark(sandbox: Sandbox, api: KubeApi) -> None:
    await mark(api)

    assert data(sandbox) == {KEY: "v9"}


async def test_a_mark_stays_as_it_is(sandbox: Sandbox, api: KubeApi) -> None:
    put(sandbox, data={KEY: "v1.8.17"})

    await mark(api)

    assert data(sandbox) == {KEY: "v1.8.17"}
    assert [one.method for one in sandbox.faults.seen("kube")] == ["GET"]


async def test_what_else_is_in_the_map_stays(sandbox: Sandbox, api: KubeApi) -> None:
    put(sandbox, data={"other": "value"})

    await mark(api)

    assert data(sandbox) == {"other": "value", KEY: "v9"}
    assert sandbox.cluster.objects("configmaps", "default")[0]["metadata"]["labels"] == {"kept": "yes"}


async def test_a_conflict_is_read_and_tried_again(sandbox: Sandbox, api: KubeApi) -> None:
    put(sandbox)
    sandbox.faults.add(Fault("kube", method="PUT", status=409, times=2))

    await mark(api)

    assert data(sandbox) == {KEY: "v9"}


async def test_a_lasting_conflict_is_told(sandbox: Sandbox, api: KubeApi) -> None:
    put(sandbox)
    sandbox.faults.add(Fault("kube", method="PUT", status=409, times=None))

    with pytest.raises(Conflict):
        await mark(api)
