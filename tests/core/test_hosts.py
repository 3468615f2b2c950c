"""One host's turn: what is read, asked for and set aside, and who hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import replace

import pytest

from podidentity_core.errors import (
    Conflict,
    IdentitiesRefused,
    NotFound,
    PermissionRefused,
    PodIdentityError,
    RefusedError,
    Throttled,
    TransientError,
)
from podidentity_core.model import Assignment, AssignmentState, Binding, Gone, Seen, Thing
from podidentity_core.planning import Planner
from podidentity_core.ports import HostState
from podidentity_core.resource_ids import Host, IdentityResource
from podidentity_core.services.hosts import GATHER_S, NEXT_ROUND_S, PASSING, HostLimits, HostWorker
from podidentity_core.services.work_queue import Backoff
from podidentity_core.testing.builders import assignment, binding, identity, node, pod, resource, vm
from podidentity_core.testing.clock import FakeClock, RestlessClock, settle
from podidentity_core.testing.fakes import FakeEvents, FakeHosts, FakeLeaderLock, FakeMeter, HostWrite
from podidentity_core.view import ClusterView
from tests.core.mic import ARM_S

NODE = node()
WEB, DB = resource("web"), resource("db")
LIMITS = HostLimits(grace_s=0.0, retries=2, retry_interval_s=1.0, quarantine=Backoff(first_s=60.0, most_s=100.0))


def bound(name: str, state: AssignmentState = AssignmentState.CREATED, *, on: str = "node-1") -> list[Thing]:
    """A pod with the identity *name*, whose assignment is stored."""
    of, why, to = identity(name), binding(name, selector=name), pod(f"pod-{name}", label=name, node=on)
    return [of, why, to, assignment(to, of, why, state=state)]


def left(name: str, *, preexisting: bool = False) -> Assignment:
    """The assignment of a pod that is gone."""
    return assignment(pod(f"left-{name}"), identity(name), binding(name), preexisting=preexisting)


class OneByOne(FakeHosts):
    """Names one refused identity at a time, as Azure may."""

    async def change(
        self, host: Host, *, add: Collection[IdentityResource], remove: Collection[IdentityResource]
    ) -> HostState:
        try:
            return await super().change(host, add=add, remove=remove)
        except IdentitiesRefused as error:
            raise IdentitiesRefused(str(error), resource_ids=frozenset({min(error.resource_ids)})) from error


class Turn:
    """A worker with one host, in a cluster that consists of *things*."""

    def __init__(
        self,
        *things: Thing,
        carries: Collection[IdentityResource] = (),
        one_by_one: bool = False,
        tick_s: float = 0.0,
    ) -> None:
        self.clock = FakeClock()
        self.hosts = (OneByOne if one_by_one else FakeHosts)(self.clock, duration_s=ARM_S)
        self.hosts.put(vm(), *carries)
        self.events = FakeEvents()
        self.meter = FakeMeter()
        self.lock = FakeLeaderLock()
        self.lock._held = True
        self.view = ClusterView.of([NODE, *things])
        self.planner = Planner(self.view)
        self.planner.refresh(self.view.concerned_pods())
        self.worker = HostWorker(
            self.view,
            self.planner,
            self.hosts,
            self.events,
            self.lock,
            clock=RestlessClock(self.clock, tick_s=tick_s, early_s=0.0),
            meter=self.meter,
            chance=lambda: 0.0,
            limits=LIMITS,
            changed=lambda _: None,
        )

    async def take(self) -> float | None:
        """Let the host have its turn, for as long as that takes."""
        return await self.end(await self.begin())

    async def begin(self) -> asyncio.Task[float | None]:
        """Let the turn begin, and go on until it waits for something."""
        turn = asyncio.create_task(self.worker.settle(vm()))
        await settle()
        return turn

    async def end(self, turn: asyncio.Task[float | None]) -> float | None:
        """Let the turn go on to its end."""
        while not turn.done():
            wake_s = self.clock.next_wake_s()
            assert wake_s is not None, "the turn waits for nothing"
            await self.clock.advance(wake_s - self.clock.monotonic_s())
        return turn.result()

    def change(self, *things: Thing, gone: Collection[Thing] = ()) -> None:
        for thing in things:
            self.planner.refresh(self.view.apply(Seen(thing)))
        for thing in gone:
            self.planner.refresh(self.view.apply(Gone(type(thing), thing.key)))

    @property
    def usable(self) -> set[IdentityResource] | None:
        usable = self.worker.record(vm()).usable
        return None if usable is None else set(usable)

    @property
    def told(self) -> list[tuple[str, str]]:
        """Bindings that got an event, and the codes in it."""
        codes = ("PI501", "PI502")
        return [
            (event.key.name, next(code for code in codes if code in event.message))
            for event in self.events.published
            if event.kind is Binding
        ]


def write(*, add: Collection[IdentityResource] = (), remove: Collection[IdentityResource] = ()) -> HostWrite:
    return HostWrite(vm(), frozenset(add), frozenset(remove))


async def test_what_is_needed_is_added_and_can_then_be_used() -> None:
    turn = Turn(*bound("web"))
    again_in_s = await turn.take()

    assert again_in_s is None
    assert turn.hosts.changes == [write(add=[WEB])]
    assert (turn.usable, turn.clock.monotonic_s(), turn.told) == ({WEB}, ARM_S, [])
    assert (turn.meter.counts["mic_cycle_count"], turn.meter.observed["mic_cycle_duration_seconds"]) == (1, [ARM_S])


async def test_what_is_needed_and_what_leaves_share_one_write() -> None:
    turn = Turn(*bound("web"), left("db"), carries=[DB])
    await turn.take()

    assert turn.hosts.changes == [write(add=[WEB], remove=[DB])]
    assert turn.usable == {WEB}


async def test_a_host_that_is_right_is_only_read() -> None:
    turn = Turn(*bound("web"), carries=[WEB, DB])
    await turn.take()

    assert (turn.hosts.changes, turn.usable) == ([], {WEB, DB})
    assert not turn.meter.counts


async def test_a_host_is_read_once_until_somebody_doubts() -> None:
    turn = Turn(*bound("web"), carries=[WEB])
    await turn.take()
    turn.hosts.fail_next(TransientError("it was read"))
    await turn.take()
    doubted = turn.worker.doubt()

    assert doubted == (vm(),)
    with pytest.raises(TransientError, match="it was read"):
        await turn.take()


async def test_a_doubt_forgets_hosts_of_which_nobody_speaks() -> None:
    turn = Turn(*bound("web"))
    turn.worker.record(vm("another")).learn(frozenset({WEB}), frozenset())
    turn.worker.doubt()

    assert turn.worker.record(vm("another")).usable is None


async def test_what_somebody_took_off_by_hand_is_put_back_after_a_doubt() -> None:
    turn = Turn(*bound("web", AssignmentState.ASSIGNED))
    await turn.take()
    turn.hosts.put(vm())
    turn.worker.doubt()
    await turn.take()

    assert turn.hosts.changes == [write(add=[WEB]), write(add=[WEB])]


async def test_without_the_lead_a_host_is_read_and_not_written_to() -> None:
    turn = Turn(*bound("web"))
    turn.lock._held = False
    await turn.take()

    assert (turn.hosts.changes, turn.usable) == ([], set())


async def test_the_lead_is_asked_for_before_each_write() -> None:
    turn = Turn(*bound("web"), *bound("bad"))
    turn.hosts.refuse(resource("bad"))
    taking = await turn.begin()
    turn.lock._held = False
    await turn.end(taking)

    assert turn.hosts.changes == []


class TestWhoseItIs:
    """What stored assignments say is MIC's own; the rest is somebody else's."""

    @pytest.mark.parametrize(
        ("stored", "foreign"),
        [
            ([], True),
            ([left("web")], False),
            ([left("web", preexisting=True)], True),
            ([replace(left("web"), host=vm("NODE-1"))], False),
            ([replace(left("web"), host=vm("another"))], True),
            ([replace(left("web"), node="node-9")], True),
            ([left("db")], True),
            (bound("web"), False),
        ],
        ids=["nobody", "ours", "noted as foreign", "noted", "on another host", "unknown node", "another", "wanted"],
    )
    async def test_what_a_host_carries_at_first(self, stored: list[Thing], foreign: bool) -> None:
        turn = Turn(*stored, *bound("mq"), carries=[WEB])
        turn.lock._held = False
        await turn.take()

        assert (WEB in turn.worker.record(vm()).foreign) is foreign

    async def test_what_is_ours_leaves_although_no_assignment_says_so_any_more(self) -> None:
        things = bound("web")
        turn = Turn(*things)
        await turn.take()
        turn.change(gone=[things[2], things[3]])
        await turn.take()

        assert turn.hosts.changes == [write(add=[WEB]), write(remove=[WEB])]


class TestGathering:
    """A write waits a moment for assignments that are about to be stored."""

    COMING = (identity("db"), binding("db", selector="db"), pod("coming", label="db"))

    async def test_it_waits_for_a_moment_in_all(self) -> None:
        turn = Turn(*bound("web"), *self.COMING)
        first = await turn.take()
        await turn.clock.advance(GATHER_S / 3)
        second = await turn.take()
        await turn.clock.advance(GATHER_S)
        last = await turn.take()

        assert first == GATHER_S
        assert second == pytest.approx(GATHER_S * 2 / 3)
        assert last is None
        assert turn.hosts.changes == [write(add=[WEB])]

    async def test_it_waits_no_longer_than_for_the_last_one(self) -> None:
        turn = Turn(*bound("web"), *self.COMING)
        await turn.take()
        of, why, to = self.COMING
        turn.change(assignment(to, of, why, state=AssignmentState.CREATED))
        await turn.take()

        assert turn.hosts.changes == [write(add=[WEB, DB])]
        assert turn.clock.monotonic_s() == ARM_S

    async def test_it_does_not_wait_for_one_whose_identity_is_to_be_there_anyway(self) -> None:
        turn = Turn(*bound("web"), pod("coming", label="web"))
        await turn.take()

        assert turn.hosts.changes == [write(add=[WEB])]

    async def test_it_waits_anew_after_a_write(self) -> None:
        turn = Turn(*bound("web"), *self.COMING)
        await turn.take()
        await turn.clock.advance(GATHER_S)
        await turn.take()
        turn.change(*bound("mq"))

        assert await turn.take() == pytest.approx(GATHER_S)


class TestRefusals:
    """Azure refuses a whole write because of one identity in it."""

    BAD = resource("bad")

    async def test_the_others_are_written_after_a_pause_and_the_refused_one_waits(self) -> None:
        turn = Turn(*bound("web"), *bound("bad"))
        turn.hosts.refuse(self.BAD)
        again_in_s = await turn.take()

        assert turn.hosts.changes == [write(add=[WEB])]
        assert turn.clock.monotonic_s() == LIMITS.retry_interval_s + ARM_S
        assert again_in_s == LIMITS.quarantine.first_s - turn.clock.monotonic_s()
        assert (turn.usable, turn.told) == ({WEB}, [("bad", "PI501")])

    async def test_it_is_tried_again_when_its_time_has_come_and_not_before(self) -> None:
        turn = Turn(*bound("bad"))
        turn.hosts.refuse(self.BAD)
        seen: list[tuple[float, float | None]] = []
        for _ in range(5):
            seen.append((turn.clock.monotonic_s(), again_in_s := await turn.take()))
            await turn.clock.advance(1)
            assert await turn.take() == pytest.approx((again_in_s or 0) - 1)
            await turn.clock.advance((again_in_s or 0) - 1)

        assert seen == [(0, 60), (60, 100), (160, 100), (260, 100), (360, 100)]
        assert len(turn.told) == 5

    async def test_one_that_is_accepted_again_is_written_and_its_next_wait_is_short(self) -> None:
        turn = Turn(*bound("bad"))
        turn.hosts.refuse(self.BAD)
        await turn.take()
        turn.hosts.accept(self.BAD)
        await turn.clock.advance(60)
        accepted = await turn.take()
        turn.hosts.put(vm())
        turn.hosts.refuse(self.BAD)
        turn.worker.doubt()

        assert (accepted, await turn.take()) == (None, 60)

    async def test_one_that_nobody_needs_any_more_is_forgotten(self) -> None:
        """Otherwise the host has one turn after the other as soon as the quarantine is over."""
        things = bound("bad")
        turn = Turn(*bound("web"), *things)
        turn.hosts.refuse(self.BAD)
        await turn.take()
        turn.change(gone=[things[2], things[3]])
        await turn.clock.advance(1000)

        assert await turn.take() is None

    async def test_names_are_compared_without_regard_to_case(self) -> None:
        turn = Turn(*bound("web"), *bound("bad"))
        turn.worker.record(vm()).learn(frozenset(), frozenset())
        turn.hosts.fail_next(IdentitiesRefused("no", resource_ids=frozenset({self.BAD.text.upper()})))
        await turn.take()

        assert (turn.told, turn.usable) == ([("bad", "PI501")], {WEB})

    @pytest.mark.parametrize("others", [0, 1, 2, 7, 20])
    async def test_one_that_the_error_does_not_name_is_found_by_halving(self, others: int) -> None:
        good = [f"good-{n}" for n in range(others)]
        turn = Turn(*bound("bad"), *(thing for name in good for thing in bound(name)))
        turn.hosts.refuse(self.BAD, named=False)
        again_in_s = await turn.take()

        assert turn.usable == {resource(name) for name in good}
        assert turn.told == [("bad", "PI501")]
        assert again_in_s is not None
        assert turn.hosts.writes <= 2 + 2 * others.bit_length()

    async def test_two_that_the_error_does_not_name_are_found(self) -> None:
        good = [f"good-{n}" for n in range(6)]
        turn = Turn(*bound("bad"), *bound("worse"), *(thing for name in good for thing in bound(name)))
        turn.hosts.refuse(self.BAD, named=False)
        turn.hosts.refuse(resource("worse"), named=False)
        await turn.take()

        assert turn.usable == {resource(name) for name in good}
        assert sorted(turn.told) == [("bad", "PI501"), ("worse", "PI501")]

    async def test_a_host_that_refuses_everything_is_not_asked_for_each_one(self) -> None:
        names = [f"id-{n}" for n in range(32)]
        turn = Turn(*(thing for name in names for thing in bound(name)))
        for name in names:
            turn.hosts.refuse(resource(name), named=False)
        again_in_s = await turn.take()

        assert turn.hosts.writes <= 8
        assert len({name for name, _ in turn.told}) == 32
        assert again_in_s is not None
        assert again_in_s > 30

    async def test_after_a_few_refusals_in_a_row_the_host_is_left_alone_for_a_while(self) -> None:
        bad = [f"bad{n}" for n in range(5)]
        turn = Turn(*bound("web"), *(thing for name in bad for thing in bound(name)), one_by_one=True)
        for name in bad:
            turn.hosts.refuse(resource(name))
        first = await turn.take()
        refused = len(turn.told)
        await turn.clock.advance(NEXT_ROUND_S)
        await turn.take()

        assert (first, refused) == (NEXT_ROUND_S, LIMITS.retries + 1)
        assert turn.hosts.changes == [write(add=[WEB])]

    async def test_a_removal_that_is_refused_stays_usable_and_stops_nobody(self) -> None:
        """TestCloudProviderRetryLoop: the error names the identity of the deleted pod."""
        turn = Turn(*bound("web"), left("db"), carries=[DB])
        turn.worker.record(vm()).learn(frozenset({DB}), frozenset({DB}))
        turn.hosts.fail_next(IdentitiesRefused("no", resource_ids=frozenset({DB.text})))
        await turn.take()

        assert turn.hosts.changes == [write(add=[WEB])]
        assert turn.usable == {WEB, DB}


class TestGrace:
    """An identity that nobody needs stays for a while, since it is often needed again at once."""

    GRACE_S = 60.0

    def turn(self, *things: Thing, carries: Collection[IdentityResource] = ()) -> Turn:
        made = Turn(*things, carries=carries)
        made.worker._limits = replace(LIMITS, grace_s=self.GRACE_S)
        made.worker._began_s -= self.GRACE_S  # the term is not new: see TestCertainty
        return made

    async def test_it_leaves_when_the_time_is_over_and_not_before(self) -> None:
        turn = self.turn(left("db"), carries=[DB])

        first = await turn.take()
        await turn.clock.advance(self.GRACE_S - 1)
        second = await turn.take()
        before = list(turn.hosts.changes)
        await turn.clock.advance(1)
        third = await turn.take()

        assert (first, second, third) == (self.GRACE_S, 1.0, None)
        assert (before, turn.hosts.changes) == ([], [write(remove=[DB])])

    async def test_when_it_is_needed_again_nothing_is_written_and_the_time_begins_anew(self) -> None:
        gone = left("web")
        turn = self.turn(gone, carries=[WEB])
        await turn.take()
        await turn.clock.advance(self.GRACE_S / 2)
        things = bound("web", AssignmentState.ASSIGNED)
        turn.change(*things)
        await turn.take()
        turn.change(gone=things[:1])
        turn.change(gone=things[2:])
        again_in_s = await turn.take()

        assert (again_in_s, turn.hosts.changes) == (self.GRACE_S, [])

    async def test_an_addition_does_not_wait_and_takes_no_removal_along(self) -> None:
        turn = self.turn(*bound("web"), left("db"), carries=[DB])
        again_in_s = await turn.take()

        assert (again_in_s, turn.hosts.changes) == (self.GRACE_S - ARM_S, [write(add=[WEB])])


TICK_S = 0.001
"""What passes between two looks at the clock."""


@pytest.mark.parametrize("ticks", range(12))
class TestTimeThatEndsWithinATurn:
    """A turn that begins a moment too early, as timers may let it, acts or comes back: nothing is forgotten."""

    GRACE_S = 60.0

    async def test_of_grace(self, ticks: int) -> None:
        turn = Turn(left("db"), carries=[DB], tick_s=TICK_S)
        turn.worker._limits = replace(LIMITS, grace_s=self.GRACE_S)
        turn.worker._began_s -= self.GRACE_S
        again_in_s = await turn.take()

        assert again_in_s is not None
        await turn.clock.advance(again_in_s - ticks * TICK_S)
        assert await turn.take() is not None or turn.hosts.changes == [write(remove=[DB])]

    async def test_of_a_quarantine(self, ticks: int) -> None:
        bad = resource("bad")
        turn = Turn(*bound("bad"), tick_s=TICK_S)
        turn.hosts.refuse(bad)
        again_in_s = await turn.take()
        turn.hosts.accept(bad)

        assert again_in_s is not None
        await turn.clock.advance(again_in_s - ticks * TICK_S)
        assert await turn.take() is not None or turn.hosts.changes == [write(add=[bad])]


class TestCertainty:
    """What a former leader asked of Azure before it died may arrive after our first look."""

    GRACE_S = 60.0

    async def test_with_something_to_leave_the_host_is_looked_at_again_when_nothing_can_arrive_any_more(self) -> None:
        turn = Turn(left("db"))
        turn.worker._limits = replace(LIMITS, grace_s=self.GRACE_S)

        first = await turn.take(), turn.worker.record(vm()).sure
        turn.hosts.put(vm(), DB)  # it arrives
        await turn.clock.advance(self.GRACE_S)
        second = await turn.take(), turn.worker.record(vm()).sure
        await turn.clock.advance(self.GRACE_S)
        await turn.take()

        assert (first, second) == ((self.GRACE_S, False), (self.GRACE_S, True))
        assert turn.hosts.changes == [write(remove=[DB])]

    async def test_with_nothing_to_leave_it_is_not(self) -> None:
        turn = Turn(*bound("web", AssignmentState.ASSIGNED), carries=[WEB])
        turn.worker._limits = replace(LIMITS, grace_s=self.GRACE_S)

        assert await turn.take() is None


PASSES = [Conflict("somebody else"), Throttled("slowly", retry_after_s=9)]
TROUBLE = [TransientError("away"), PermissionRefused("no right"), RefusedError("no")]
FAILURES = [*TROUBLE, *PASSES]


async def test_what_is_needed_again_in_the_pause_after_a_refusal_is_not_removed() -> None:
    turn = Turn(*bound("bad"), left("web"), carries=[WEB])
    turn.hosts.refuse(resource("bad"))
    taking = await turn.begin()
    turn.change(*bound("web", AssignmentState.ASSIGNED))
    await turn.end(taking)

    assert turn.hosts.changes == []


class TestFailures:
    @pytest.mark.parametrize("error", PASSES, ids=lambda error: type(error).__name__)
    async def test_what_passes_by_itself_is_told_only_when_it_does_not(self, error: PodIdentityError) -> None:
        turn = Turn(*bound("web"))
        told: list[int] = []
        for _ in range(PASSING + 1):
            turn.hosts.fail_next(error)
            with pytest.raises(type(error)):
                await turn.take()
            told.append(len(turn.told))
        await turn.take()

        assert told == [0] * PASSING + [1]
        assert turn.worker._desk(vm()).failures == 0

    async def test_the_same_trouble_is_told_every_ten_minutes_and_at_once_to_those_who_come(self) -> None:
        turn = Turn(*bound("web"))
        told: list[int] = []
        for minute in range(12):
            turn.hosts.fail_next(TransientError("away"))
            with pytest.raises(TransientError):
                await turn.take()
            told.append(len(turn.told))
            await turn.clock.advance(60)
            if minute == 4:
                turn.change(*bound("db"))

        assert told == [1] * 5 + [2] * 5 + [3] * 2

    @pytest.mark.parametrize("error", TROUBLE, ids=lambda error: type(error).__name__)
    async def test_a_read_that_fails_is_told_to_those_who_wait(self, error: PodIdentityError) -> None:
        turn = Turn(*bound("web"), *bound("db", AssignmentState.ASSIGNED))
        turn.hosts.fail_next(error)

        with pytest.raises(type(error)) as caught:
            await turn.take()
        assert caught.value is error
        assert (turn.told, turn.usable, turn.hosts.changes) == ([("web", "PI502")], None, [])

    @pytest.mark.parametrize("after_write", [False, True], ids=["request lost", "answer lost"])
    @pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
    async def test_after_a_write_that_fails_nothing_is_known(self, error: PodIdentityError, after_write: bool) -> None:
        turn = Turn(*bound("web"), carries=[DB])
        turn.worker.record(vm()).learn(frozenset({DB}), frozenset())
        turn.hosts.fail_next(error, after_write=after_write)

        with pytest.raises(type(error)):
            await turn.take()
        unknown = turn.usable
        await turn.take()

        assert (unknown, turn.usable) == (None, {WEB, DB})
        assert turn.worker.record(vm()).foreign == {DB}
        assert turn.hosts.changes == [write(add=[WEB])]

    async def test_after_a_write_that_is_cut_off_nothing_is_known(self) -> None:
        turn = Turn(*bound("web"))
        taking = await turn.begin()
        await turn.clock.advance(ARM_S / 2)
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)

        assert (turn.usable, turn.worker.record(vm()).stale) == (None, True)

    async def test_those_on_other_hosts_hear_nothing(self) -> None:
        turn = Turn(node("node-2"), *bound("web"), *bound("db", on="node-2"))
        turn.hosts.fail_next(TransientError("away"))

        with pytest.raises(TransientError):
            await turn.take()
        assert turn.told == [("web", "PI502")]

    async def test_a_pod_that_is_only_planned_hears_of_it(self) -> None:
        turn = Turn(identity(), binding(), pod())
        turn.hosts.fail_next(TransientError("away"))

        with pytest.raises(TransientError):
            await turn.take()
        assert turn.told == [("web", "PI502")]

    async def test_a_host_that_is_gone_carries_nothing(self) -> None:
        turn = Turn(*bound("web"), left("db"), carries=[WEB, DB])
        turn.hosts.remove(vm())

        with pytest.raises(NotFound):
            await turn.take()
        assert turn.usable == set()

    async def test_a_host_that_is_being_deleted_takes_no_writes(self) -> None:
        turn = Turn(*bound("web"))
        turn.hosts.put(vm(), deleting=True)

        with pytest.raises(RefusedError):
            await turn.take()
        assert turn.hosts.changes == []

    async def test_a_pod_that_comes_while_a_write_is_under_way_is_served_by_the_next(self) -> None:
        turn = Turn(*bound("web"))
        taking = await turn.begin()
        turn.change(*bound("db"))
        await turn.end(taking)

        assert turn.hosts.changes == [write(add=[WEB]), write(add=[DB])]

    async def test_what_is_needed_again_while_its_removal_is_under_way_is_put_back(self) -> None:
        turn = Turn(left("web"), carries=[WEB])
        taking = await turn.begin()
        meanwhile = turn.usable
        turn.change(*bound("web"))
        await turn.end(taking)

        assert meanwhile == set()
        assert turn.hosts.changes == [write(remove=[WEB]), write(add=[WEB])]
        assert turn.usable == {WEB}


def test_nothing_is_known_of_a_host_before_its_first_turn() -> None:
    turn = Turn(*bound("web"))

    assert turn.usable is None
    assert turn.worker.needs(vm()).needed == {WEB}
    assert turn.worker.needs(vm("another")).needed == frozenset()
