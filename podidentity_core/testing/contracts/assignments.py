"""What every AssignmentStore must do.

Subclass the contract, name the subclass `Test...`, and override its fixtures; each test is a sentence of the contract.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from podidentity_core.errors import Conflict, NotFound
from podidentity_core.model import AssignmentState
from podidentity_core.ports import AssignmentStore
from podidentity_core.testing import builders
from podidentity_core.testing.contracts.cluster import ClusterWorld, content


class AssignmentStoreContract:
    """The contract of `AssignmentStore`."""

    @pytest.fixture
    def world(self) -> ClusterWorld:
        """Override: the cluster that *store* writes to, without assignments."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, world: ClusterWorld) -> AssignmentStore:
        """Override: the store."""
        raise NotImplementedError

    @pytest.mark.parametrize("state", [AssignmentState.CREATED, AssignmentState.ASSIGNED])
    @pytest.mark.parametrize("preexisting", [False, True])
    async def test_a_new_one_is_stored_as_it_is(
        self, world: ClusterWorld, store: AssignmentStore, state: AssignmentState, preexisting: bool
    ) -> None:
        planned = builders.assignment(state=state, preexisting=preexisting)

        stored = await store.create(planned)

        assert content(stored) == content(planned)
        assert stored.uid
        assert stored.resource_version
        assert (await world.assignments())[planned.key] == stored

    async def test_creating_it_twice_is_a_conflict(self, world: ClusterWorld, store: AssignmentStore) -> None:
        await store.create(builders.assignment())

        with pytest.raises(Conflict):
            await store.create(builders.assignment(node="node-2"))

        assert (await world.assignments())[builders.assignment().key].node == "node-1"

    async def test_an_update_takes_everything_from_what_is_wanted(
        self, world: ClusterWorld, store: AssignmentStore
    ) -> None:
        stored = await store.create(builders.assignment())
        wanted = builders.assignment(
            of=builders.identity(client="changed"),
            because_of=builders.binding(selector="changed"),
            node="node-2",
            state=AssignmentState.CREATED,
            preexisting=True,
        )

        updated = await store.update(stored, wanted)

        assert content(updated) == content(wanted)
        assert updated.uid == stored.uid
        assert updated.resource_version != stored.resource_version
        assert await world.assignments() == {wanted.key: updated}

    async def test_an_update_of_an_old_version_is_a_conflict(self, world: ClusterWorld, store: AssignmentStore) -> None:
        old = await store.create(builders.assignment())
        newest = await store.set_state(old, AssignmentState.UNASSIGNED)

        with pytest.raises(Conflict):
            await store.update(old, builders.assignment(node="node-2"))

        assert await world.assignments() == {old.key: newest}

    async def test_the_state_changes_alone_whatever_version_is_given(
        self, world: ClusterWorld, store: AssignmentStore
    ) -> None:
        old = await store.create(builders.assignment(state=AssignmentState.CREATED, preexisting=True))
        await store.set_state(old, AssignmentState.UNASSIGNED)

        newest = await store.set_state(old, AssignmentState.ASSIGNED)

        assert content(newest) == content(replace(old, state=AssignmentState.ASSIGNED))
        assert await world.assignments() == {old.key: newest}

    async def test_a_reason_stays_until_the_state_or_the_content_changes(
        self, world: ClusterWorld, store: AssignmentStore
    ) -> None:
        stored = await store.create(builders.assignment(state=AssignmentState.CREATED, preexisting=True))

        explained = await store.explain(stored, "PI502: Azure is away", 1_700_000_000.0)
        again = await store.explain(explained, "PI501: Azure refuses it", 1_700_000_001.0)
        noted = await world.assignments()
        assigned = await store.set_state(stored, AssignmentState.ASSIGNED)
        once_more = await store.explain(assigned, "PI502: Azure is away", 1_700_000_002.0)
        updated = await store.update(once_more, builders.assignment(node="node-2"))

        assert content(explained) == content(replace(stored, reason="PI502: Azure is away"))
        assert again.reason == "PI501: Azure refuses it"
        assert noted == {stored.key: again}
        assert content(assigned) == content(replace(stored, state=AssignmentState.ASSIGNED))
        assert updated.reason == ""

    async def test_the_reason_of_what_is_gone_is_not_found(self, store: AssignmentStore) -> None:
        with pytest.raises(NotFound):
            await store.explain(builders.assignment(), "PI502: Azure is away", 1_700_000_000.0)

    async def test_the_state_of_what_is_gone_is_not_found(self, store: AssignmentStore) -> None:
        with pytest.raises(NotFound):
            await store.set_state(builders.assignment(), AssignmentState.ASSIGNED)

    async def test_deleting_removes_it_finalizer_included(self, world: ClusterWorld, store: AssignmentStore) -> None:
        stored = await store.create(builders.assignment())
        await store.set_state(stored, AssignmentState.UNASSIGNED)

        await store.delete(stored)

        assert await world.assignments() == {}

    async def test_deleting_what_is_gone_is_success(self, world: ClusterWorld, store: AssignmentStore) -> None:
        stored = await store.create(builders.assignment())
        await store.delete(stored)

        await store.delete(stored)

        assert await world.assignments() == {}

    async def test_deleting_spares_a_successor_of_the_same_name(
        self, world: ClusterWorld, store: AssignmentStore
    ) -> None:
        first = await store.create(builders.assignment())
        await store.delete(first)
        second = await store.create(builders.assignment())

        await store.delete(first)

        assert await world.assignments() == {second.key: second}
