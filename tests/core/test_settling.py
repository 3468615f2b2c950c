"""What an assignment may do next, what a host must be asked to change, and who put what on a host."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import pytest

from podidentity_core.model import Assignment, AssignmentState, IdentityKind
from podidentity_core.planning import HostNeeds
from podidentity_core.resource_ids import IdentityResource
from podidentity_core.settling import (
    HostChange,
    HostRecord,
    Next,
    host_change,
    next_for_unwanted,
    next_for_wanted,
)
from podidentity_core.testing.builders import assignment, identity, pod, resource, vm

A, B, C = resource("a"), resource("b"), resource("c")
ON, OFF, NOT_KNOWN = frozenset({A}), frozenset({B}), None
CREATED, ASSIGNED = AssignmentState.CREATED, AssignmentState.ASSIGNED
NO_STATE, LEAVING = AssignmentState.UNKNOWN, AssignmentState.UNASSIGNED
SECRET = identity("a", kind=IdentityKind.SERVICE_PRINCIPAL)


def of_a(state: AssignmentState) -> Assignment:
    return assignment(pod(), identity("a"), state=state)


WANTED = [
    (CREATED, ON, Next.ASSIGN),
    (CREATED, OFF, Next.WAIT),
    (CREATED, frozenset(), Next.WAIT),
    (CREATED, NOT_KNOWN, Next.WAIT),
    (LEAVING, ON, Next.ASSIGN),
    (LEAVING, OFF, Next.WAIT),
    (LEAVING, NOT_KNOWN, Next.WAIT),
    (ASSIGNED, ON, Next.NOTHING),
    (ASSIGNED, OFF, Next.NOTHING),
    (ASSIGNED, NOT_KNOWN, Next.NOTHING),
    (NO_STATE, ON, Next.NOTHING),
    (NO_STATE, OFF, Next.NOTHING),
    (NO_STATE, NOT_KNOWN, Next.NOTHING),
]


@pytest.mark.parametrize(("state", "usable", "then"), WANTED, ids=str)
def test_a_wanted_assignment(state: AssignmentState, usable: Set[IdentityResource] | None, then: Next) -> None:
    assert next_for_wanted(of_a(state), usable) is then


@pytest.mark.parametrize("state", [CREATED, LEAVING])
@pytest.mark.parametrize("usable", [ON, OFF, NOT_KNOWN], ids=["on", "off", "not known"])
def test_a_wanted_assignment_that_needs_nothing_on_the_host(
    state: AssignmentState, usable: Set[IdentityResource] | None
) -> None:
    assert next_for_wanted(assignment(pod(), SECRET, state=state), usable) is Next.ASSIGN


FREE = HostNeeds(vm(), leaving=frozenset({A}))
NEEDED = HostNeeds(vm(), needed=frozenset({A}), leaving=frozenset({A}))
PLANNED = HostNeeds(vm(), planned=frozenset({A}), leaving=frozenset({A}))
KEPT = HostNeeds(vm(), leaving=frozenset({A}), kept=frozenset({A}))

UNWANTED = [
    ("free, on", FREE, ON, Next.WAIT),
    ("free, not known", FREE, NOT_KNOWN, Next.WAIT),
    ("free, off", FREE, OFF, Next.RELEASE),
    ("needed, on", NEEDED, ON, Next.RELEASE),
    ("needed, off", NEEDED, OFF, Next.RELEASE),
    ("needed, not known", NEEDED, NOT_KNOWN, Next.RELEASE),
    ("planned, on", PLANNED, ON, Next.WAIT),
    ("planned, off", PLANNED, OFF, Next.WAIT),
    ("planned, not known", PLANNED, NOT_KNOWN, Next.WAIT),
    ("kept, on", KEPT, ON, Next.RELEASE),
    ("kept, not known", KEPT, NOT_KNOWN, Next.RELEASE),
    ("no host", None, NOT_KNOWN, Next.RELEASE),
]


@pytest.mark.parametrize("state", AssignmentState)
@pytest.mark.parametrize(("needs", "usable", "then"), [row[1:] for row in UNWANTED], ids=[row[0] for row in UNWANTED])
def test_an_unwanted_assignment_whatever_its_state(
    state: AssignmentState, needs: HostNeeds | None, usable: Set[IdentityResource] | None, then: Next
) -> None:
    assert next_for_unwanted(of_a(state), needs, usable) is then


@pytest.mark.parametrize("needs", [FREE, NEEDED, KEPT, None], ids=["free", "needed", "kept", "no host"])
def test_an_unwanted_assignment_that_has_nothing_on_the_host_goes(needs: HostNeeds | None) -> None:
    assert next_for_unwanted(assignment(pod(), SECRET), needs, None) is Next.RELEASE


@dataclass(frozen=True)
class Change:
    """What a host needs and carries, and the write that follows."""

    write: HostChange
    needed: Set[IdentityResource] = frozenset()
    planned: Set[IdentityResource] = frozenset()
    leaving: Set[IdentityResource] = frozenset()
    kept: Set[IdentityResource] = frozenset()
    usable: Set[IdentityResource] = frozenset()
    refused: Set[IdentityResource] = frozenset()


def adds(*resources: IdentityResource) -> HostChange:
    return HostChange(add=frozenset(resources))


def removes(*resources: IdentityResource) -> HostChange:
    return HostChange(remove=frozenset(resources))


CHANGES = {
    "nothing to do": Change(HostChange()),
    "what is needed and not there is added": Change(adds(A), needed={A}),
    "what is needed and there stays": Change(HostChange(), needed={A}, usable={A}),
    "what is refused is not asked for": Change(adds(B), needed={A, B}, refused={A}),
    "what leaves is removed": Change(removes(A), leaving={A}, usable={A}),
    "what leaves and is gone needs no write": Change(HostChange(), leaving={A}),
    "what leaves and is needed stays": Change(HostChange(), needed={A}, leaving={A}, usable={A}),
    "what leaves and is needed but not there is added": Change(adds(A), needed={A}, leaving={A}),
    "what leaves and is kept stays": Change(HostChange(), leaving={A}, kept={A}, usable={A}),
    "what is kept and needed is added": Change(adds(A), needed={A}, kept={A}),
    "what nobody speaks of stays": Change(HostChange(), usable={C}),
    "what is refused is not removed": Change(removes(B), leaving={A, B}, usable={A, B}, refused={A}),
    "what is only planned is not added": Change(adds(B), planned={A}, needed={B}),
    "what leaves and is planned stays": Change(HostChange(), planned={A}, leaving={A}, usable={A}),
    "additions and removals go in one write": Change(
        HostChange(add=frozenset({B}), remove=frozenset({A})), needed={B}, leaving={A}, usable={A, C}
    ),
}


@pytest.mark.parametrize("case", CHANGES.values(), ids=CHANGES)
def test_the_write_to_a_host(case: Change) -> None:
    parts = (case.needed, case.planned, case.leaving, case.kept)
    needs = HostNeeds(vm(), *map(frozenset, parts))

    change = host_change(needs, frozenset(case.usable), refused=frozenset(case.refused))

    assert change == case.write
    assert bool(change) is (change != HostChange())


def record(carries: Set[IdentityResource], *, claimed: Set[IdentityResource] = frozenset()) -> HostRecord:
    """Make the record of a host that was read for the first time."""
    new = HostRecord()
    new.learn(frozenset(carries), claimed)
    return new


class TestWhoPutItThere:
    """`foreign` is what somebody else put on a host."""

    def test_what_was_there_at_first_is_foreign_unless_assignments_say_that_it_is_ours(self) -> None:
        got = record({A, B}, claimed={A, C})

        assert (set(got.usable or ()), set(got.foreign), set(got.ours)) == ({A, B}, {B}, {A})

    def test_what_our_write_added_is_ours(self) -> None:
        got = record({B})
        got.begin(adds(A))
        got.end(frozenset({A, B}))

        assert (set(got.usable or ()), set(got.foreign)) == ({A, B}, {B})

    def test_what_our_write_added_is_ours_also_if_its_answer_was_lost(self) -> None:
        got = record(set())
        got.begin(adds(A))
        got.forget()
        got.learn(frozenset({A}), frozenset())

        assert got.foreign == frozenset()

    def test_what_somebody_added_while_our_write_was_under_way_is_foreign(self) -> None:
        got = record(set())
        got.begin(adds(A))
        got.end(frozenset({A, C}))

        assert got.foreign == {C}

    def test_what_appears_between_two_looks_is_foreign(self) -> None:
        got = record({A}, claimed={A})
        got.learn(frozenset({A, C}), {A})

        assert got.foreign == {C}

    def test_what_somebody_took_away_and_we_add_is_ours(self) -> None:
        got = record({B})
        got.learn(frozenset(), frozenset())
        got.begin(adds(B))
        got.end(frozenset({B}))

        assert got.foreign == frozenset()

    def test_what_we_removed_and_somebody_adds_is_foreign(self) -> None:
        got = record({A}, claimed={A})
        got.begin(removes(A))
        got.end(frozenset())
        got.learn(frozenset({A}), frozenset())

        assert got.foreign == {A}

    def test_what_a_write_removes_cannot_be_relied_on_while_it_is_under_way(self) -> None:
        got = record({A, B}, claimed={A})
        got.begin(removes(A))

        assert got.usable == frozenset({B})

    def test_a_write_to_a_host_that_is_not_known_leaves_it_not_known(self) -> None:
        got = HostRecord()
        got.begin(removes(A))

        assert got.usable is None

    def test_after_a_lost_answer_nothing_is_known_and_the_host_must_be_read(self) -> None:
        got = record({A})
        before = got.stale
        got.forget()

        assert (before, got.usable, got.stale) == (False, None, True)
