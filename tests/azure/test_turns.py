"""Turns: how many calls run at once and in a second, who comes next, and who gives up."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Hashable
from typing import Any

import pytest

from podidentity_azure.turns import COUNTED_S, LONGEST_PAUSE_S, Turns
from podidentity_core.errors import Throttled
from podidentity_core.testing.clock import FakeClock, settle

AT_ONCE = 5
PER_SECOND = 20
PATIENCE_S = 1_000.0


class Calls:
    """Calls to a service, each of some duration; *began* and *lifetimes* say when, *keys* in which order."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.turns = Turns("the service", clock, at_once=AT_ONCE, per_second=PER_SECOND)
        self.running = 0
        self.keys: list[Hashable] = []
        self.began: list[float] = []
        self.lifetimes: list[tuple[float, float]] = []
        self.tasks: list[asyncio.Task[None]] = []

    def begin(
        self, key: Hashable = "a", *, takes_s: float = 0.0, within_s: float = PATIENCE_S, error: Exception | None = None
    ) -> asyncio.Task[None]:
        self.tasks.append(asyncio.create_task(self._call(key, takes_s, within_s, error)))
        return self.tasks[-1]

    async def _call(self, key: Hashable, takes_s: float, within_s: float, error: Exception | None) -> None:
        async with self.turns.turn(key, within_s=within_s):
            self.running += 1
            self.keys.append(key)
            began_s = self.clock.monotonic_s()
            self.began.append(began_s)
            await self.clock.sleep(takes_s)
            self.lifetimes.append((began_s, self.clock.monotonic_s()))
            self.running -= 1
            if error is not None:
                raise error


@pytest.fixture
async def calls() -> AsyncIterator[Calls]:
    made = Calls(FakeClock())
    yield made
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)
    await settle()
    assert asyncio.all_tasks() == {asyncio.current_task()}, "the turns leave something behind"


# How many


async def test_so_many_run_at_once_and_the_next_begins_when_one_ends(calls: Calls) -> None:
    for number in range(AT_ONCE + 2):
        calls.begin(takes_s=1.0 + number / 10)

    await calls.clock.advance(0.9)
    assert calls.running == AT_ONCE
    await calls.clock.advance(0.15)

    assert calls.running == AT_ONCE
    assert calls.began == [0.0] * AT_ONCE + [1.0]


async def test_as_many_begin_in_a_second_as_the_service_takes(calls: Calls) -> None:
    for _ in range(3 * PER_SECOND):
        calls.begin()

    await calls.clock.advance(10.0)

    assert calls.began == [0.0] * PER_SECOND + [1.0] * PER_SECOND + [2.0] * PER_SECOND


@pytest.mark.parametrize("seed", range(5))
async def test_the_service_never_sees_more_in_any_second_whenever_it_takes_a_call_in(calls: Calls, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311  # not for secrets
    for number in range(200):
        calls.begin(number % 7, takes_s=chance.choice((0.0, 0.01, 0.06, 0.3, 1.5)) * chance.random())
        if chance.random() < 0.3:
            await calls.clock.advance(chance.random() / 5)
    await calls.clock.advance(100.0)

    assert [task.exception() for task in calls.tasks] == [None] * 200
    for moments in ((0.0,), (1.0,), (0.0, 1.0), (0.0, 0.3, 0.6, 1.0)):
        seen = sorted(began + chance.choice(moments) * (ended - began) for began, ended in calls.lifetimes)
        assert all(later - first >= COUNTED_S - 1e-9 for first, later in zip(seen, seen[PER_SECOND:], strict=False))


async def test_a_call_that_fails_ends_its_turn_and_counts(calls: Calls) -> None:
    failing = [calls.begin(error=OSError("no")) for _ in range(PER_SECOND)]
    calls.begin()

    await calls.clock.advance(2.0)

    assert [type(task.exception()) for task in failing] == [OSError] * PER_SECOND
    assert calls.began == [0.0] * PER_SECOND + [1.0]


# Who comes next


async def busy(calls: Calls) -> None:
    """Let all turns of the first second be taken."""
    for _ in range(PER_SECOND):
        calls.begin("busy")
    await settle()
    calls.keys.clear()


async def test_keys_take_turns_and_within_a_key_the_first_comes_first(calls: Calls) -> None:
    await busy(calls)
    for name in ("a1", "a2", "a3", "b1", "c1", "c2"):
        calls.tasks.append(asyncio.create_task(named(calls, name)))
    await settle()

    await calls.clock.advance(5.0)

    assert calls.keys == ["a1", "b1", "c1", "a2", "c2", "a3"]


async def named(calls: Calls, name: str) -> None:
    """A call whose key is the first letter of its *name*."""
    async with calls.turns.turn(name[0], within_s=PATIENCE_S):
        calls.keys.append(name)


async def test_a_new_key_waits_for_at_most_one_turn_of_each_other(calls: Calls) -> None:
    await busy(calls)
    for _ in range(1000):
        calls.begin("greedy")
        calls.begin("other")
    await calls.clock.advance(1.0)
    calls.keys.clear()

    calls.begin("new")
    await calls.clock.advance(1.0)

    assert calls.keys.index("new") <= 2


async def test_who_stops_waiting_frees_the_place(calls: Calls) -> None:
    await busy(calls)
    first, second = calls.begin("a"), calls.begin("b")
    await settle()

    first.cancel()
    await calls.clock.advance(1.0)

    assert first.cancelled()
    assert second.done()
    assert calls.keys == ["b"]


async def test_a_turn_that_nobody_is_there_to_take_goes_to_the_next(calls: Calls) -> None:
    running = [calls.begin(takes_s=1.0) for _ in range(AT_ONCE)]
    late = calls.begin("late")
    next_ = calls.begin("next")
    await settle()

    running[0].cancel()  # ends a call, so that a turn is given to the one that is waiting
    await asyncio.sleep(0)
    late.cancel()
    await settle()

    assert late.cancelled()
    assert calls.keys[AT_ONCE:] == ["next"]
    assert next_.done()


# Who gives up


async def test_who_has_no_turn_in_time_is_told_when_to_ask_again(calls: Calls) -> None:
    for _ in range(AT_ONCE):
        calls.begin(takes_s=60.0)
    waiting = [calls.begin(within_s=3.0 if number == 0 else PATIENCE_S) for number in range(2 * PER_SECOND)]

    await calls.clock.advance(2.9)
    assert not any(task.done() for task in waiting)
    await calls.clock.advance(0.2)

    error = waiting[0].exception()
    assert isinstance(error, Throttled)
    assert str(error) == (
        "40 calls wait for the service, which takes 20 a second and 5 at once; this one had no turn within 3 s"
    )
    assert error.retry_after_s == 2.0
    assert not any(task.done() for task in waiting[1:])


async def test_without_time_to_wait_only_a_free_turn_is_taken(calls: Calls) -> None:
    at_once = calls.begin(within_s=0.0)
    await settle()
    await busy(calls)
    refused = calls.begin(within_s=-1.0)
    await settle()

    assert at_once.exception() is None
    assert isinstance(refused.exception(), Throttled)


# Pauses


async def test_in_a_pause_nobody_begins_and_who_runs_goes_on(calls: Calls) -> None:
    calls.begin(takes_s=1.0)
    await settle()
    calls.turns.pause(3.0)
    calls.begin()
    calls.begin()

    await calls.clock.advance(5.0)

    assert calls.began == [0.0, 3.0, 3.0]
    assert calls.lifetimes[0] == (0.0, 1.0)


@pytest.mark.parametrize(("first_s", "second_s", "expected_s"), [(2.0, 4.0, 4.0), (4.0, 2.0, 4.0), (1e9, 0.0, 10.0)])
async def test_the_longer_of_two_pauses_counts_and_none_is_endless(
    calls: Calls, first_s: float, second_s: float, expected_s: float
) -> None:
    calls.turns.pause(first_s)
    calls.turns.pause(second_s)
    calls.begin()

    await calls.clock.advance(LONGEST_PAUSE_S)

    assert calls.began == [expected_s]


@pytest.mark.parametrize(("pause_s", "expected_s"), [(0.5, 1.0), (3.0, 3.0)])
async def test_a_pause_comes_on_top_of_no_other_wait(calls: Calls, pause_s: float, expected_s: float) -> None:
    await busy(calls)
    calls.begin()
    await settle()
    calls.turns.pause(pause_s)

    await calls.clock.advance(5.0)

    assert calls.began[PER_SECOND:] == [expected_s]


async def test_a_pause_that_outlasts_a_wait_says_how_long_it_is(calls: Calls) -> None:
    calls.turns.pause(9.0)
    waiting = calls.begin(within_s=2.0)

    await calls.clock.advance(2.0)

    error: Any = waiting.exception()
    assert isinstance(error, Throttled)
    assert error.retry_after_s == 7.0
