"""Writes AzureAssignedIdentities, exactly as the original does: old and new NMI must understand both MICs.

| operation | requests |
|---|---|
| create | POST |
| update | PUT with the resource version that was read |
| set_state, explain | merge patch of the status, or of the annotations with the reason |
| delete | DELETE, then, if our finalizer is still there, PUT without it |

Source: aad-pod-identity pkg/crd/crd.go:477-560, 776.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from podidentity_core.errors import Conflict, NotFound, RefusedError
from podidentity_core.model import Assignment, AssignmentState, Key
from podidentity_core.ports import AssignmentStore
from podidentity_k8s import bodies
from podidentity_k8s.api import MERGE_PATCH, KubeApi
from podidentity_k8s.convert import assignment_of
from podidentity_k8s.wire import GROUP_VERSION, WireAssignment

_ATTEMPTS = 3  # of a write that only takes our finalizer away, while somebody else writes the same object


class KubeAssignments:
    """The AssignmentStore of a cluster."""

    def __init__(self, api: KubeApi) -> None:
        self._api = api

    async def create(self, assignment: Assignment) -> Assignment:
        """POST the whole object, in its state."""
        return _stored(await self._api.post(_collection(assignment.namespace), bodies.new_assignment(assignment)))

    async def update(self, stored: Assignment, wanted: Assignment) -> Assignment:
        """PUT *wanted*'s content into *stored*."""
        return _stored(await self._api.put(_path(stored.key), bodies.replacement(stored, wanted)))

    async def set_state(self, assignment: Assignment, state: AssignmentState) -> Assignment:
        """Patch the status, which an object from a MIC that knew no states gets by that."""
        return await self._merge(assignment.key, bodies.new_state(state))

    async def explain(self, assignment: Assignment, reason: str, at_s: float) -> Assignment:
        """Patch the annotations that hold the reason and its time."""
        return await self._merge(assignment.key, bodies.new_reason(reason, at_s))

    async def _merge(self, key: Key, patch: dict[str, Any]) -> Assignment:
        return _stored(await self._api.patch(_path(key), patch, content_type=MERGE_PATCH))

    async def delete(self, assignment: Assignment) -> None:
        """Delete this very object (its uid), and take our finalizer away. Others' finalizers are theirs to remove."""
        path = _path(assignment.key)
        options = {"preconditions": {"uid": assignment.uid}} if assignment.uid else None
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                left = bodies.without_finalizer(await self._api.delete(path, options))
                if left is not None:
                    await self._api.put(path, left)
                return
            except NotFound:
                return
            except Conflict:
                if await self._is_another(path, assignment.uid):
                    return
                if attempt == _ATTEMPTS:
                    raise

    async def _is_another(self, path: str, uid: str) -> bool:
        try:
            found = WireAssignment.model_validate_json(await self._api.get(path))
        except NotFound:
            return True
        return bool(uid) and found.metadata.uid != uid


def _collection(namespace: str) -> str:
    return f"/apis/{GROUP_VERSION}/namespaces/{namespace}/azureassignedidentities"


def _path(key: Key) -> str:
    return f"{_collection(key.namespace)}/{key.name}"


def _stored(answer: bytes) -> Assignment:
    try:
        read = assignment_of(WireAssignment.model_validate_json(answer))
    except ValidationError as error:
        raise RefusedError(
            f"the API server's answer is no AzureAssignedIdentity: {error.error_count()} errors"
        ) from error
    if not isinstance(read, Assignment):
        raise RefusedError(f"the API server stored something else: {read.explanation}")
    return read


if TYPE_CHECKING:
    _: type[AssignmentStore] = KubeAssignments
