"""KubeSecrets: what it asks for, and answers that are none."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from apps.sandbox.faults import Fault
from apps.sandbox.sandbox import Sandbox
from podidentity_core.errors import NotFound, TransientError
from podidentity_core.model import Key
from podidentity_k8s.api import KubeApi
from podidentity_k8s.secrets import KubeSecrets

KEY = Key("default", "credential.v1")
PATH = "/api/v1/namespaces/default/secrets/credential.v1"
VALUE = base64.b64encode(b"the-value").decode()


@pytest.fixture
def secrets(api: KubeApi) -> KubeSecrets:
    return KubeSecrets(api)


async def test_one_get_reads_a_secret(sandbox: Sandbox, secrets: KubeSecrets) -> None:
    place = {"namespace": KEY.namespace, "name": KEY.name}
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": place, "stringData": {"clientSecret": "the-value"}}
    sandbox.cluster.create(body)

    assert await secrets.read(KEY) == {"clientSecret": b"the-value"}
    assert [(one.method, one.path) for one in sandbox.faults.seen("kube")] == [("GET", PATH)]


async def test_a_name_that_none_can_have_is_not_asked_for(sandbox: Sandbox, secrets: KubeSecrets) -> None:
    with pytest.raises(NotFound, match="no Secret can have this name"):
        await secrets.read(Key("default", "../../kube-system/secrets/x"))

    assert sandbox.faults.seen("kube") == []


@pytest.mark.parametrize(
    "answer",
    [
        VALUE,
        [VALUE],
        {"data": {"a": VALUE}},
        {"kind": "ConfigMap", "data": {"a": VALUE}},
        {"kind": "Secret", "data": [VALUE]},
        {"kind": "Secret", "data": {"a": [VALUE]}},
        {"kind": "Secret", "data": {"a": f"{VALUE}!"}},
        {"kind": "Secret", "data": {"a": f"{VALUE}é"}},
        {"kind": "Secret", "data": {"a": None}},
    ],
    ids=repr,
)
async def test_an_answer_that_is_no_secret_is_a_passing_trouble_and_is_not_shown(
    sandbox: Sandbox, secrets: KubeSecrets, answer: Any
) -> None:
    sandbox.faults.add(Fault("kube", status=200, body=answer))

    with pytest.raises(TransientError, match="the answer is no Secret") as caught:
        await secrets.read(KEY)

    assert VALUE not in str(caught.value)
    assert caught.value.__context__ is None
