"""Following an operation: how often it is asked for, when it has ended, and what may go wrong on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from apps.sandbox.limits import Limits
from podidentity_azure.operations import (
    FIRST_POLL_CAP_S,
    LONGEST_PAUSE_S,
    OPERATION_LIMIT_S,
    POLL_CAP_S,
    POLL_FLOOR_S,
    RESOURCE_POLL_CAP_S,
    TOLERATED_FAILURES,
    Answer,
    Ask,
    Follower,
    UsualTime,
    poll_delay_s,
)
from podidentity_azure.quotas import Call, Quotas
from podidentity_core.errors import PermissionRefused, Throttled, TransientError
from podidentity_core.ports import Clock
from podidentity_core.testing import builders

OPERATION = "https://arm.example/operations/1?c=signature"
RESOURCE = "https://arm.example/host"
HOST = builders.scale_set()
STARTED = Answer(200, {"azure-asyncoperation": OPERATION}, {"properties": {"provisioningState": "Updating"}})
RUNNING = Answer(200, {}, {"status": "InProgress"})
SUCCEEDED = Answer(200, {}, {"status": "Succeeded"})
UPDATING = Answer(200, {}, {"properties": {"provisioningState": "Updating"}})
DONE = Answer(200, {}, {"properties": {"provisioningState": "Succeeded"}})


class Arm:
    """Answers in order; the last answer stays. *asked* has the addresses."""

    def __init__(self, *answers: Answer | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, url: str) -> Answer:
        self.asked.append(url)
        answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def follower(ask: Ask, clock: Clock, *, left: float = 45.0, first_poll_s: float = 0.0) -> Follower:
    """One whose budget never changes."""
    return Follower(ask, lambda _: left, clock, RESOURCE, first_poll_s=first_poll_s)


def failed(code: str) -> Answer:
    return Answer(200, {}, {"status": "Failed", "error": {"code": code, "message": "Words."}})


async def test_the_end_of_an_operation_is_its_result(clock: Clock) -> None:
    arm = Arm(RUNNING, RUNNING, SUCCEEDED)

    assert await follower(arm, clock).follow(STARTED) == (None, None)
    assert arm.asked == [OPERATION] * 3


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (failed("OperationPreempted"), "OperationPreempted", "Words."),
        (Answer(200, {}, {"status": "Canceled"}), "", "the operation ended as canceled"),
        (Answer(200, {}, {"status": "FAILED"}), "", "the operation ended as failed"),
    ],
)
async def test_why_an_operation_failed_is_told(clock: Clock, answer: Answer, code: str, words: str) -> None:
    fault, resource = await follower(Arm(RUNNING, answer), clock).follow(STARTED)

    assert fault is not None
    assert fault.status is None
    assert fault.code == code
    assert words in fault.text
    assert resource is None


async def test_nothing_is_asked_when_the_answer_says_that_it_is_done(clock: Clock) -> None:
    arm = Arm(RUNNING)

    assert await follower(arm, clock).follow(DONE) == (None, None)
    assert await follower(arm, clock).follow(Answer(200, {}, {})) == (None, None)
    assert arm.asked == []


async def test_without_an_address_the_resource_is_asked_and_returned(clock: Clock) -> None:
    arm = Arm(UPDATING, DONE)

    assert await follower(arm, clock).follow(UPDATING) == (None, DONE)
    assert arm.asked == [RESOURCE] * 2


async def test_a_location_runs_while_it_answers_202(clock: Clock) -> None:
    arm = Arm(Answer(202), Answer(202), Answer(204))

    assert await follower(arm, clock).follow(Answer(202, {"location": OPERATION})) == (None, None)
    assert arm.asked == [OPERATION] * 3


async def test_what_names_no_state_is_no_end_of_an_operation(clock: Clock) -> None:
    arm = Arm(Answer(200), DONE, SUCCEEDED)

    assert await follower(arm, clock).follow(STARTED) == (None, None)
    assert len(arm.asked) == 3


@pytest.mark.parametrize("status", [401, 403, 404, 410])
async def test_who_may_not_follow_the_operation_follows_the_resource(clock: Clock, status: int) -> None:
    arm = Arm(Answer(status), UPDATING, DONE)

    assert await follower(arm, clock).follow(STARTED) == (None, DONE)
    assert arm.asked == [OPERATION, RESOURCE, RESOURCE]


@pytest.mark.parametrize("status", [403, 404, 400])
async def test_a_resource_that_may_not_be_read_any_more_is_a_failure(clock: Clock, status: int) -> None:
    fault, _ = await follower(Arm(Answer(403), Answer(status)), clock).follow(STARTED)

    assert fault is not None
    assert fault.status == status


async def test_a_few_polls_may_fail(clock: Clock) -> None:
    trouble: list[Answer | Exception] = [TransientError("no answer"), Answer(503), Answer(408)]
    arm = Arm(*trouble, RUNNING, *trouble, SUCCEEDED)

    assert await follower(arm, clock).follow(STARTED) == (None, None)
    assert len(arm.asked) == 8


@pytest.mark.parametrize("trouble", [TransientError("no answer"), Answer(500)])
async def test_many_failing_polls_in_a_row_end_it(clock: Clock, trouble: Answer | Exception) -> None:
    arm = Arm(trouble)

    with pytest.raises(TransientError, match="cannot be followed"):
        await follower(arm, clock).follow(STARTED)

    assert len(arm.asked) == TOLERATED_FAILURES + 1


async def test_a_credential_that_is_refused_is_no_failing_poll(clock: Clock) -> None:
    with pytest.raises(PermissionRefused):
        await follower(Arm(PermissionRefused("no token")), clock).follow(STARTED)


async def test_being_throttled_is_obeyed_and_is_no_failure(clock: Any) -> None:
    arm = Arm(*[Answer(429, {"retry-after": "7"})] * 6, SUCCEEDED)

    assert await follower(arm, clock).follow(STARTED) == (None, None)
    assert clock.slept[1:] == [7.0] * 6


async def test_waiting_for_our_own_budget_is_no_failure_either(clock: Any) -> None:
    arm = Arm(*[Throttled("held back", retry_after_s=4.0)] * 6, SUCCEEDED)

    assert await follower(arm, clock).follow(STARTED) == (None, None)
    assert clock.slept == [POLL_FLOOR_S] + [4.0] * 6


async def test_after_a_wait_that_was_asked_for_the_polls_go_on_as_before(clock: Any) -> None:
    arm = Arm(Throttled("held back", retry_after_s=4.0), Answer(429, {"retry-after": "5"}), RUNNING, SUCCEEDED)

    await follower(arm, clock).follow(STARTED)

    assert clock.slept == pytest.approx([POLL_FLOOR_S, 4.0, 5.0, 0.925])


async def test_who_must_wait_longer_than_a_minute_gives_the_operation_up_at_once(clock: Any) -> None:
    """The host's turn waits instead, and reads the host when it comes again."""
    seconds = LONGEST_PAUSE_S + 1
    refusal = Answer(429, {"retry-after": f"{seconds:.0f}"}, {"code": "OperationNotAllowed", "message": "Words."})
    begun_s = clock.now_s

    with pytest.raises(Throttled):
        await follower(Arm(Throttled("held back", retry_after_s=seconds)), clock).follow(STARTED)
    fault, _ = await follower(Arm(refusal), clock).follow(STARTED)

    assert fault is not None
    assert (fault.status, fault.code, fault.retry_after_s) == (429, "OperationNotAllowed", seconds)
    assert clock.now_s - begun_s == 2 * POLL_FLOOR_S


async def test_a_hint_of_the_server_is_obeyed(clock: Any) -> None:
    hint = {"retry-after": "2"}
    started = Answer(200, {**STARTED.headers, **hint}, STARTED.body)
    arm = Arm(Answer(200, hint, RUNNING.body), SUCCEEDED)

    await follower(arm, clock).follow(started)

    assert clock.slept == [2.0, 2.0]


async def test_a_hint_of_zero_is_no_busy_loop(clock: Any) -> None:
    arm = Arm(*[Answer(200, {"retry-after": "0"}, RUNNING.body)] * 3, SUCCEEDED)

    await follower(arm, clock).follow(STARTED)

    assert min(clock.slept) == POLL_FLOOR_S


async def test_an_operation_without_end_is_given_up(clock: Any) -> None:
    begun_s = clock.now_s

    with pytest.raises(TransientError, match="did not end within 900 s"):
        await follower(Arm(RUNNING), clock).follow(STARTED)

    assert clock.now_s - begun_s == pytest.approx(OPERATION_LIMIT_S)


@dataclass
class Timed:
    """An operation that runs for *seconds* from now on; counts its polls."""

    clock: Any
    seconds: float
    running: Answer = RUNNING
    ended: Answer = SUCCEEDED
    polls: int = 0

    def __post_init__(self) -> None:
        self.end_s = self.clock.now_s + self.seconds

    async def __call__(self, _: str) -> Answer:
        self.polls += 1
        return self.running if self.clock.now_s < self.end_s else self.ended

    @property
    def lag_s(self) -> float:
        """How long ago it ended."""
        return float(self.clock.now_s - self.end_s)


@pytest.mark.parametrize(
    ("seconds", "headers", "polls", "later", "allowed"),
    [
        pytest.param(5, STARTED.headers, 18, 3, 45 + 15 * 5 / 60, id="operation of 5 s"),
        pytest.param(60, STARTED.headers, 45, 29, 45 + 15, id="operation of 60 s"),
        pytest.param(899, STARTED.headers, 254, 239, 45 + 15 * 15, id="operation of 15 min"),
        pytest.param(5, {}, 18, 3, 36 + 12 * 5 / 60, id="resource, 5 s"),
        pytest.param(60, {}, 44, 29, 36 + 12, id="resource, 60 s"),
        pytest.param(899, {}, 212, 197, 36 + 12 * 15, id="resource, 15 min"),
    ],
)
async def test_polls_lag_little_and_stay_within_the_budget(
    clock: Any, seconds: float, headers: Mapping[str, str], polls: int, later: int, allowed: float
) -> None:
    started, usual = Answer(200, headers, STARTED.body), UsualTime()
    states = (RUNNING, SUCCEEDED) if headers else (UPDATING, DONE)

    for expected in (polls, later):
        operation = Timed(clock, seconds, *states)
        await follower(operation, clock, first_poll_s=usual.first_poll_s()).follow(started)
        usual.note(seconds + operation.lag_s)

        assert operation.lag_s <= max(POLL_FLOOR_S, seconds / 10)
        assert operation.polls == pytest.approx(expected, abs=1)
        assert operation.polls <= allowed


@pytest.mark.parametrize("before", [None, 0.1, 2.0, 5.3, 20.0, 900.0])
@pytest.mark.parametrize("seconds", [4.999, 5.0, 4.84, 4.85, 4.4])
async def test_the_end_of_an_operation_of_5_s_is_seen_within_half_a_second_whatever_came_before(
    clock: Any, before: float | None, seconds: float
) -> None:
    usual = UsualTime()
    if before is not None:
        usual.note(before)
    operation = Timed(clock, seconds)

    await follower(operation, clock, first_poll_s=usual.first_poll_s()).follow(STARTED)

    assert operation.lag_s < 0.5


async def test_operations_that_follow_each_other_stay_within_the_budget_and_are_seen_to_end_in_time(
    clock: Any, meter: Any
) -> None:
    """As many as the budget of writes allows: ten of a rested scale set, then one in 15 s."""
    quotas, azure, usual = Quotas(clock, meter), Limits(True, clock.monotonic_s), UsualTime()
    polls, lags_s = [], []

    for number in range(40):
        operation = Timed(clock, 5.0 + number % 4 * 0.3)

        async def ask(url: str, operation: Timed = operation) -> Answer:
            await quotas.admit(HOST, Call.POLL)
            assert azure.take("GetOperationResource", HOST.key)[1] == 0, "Azure refuses this poll"
            return await operation(url)

        following = Follower(
            ask, lambda _: quotas.left(HOST, Call.POLL), clock, RESOURCE, first_poll_s=usual.first_poll_s()
        )
        await following.follow(STARTED)
        usual.note(operation.seconds + operation.lag_s)
        polls.append(operation.polls)
        lags_s.append(operation.lag_s)
        await clock.sleep(2.0 if number < 10 else 15.0 - operation.seconds - operation.lag_s)

    print(f"polls {polls}, the longest lag {max(lags_s):.2f} s")
    assert max(lags_s) <= 0.59, "a tenth of the longest operation"
    assert max(lags_s[::4]) < 0.5, "of those of 5 s"
    assert max(polls[1:]) <= 5


@pytest.mark.parametrize(
    ("took_s", "expected"),
    [
        ((), 0.0),
        ((5.0,), 4.25),
        ((2.0, 5.0), 1.7),
        ((60.0,), FIRST_POLL_CAP_S),
        ((0.5, 2.0, 2.0, 2.0, 2.0, 2.0), 1.7),
    ],
    ids=["none yet", "one", "the shortest", "at most so long", "those of long ago are forgotten"],
)
def test_the_first_poll_waits_for_most_of_the_usual_time(took_s: tuple[float, ...], expected: float) -> None:
    usual = UsualTime()
    for seconds in took_s:
        usual.note(seconds)

    assert usual.first_poll_s() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("elapsed_s", "left", "expected"),
    [
        (0.0, 45.0, POLL_FLOOR_S),
        (2.5, 45.0, 0.25),
        (6.0, 45.0, 0.6),
        (39.0, 45.0, 3.9),
        (500.0, 45.0, POLL_CAP_S),
        (6.0, 3.0, 1.0),
        (6.0, 0.0, POLL_CAP_S),
    ],
)
def test_the_wait_grows_with_the_time_and_with_scarcity(elapsed_s: float, left: float, expected: float) -> None:
    assert poll_delay_s(elapsed_s, polls_left=left) == pytest.approx(expected)


def test_the_resource_is_asked_less_often_in_the_long_run() -> None:
    assert poll_delay_s(500.0, cap_s=RESOURCE_POLL_CAP_S, polls_left=45.0) == RESOURCE_POLL_CAP_S


def test_an_answer_shows_neither_its_signed_address_nor_its_body() -> None:
    assert repr(STARTED) == "Answer(200)"
