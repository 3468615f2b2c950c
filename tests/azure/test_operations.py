"""Following an operation: how often it is asked for, when it has ended, and what may go wrong on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from podidentity_azure.operations import (
    OPERATION_LIMIT_S,
    POLL_CAP_S,
    POLL_FLOOR_S,
    RESOURCE_POLL_CAP_S,
    TOLERATED_FAILURES,
    Answer,
    Follower,
    poll_delay_s,
    polls_left,
)
from podidentity_core.errors import PermissionRefused, TransientError
from podidentity_core.ports import Clock

OPERATION = "https://arm.example/operations/1?c=signature"
RESOURCE = "https://arm.example/host"
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


def failed(code: str) -> Answer:
    return Answer(200, {}, {"status": "Failed", "error": {"code": code, "message": "Words."}})


async def test_the_end_of_an_operation_is_its_result(clock: Clock) -> None:
    arm = Arm(RUNNING, RUNNING, SUCCEEDED)

    assert await Follower(arm, clock, RESOURCE).follow(STARTED) == (None, None)
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
    fault, resource = await Follower(Arm(RUNNING, answer), clock, RESOURCE).follow(STARTED)

    assert fault is not None
    assert fault.status is None
    assert fault.code == code
    assert words in fault.text
    assert resource is None


async def test_nothing_is_asked_when_the_answer_says_that_it_is_done(clock: Clock) -> None:
    arm = Arm(RUNNING)

    assert await Follower(arm, clock, RESOURCE).follow(DONE) == (None, None)
    assert await Follower(arm, clock, RESOURCE).follow(Answer(200, {}, {})) == (None, None)
    assert arm.asked == []


async def test_without_an_address_the_resource_is_asked_and_returned(clock: Clock) -> None:
    arm = Arm(UPDATING, DONE)

    assert await Follower(arm, clock, RESOURCE).follow(UPDATING) == (None, DONE)
    assert arm.asked == [RESOURCE] * 2


async def test_a_location_runs_while_it_answers_202(clock: Clock) -> None:
    arm = Arm(Answer(202), Answer(202), Answer(204))

    assert await Follower(arm, clock, RESOURCE).follow(Answer(202, {"location": OPERATION})) == (None, None)
    assert arm.asked == [OPERATION] * 3


async def test_what_names_no_state_is_no_end_of_an_operation(clock: Clock) -> None:
    arm = Arm(Answer(200), DONE, SUCCEEDED)

    assert await Follower(arm, clock, RESOURCE).follow(STARTED) == (None, None)
    assert len(arm.asked) == 3


@pytest.mark.parametrize("status", [401, 403, 404, 410])
async def test_who_may_not_follow_the_operation_follows_the_resource(clock: Clock, status: int) -> None:
    arm = Arm(Answer(status), UPDATING, DONE)

    assert await Follower(arm, clock, RESOURCE).follow(STARTED) == (None, DONE)
    assert arm.asked == [OPERATION, RESOURCE, RESOURCE]


@pytest.mark.parametrize("status", [403, 404, 400])
async def test_a_resource_that_may_not_be_read_any_more_is_a_failure(clock: Clock, status: int) -> None:
    fault, _ = await Follower(Arm(Answer(403), Answer(status)), clock, RESOURCE).follow(STARTED)

    assert fault is not None
    assert fault.status == status


async def test_a_few_polls_may_fail(clock: Clock) -> None:
    trouble: list[Answer | Exception] = [TransientError("no answer"), Answer(503), Answer(408)]
    arm = Arm(*trouble, RUNNING, *trouble, SUCCEEDED)

    assert await Follower(arm, clock, RESOURCE).follow(STARTED) == (None, None)
    assert len(arm.asked) == 8


@pytest.mark.parametrize("trouble", [TransientError("no answer"), Answer(500)])
async def test_many_failing_polls_in_a_row_end_it(clock: Clock, trouble: Answer | Exception) -> None:
    arm = Arm(trouble)

    with pytest.raises(TransientError, match="cannot be followed"):
        await Follower(arm, clock, RESOURCE).follow(STARTED)

    assert len(arm.asked) == TOLERATED_FAILURES + 1


async def test_a_credential_that_is_refused_is_no_failing_poll(clock: Clock) -> None:
    with pytest.raises(PermissionRefused):
        await Follower(Arm(PermissionRefused("no token")), clock, RESOURCE).follow(STARTED)


async def test_being_throttled_is_obeyed_and_is_no_failure(clock: Any) -> None:
    arm = Arm(*[Answer(429, {"retry-after": "7"})] * 6, SUCCEEDED)

    assert await Follower(arm, clock, RESOURCE).follow(STARTED) == (None, None)
    assert clock.slept[1:] == [7.0] * 6


async def test_a_hint_of_the_server_is_obeyed(clock: Any) -> None:
    hint = {"retry-after": "2"}
    started = Answer(200, {**STARTED.headers, **hint}, STARTED.body)
    arm = Arm(Answer(200, hint, RUNNING.body), SUCCEEDED)

    await Follower(arm, clock, RESOURCE).follow(started)

    assert clock.slept == [2.0, 2.0]


async def test_a_hint_of_zero_is_no_busy_loop(clock: Any) -> None:
    arm = Arm(*[Answer(200, {"retry-after": "0"}, RUNNING.body)] * 3, SUCCEEDED)

    await Follower(arm, clock, RESOURCE).follow(STARTED)

    assert min(clock.slept) == POLL_FLOOR_S


async def test_an_operation_without_end_is_given_up(clock: Any) -> None:
    begun_s = clock.now_s

    with pytest.raises(TransientError, match="did not end within 900 s"):
        await Follower(Arm(RUNNING), clock, RESOURCE).follow(STARTED)

    assert clock.now_s - begun_s == pytest.approx(OPERATION_LIMIT_S)


def timed(clock: Any, seconds: float, running: Answer, ended: Answer) -> Callable[[str], Any]:
    end_s = clock.now_s + seconds

    async def ask(_: str) -> Answer:
        return running if clock.now_s < end_s else ended

    return ask


@pytest.mark.parametrize(
    ("seconds", "headers", "polls", "allowed"),
    [
        pytest.param(5, STARTED.headers, 18, 45 + 15 * 5 / 60, id="operation of 5 s"),
        pytest.param(60, STARTED.headers, 45, 45 + 15, id="operation of 60 s"),
        pytest.param(899, STARTED.headers, 255, 45 + 15 * 15, id="operation of 15 min"),
        pytest.param(5, {}, 18, 36 + 12 * 5 / 60, id="resource, 5 s"),
        pytest.param(60, {}, 44, 36 + 12, id="resource, 60 s"),
        pytest.param(899, {}, 212, 36 + 12 * 15, id="resource, 15 min"),
    ],
)
async def test_polls_lag_little_and_stay_within_the_budget(
    clock: Any, seconds: float, headers: Mapping[str, str], polls: int, allowed: float
) -> None:
    begun_s = clock.now_s
    started = Answer(200, headers, STARTED.body)
    ask = timed(clock, seconds, RUNNING if headers else UPDATING, SUCCEEDED if headers else DONE)

    await Follower(ask, clock, RESOURCE).follow(started)

    assert clock.now_s - begun_s - seconds <= max(POLL_FLOOR_S, seconds / 10)
    assert len(clock.slept) == pytest.approx(polls, abs=1)
    assert len(clock.slept) <= allowed


@pytest.mark.parametrize(
    ("elapsed_s", "left", "expected"),
    [
        (0.0, None, POLL_FLOOR_S),
        (2.5, None, 0.25),
        (6.0, None, 0.6),
        (39.0, None, 3.9),
        (500.0, None, POLL_CAP_S),
        (6.0, 44, 0.6),
        (6.0, 3, 1.0),
        (6.0, 0, POLL_CAP_S),
    ],
)
def test_the_wait_grows_with_the_time_and_with_scarcity(elapsed_s: float, left: int | None, expected: float) -> None:
    assert poll_delay_s(elapsed_s, polls_left=left) == pytest.approx(expected)


def test_the_resource_is_asked_less_often_in_the_long_run() -> None:
    assert poll_delay_s(500.0, cap_s=RESOURCE_POLL_CAP_S) == RESOURCE_POLL_CAP_S


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("Microsoft.Compute/GetOperationResource;44,Microsoft.Compute/GetOperationSubscriptionMaximum;14998", 44),
        ("Microsoft.Compute/GetOperationSubscriptionMaximum;3", None),
        ("Microsoft.Compute/GetVMScaleSetResource; 7", 7),
        ("Microsoft.Compute/GetOperationResource;many", None),
        ("nonsense", None),
        ("", None),
    ],
)
def test_what_is_left_is_read_from_the_answer(header: str, expected: int | None) -> None:
    assert polls_left({"x-ms-ratelimit-remaining-resource": header}) == expected


def test_an_answer_shows_neither_its_signed_address_nor_its_body() -> None:
    assert repr(STARTED) == "Answer(200)"
