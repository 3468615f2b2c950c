"""Work by key: one handler at a time per key, and longer waits after failures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from podidentity_core.errors import PodIdentityError, Throttled, TransientError
from podidentity_core.services.work_queue import Backoff, WorkQueue
from podidentity_core.testing.clock import FakeClock, settle


class Desk:
    """A handler that keeps what it was given, and does with a key what the test says."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.began: list[tuple[float, str]] = []
        self.running: set[str] = set()
        self.most_at_once = 0
        self.duration_s = 0.0
        self.failures: list[PodIdentityError] = []
        self.again_in_s: list[float] = []

    async def handle(self, key: str) -> float | None:
        assert key not in self.running, f"{key} is handled twice at once"
        self.began.append((self.clock.monotonic_s(), key))
        self.running.add(key)
        self.most_at_once = max(self.most_at_once, len(self.running))
        try:
            await self.clock.sleep(self.duration_s)
        finally:
            self.running.discard(key)
        if self.failures:
            raise self.failures.pop(0)
        return self.again_in_s.pop(0) if self.again_in_s else None

    @property
    def times(self) -> list[float]:
        return [began_s for began_s, _ in self.began]


@asynccontextmanager
async def at_work(
    desk: Desk,
    *,
    parallel: int = 10,
    patient: bool = False,
    chance: Callable[[], float] = lambda: 0.0,
    can_wait: Callable[[str], bool] = lambda _: False,
) -> AsyncIterator[WorkQueue[str]]:
    backoff = Backoff(first_s=1.0, most_s=8.0)
    queue: WorkQueue[str] = WorkQueue(
        desk.handle,
        clock=desk.clock,
        chance=chance,
        parallel=parallel,
        backoff=backoff,
        patient=patient,
        can_wait=can_wait,
    )
    work = asyncio.create_task(queue.run())
    try:
        yield queue
    finally:
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work


@pytest.fixture
def desk() -> Desk:
    return Desk(FakeClock())


async def test_a_key_is_handled_once_for_each_time_that_something_was_new(desk: Desk) -> None:
    async with at_work(desk) as queue:
        for _ in range(3):
            queue.add("a")
            queue.add("a")
            await settle()

    assert [key for _, key in desk.began] == ["a", "a", "a"]


async def test_keys_may_be_added_before_work_begins(desk: Desk) -> None:
    queue: WorkQueue[str] = WorkQueue(desk.handle, clock=desk.clock, chance=lambda: 0.0, parallel=1)
    queue.add("a")
    work = asyncio.create_task(queue.run())
    await settle()
    work.cancel()

    assert desk.began == [(0.0, "a")]


async def test_a_key_that_is_added_while_it_is_handled_is_handled_once_more(desk: Desk) -> None:
    desk.duration_s = 10
    async with at_work(desk) as queue:
        queue.add("a")
        for _ in range(3):
            await desk.clock.advance(1)
            queue.add("a")
        await desk.clock.advance(100)

    assert desk.times == [0, 10]


async def test_a_slow_key_does_not_stop_others(desk: Desk) -> None:
    desk.duration_s = 10
    async with at_work(desk) as queue:
        queue.add("a")
        await desk.clock.advance(1)
        desk.duration_s = 0
        queue.add("b")
        await settle()

        assert (desk.running, desk.times) == ({"a"}, [0, 1])


async def test_only_so_many_keys_are_handled_at_once(desk: Desk) -> None:
    desk.duration_s = 1
    async with at_work(desk, parallel=2) as queue:
        for key in "abcde":
            queue.add(key)
        await desk.clock.advance(10)

    assert desk.times == [0, 0, 1, 1, 2]
    assert desk.most_at_once == 2


async def test_waiting_after_a_failure_takes_no_slot(desk: Desk) -> None:
    desk.failures = [TransientError("no")]
    async with at_work(desk, parallel=1) as queue:
        queue.add("a")
        await settle()
        queue.add("b")
        await settle()

    assert desk.began == [(0, "a"), (0, "b")]


async def test_failures_in_a_row_wait_twice_as_long_each_time_up_to_a_limit(desk: Desk) -> None:
    desk.failures = [TransientError("no")] * 6
    async with at_work(desk) as queue:
        queue.add("a")
        await desk.clock.advance(100)

    assert desk.times == [0, 1, 3, 7, 15, 23, 31]


async def test_after_a_success_the_waits_begin_anew(desk: Desk) -> None:
    desk.failures = [TransientError("no"), TransientError("no")]
    async with at_work(desk) as queue:
        queue.add("a")
        await desk.clock.advance(100)
        desk.failures = [TransientError("no")]
        queue.add("a")
        await desk.clock.advance(100)

    assert desk.times == [0, 1, 3, 100, 101]


async def test_adding_a_key_ends_its_wait(desk: Desk) -> None:
    desk.failures = [TransientError("no")] * 4
    async with at_work(desk) as queue:
        queue.add("a")
        await desk.clock.advance(0.25)
        queue.add("a")
        await settle()

        assert desk.times == [0, 0.25]


async def test_a_patient_queue_waits_whatever_is_added_and_looks_once_more_after_that(desk: Desk) -> None:
    desk.failures = [Throttled("slowly", retry_after_s=30)]
    async with at_work(desk, patient=True) as queue:
        queue.add("a")
        for _ in range(29):
            await desk.clock.advance(1)
            queue.add("a")
        before = list(desk.times)
        await desk.clock.advance(100)

    assert (before, desk.times) == ([0], [0, 30])


@pytest.mark.parametrize("patient", [True, False])
async def test_a_throttled_key_waits_as_long_as_it_was_told(desk: Desk, patient: bool) -> None:
    desk.failures = [Throttled("slowly", retry_after_s=5), Throttled("slowly", retry_after_s=0.5)]
    async with at_work(desk, patient=patient) as queue:
        queue.add("a")
        await desk.clock.advance(100)

    assert desk.times == [0, 5, 7]


@pytest.mark.parametrize("patient", [True, False])
async def test_a_key_that_asks_for_another_look_gets_it_then_or_when_it_is_added(desk: Desk, patient: bool) -> None:
    desk.again_in_s = [60, 60]
    async with at_work(desk, patient=patient) as queue:
        queue.add("a")
        await desk.clock.advance(10)
        queue.add("a")
        await desk.clock.advance(100)

    assert desk.times == [0, 10, 70]


async def test_an_error_that_is_no_failure_ends_the_work() -> None:
    async def handle(_: str) -> float | None:
        raise KeyError("a bug")

    queue: WorkQueue[str] = WorkQueue(handle, clock=FakeClock(), chance=lambda: 0.0, parallel=1)
    queue.add("a")

    with pytest.raises(ExceptionGroup) as caught:
        await queue.run()

    assert caught.group_contains(KeyError)


async def test_ending_the_work_ends_the_handlers(desk: Desk) -> None:
    desk.duration_s = 10
    async with at_work(desk) as queue:
        queue.add("a")
        await settle()
        assert desk.running == {"a"}

    assert desk.running == set()


DELAYS: list[tuple[int, float, float]] = [
    (1, 0.0, 0.5),
    (1, 0.5, 0.375),
    (1, 0.999, 0.25025),
    (2, 0.0, 1.0),
    (3, 0.0, 2.0),
    (8, 0.0, 60.0),
    (10_000, 0.0, 60.0),
]


@pytest.mark.parametrize(("failures", "chance", "delay_s"), DELAYS)
def test_back_off(failures: int, chance: float, delay_s: float) -> None:
    assert Backoff(first_s=0.5, most_s=60.0).delay_s(failures, chance) == pytest.approx(delay_s)


async def test_what_can_wait_leaves_half_of_the_places_to_the_rest(desk: Desk) -> None:
    desk.duration_s = 1.0
    async with at_work(desk, parallel=4, can_wait=lambda key: key.startswith("later")) as queue:
        for number in range(6):
            queue.add(f"later-{number}")
        await settle()
        queue.add("now-0")
        queue.add("now-1")
        await desk.clock.advance(0.5)
        first = {key for _, key in desk.began}
        await desk.clock.advance(9.0)

    assert first == {"later-0", "later-1", "now-0", "now-1"}
    assert len(desk.began) == 8
    assert desk.most_at_once == 4
