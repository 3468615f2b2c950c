"""The store of assignments over a socket: what it asks of the server, and what goes wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from apps.sandbox.faults import Fault
from apps.sandbox.sandbox import Sandbox
from podidentity_core.errors import Conflict, PermissionRefused, RefusedError, TransientError
from podidentity_core.model import Assignment, AssignmentState
from podidentity_core.testing import builders
from podidentity_k8s.api import KubeApi
from podidentity_k8s.assignments import KubeAssignments
from podidentity_k8s.bodies import new_assignment
from podidentity_k8s.convert import assignment_of
from podidentity_k8s.wire import FINALIZER, WireAssignment

PLURAL = "azureassignedidentities"


@pytest.fixture
def store(api: KubeApi) -> KubeAssignments:
    return KubeAssignments(api)


def objects(sandbox: Sandbox) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = sandbox.cluster.objects(PLURAL)
    return found


def put(sandbox: Sandbox, **metadata: Any) -> Assignment:
    """Let an assignment exist that was written by somebody else."""
    body = new_assignment(builders.assignment())
    raw = sandbox.cluster.create({**body, "metadata": {**body["metadata"], **metadata}}).body
    return made_of(raw)


def made_of(raw: Mapping[str, Any]) -> Assignment:
    made = assignment_of(WireAssignment.model_validate(raw))
    assert isinstance(made, Assignment)
    return made


def requests(sandbox: Sandbox) -> list[str]:
    return [f"{one.method} {one.status}" for one in sandbox.faults.seen("kube", match=PLURAL)]


async def test_each_operation_takes_the_requests_that_the_original_makes(
    sandbox: Sandbox, store: KubeAssignments
) -> None:
    created = await store.create(builders.assignment(state=AssignmentState.CREATED))
    updated = await store.update(created, builders.assignment(node="node-2"))
    assigned = await store.set_state(updated, AssignmentState.ASSIGNED)
    await store.delete(assigned)

    assert requests(sandbox) == ["POST 201", "PUT 200", "PATCH 200", "DELETE 200", "PUT 200"]


async def test_what_is_stored_has_the_label_and_the_finalizer(sandbox: Sandbox, store: KubeAssignments) -> None:
    stored = await store.create(builders.assignment())
    await store.update(stored, builders.assignment(node="node-2"))

    (raw,) = objects(sandbox)
    assert raw["metadata"]["labels"] == {"nodename": "node-2"}
    assert raw["metadata"]["finalizers"] == [FINALIZER]
    assert raw["status"] == {"metadata": {}, "status": "Assigned", "availableReplicas": 1}


async def test_finalizers_of_others_stay(sandbox: Sandbox, store: KubeAssignments) -> None:
    await store.delete(put(sandbox, finalizers=[FINALIZER, "example.com/audit"]))

    (raw,) = objects(sandbox)
    assert raw["metadata"]["finalizers"] == ["example.com/audit"]
    assert "deletionTimestamp" in raw["metadata"]


async def test_an_object_without_our_finalizer_takes_one_request(sandbox: Sandbox, store: KubeAssignments) -> None:
    await store.delete(put(sandbox, finalizers=[]))

    assert objects(sandbox) == []
    assert requests(sandbox) == ["DELETE 200"]


async def test_one_that_a_user_has_deleted_is_helped_to_its_end(sandbox: Sandbox, store: KubeAssignments) -> None:
    stored = put(sandbox)
    sandbox.cluster.delete(sandbox.cluster.registry.named(PLURAL), stored.namespace, stored.name)
    (raw,) = objects(sandbox)
    hanging = made_of(raw)
    assert hanging.deleting

    await store.delete(hanging)

    assert objects(sandbox) == []


async def test_a_conflict_over_the_finalizer_is_tried_again(sandbox: Sandbox, store: KubeAssignments) -> None:
    stored = put(sandbox)
    sandbox.faults.add(Fault("kube", method="PUT", status=409, times=2))

    await store.delete(stored)

    assert objects(sandbox) == []


async def test_a_lasting_conflict_over_the_finalizer_is_told(sandbox: Sandbox, store: KubeAssignments) -> None:
    stored = put(sandbox)
    sandbox.faults.add(Fault("kube", method="PUT", status=409, times=None))

    with pytest.raises(Conflict):
        await store.delete(stored)


async def test_a_delete_whose_answer_was_lost_is_success(sandbox: Sandbox, store: KubeAssignments) -> None:
    stored = put(sandbox, finalizers=[])
    sandbox.faults.add(Fault("kube", method="DELETE", cut_after=0, action="close"))

    await store.delete(stored)

    assert objects(sandbox) == []


async def test_an_object_of_a_mic_without_states_gets_one(sandbox: Sandbox, store: KubeAssignments) -> None:
    stored = put(sandbox)
    sandbox.cluster.change(PLURAL, stored.namespace, stored.name, lambda body: body.pop("status"))

    newest = await store.set_state(replace(stored, state=AssignmentState.UNKNOWN), AssignmentState.ASSIGNED)

    assert newest.state is AssignmentState.ASSIGNED


@pytest.mark.parametrize(
    ("status", "error"),
    [(403, PermissionRefused), (422, RefusedError), (409, Conflict), (500, TransientError)],
)
async def test_each_refusal_has_its_error(
    sandbox: Sandbox, store: KubeAssignments, status: int, error: type[Exception]
) -> None:
    sandbox.faults.add(Fault("kube", method="POST", status=status, times=None))

    with pytest.raises(error, match=rf"azureassignedidentities.*HTTP {status}"):
        await store.create(builders.assignment())
