"""Following a long-running operation of Resource Manager to its end.

Resource Manager says "started" and gives an address to ask at, but neither when nor how often; it has 45 polls for
each host and grants 15 more a minute (for the host itself 36 and 12). So the waits grow with the time that has
passed: the lag is a tenth of it at most, and never below a quarter of a second. And operations resemble each other:
once some have been seen, the first poll waits for most of the time that the shortest of the last ones took.

| the operation takes | polls, the first time | polls, from the second on | allowed | for the host itself |
|---------------------|-----------------------|---------------------------|---------|---------------------|
| 5 s                 | 18                    | 3                         | 46      | 37                  |
| 60 s                | 45                    | 29                        | 60      | 48                  |
| 15 min              | 254                   | 239                       | 270     | 216                 |

Operations that follow each other at once may still find the budget spent; the fewer polls are left of it, the longer
each wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from podidentity_azure.errors import Fault, retry_after_s
from podidentity_core.errors import Throttled, TransientError
from podidentity_core.ports import Clock

OPERATION_LIMIT_S = 900.0
"""How long an operation is followed. Source: go-autorest autorest/azure/async.go, by way of mic.go."""

POLL_FLOOR_S = 0.25
POLL_LAG = 0.1
POLL_CAP_S = 4.0
RESOURCE_POLL_CAP_S = 5.0
"""The last wait of either column: what the budget grants in the long run, one poll in 4 s and in 5 s."""

FIRST_POLL_SHARE = 0.85
"""How much of the usual time the first poll waits for."""

FIRST_POLL_CAP_S = 4.5
"""The longest first wait: Azure's operations take 5 s and more, and the end of one of 5 s shall not go unnoticed."""

LONGEST_PAUSE_S = 60.0
"""A longer one that is asked for ends the following: whoever wants to know the end reads the host after it."""

TOLERATED_FAILURES = 3
"""How many polls may fail one after the other. Source: go-autorest's retry count for polls."""


@dataclass(frozen=True, slots=True, repr=False)
class Answer:
    """An answer of Resource Manager. Header names are in lower case. The body may be long, and headers may hold a
    signed address: neither is shown.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Answer({self.status})"


def poll_delay_s(elapsed_s: float, *, cap_s: float = POLL_CAP_S, polls_left: float) -> float:
    """Return how long to wait before the next poll of an operation that began *elapsed_s* ago."""
    return min(cap_s, max(POLL_FLOOR_S, elapsed_s * POLL_LAG, cap_s / (polls_left + 1)))


class UsualTime:
    """How long operations of one kind take: what the shortest of the last few took."""

    def __init__(self) -> None:
        self._last_s: deque[float] = deque(maxlen=5)

    def note(self, seconds: float) -> None:
        """Take in that an operation took *seconds*, as far as could be seen."""
        self._last_s.append(seconds)

    def first_poll_s(self) -> float:
        """When to ask for the first time: before the end is likely, so that shorter ones are found out about."""
        return min(FIRST_POLL_SHARE * min(self._last_s, default=0.0), FIRST_POLL_CAP_S)


def in_progress(body: Mapping[str, Any]) -> bool:
    """Whether *body*, of a resource, speaks of a change that has not ended."""
    return state_of(body) not in _ENDED


def state_of(body: Mapping[str, Any]) -> str:
    """Return the state of the resource in *body*, in lower case; one that names none is at rest."""
    return str((body.get("properties") or {}).get("provisioningState") or "Succeeded").lower()


_ENDED = ("succeeded", "failed", "canceled")


Ask = Callable[[str], Awaitable[Answer]]
"""Gets an address of Resource Manager. Raises `TransientError` only; any status is an answer."""


class Follower:
    """Follows one operation that changes the resource at *resource_url*.

    *left* says how many polls of an address the budget still has. *first_poll_s* is how long the first one waits.
    """

    def __init__(
        self, ask: Ask, left: Callable[[str], float], clock: Clock, resource_url: str, *, first_poll_s: float = 0.0
    ) -> None:
        self._ask = ask
        self._left = left
        self._clock = clock
        self._resource_url = resource_url
        self._first_poll_s = first_poll_s
        self._asked_s: float | None = None  # the wait that Azure, or our budget, has asked for
        self._failures = 0

    async def follow(self, started: Answer) -> tuple[Fault | None, Answer | None]:
        """Wait for the end of what *started* began: why it failed, and the resource if that is what was asked.

        Raises:
            Throttled: when the budget is spent for longer than a minute.
            TransientError: when it cannot be followed: polls keep failing, or it takes longer than 15 minutes.
        """
        operation_url = started.headers.get("azure-asyncoperation", "")
        url = operation_url or started.headers.get("location") or self._resource_url
        if url == self._resource_url and not in_progress(started.body):
            return None, None
        self._asked_s = retry_after_s(started.headers)
        begun_s, wait_s = self._clock.monotonic_s(), self._first_poll_s
        while (elapsed_s := self._clock.monotonic_s() - begun_s) < OPERATION_LIMIT_S:
            wait_s = max(wait_s, self._wait_s(elapsed_s, url))
            await self._clock.sleep(min(wait_s, OPERATION_LIMIT_S - elapsed_s))
            answer, wait_s = await self._poll(url), 0.0
            if answer is None:
                continue
            if answer.status in (401, 403, 404, 410) and url != self._resource_url:
                # The operation lies outside the resource: the right to change a host is no right to follow the change.
                url = self._resource_url
                continue
            state = _operation_state(answer.body) if url == operation_url else state_of(answer.body)
            if _has_ended(answer, state):
                return _fault(answer, state), answer if url == self._resource_url else None
        raise TransientError(f"the operation did not end within {OPERATION_LIMIT_S:.0f} s")

    def _wait_s(self, elapsed_s: float, url: str) -> float:
        if self._asked_s is not None:
            return max(self._asked_s, POLL_FLOOR_S)
        cap_s = RESOURCE_POLL_CAP_S if url == self._resource_url else POLL_CAP_S
        return poll_delay_s(elapsed_s, cap_s=cap_s, polls_left=self._left(url))

    async def _poll(self, url: str) -> Answer | None:
        """Ask once; None when nobody answered. Being throttled is no failure: the wait obeys it."""
        answer = None
        try:
            answer = await self._ask(url)
            self._asked_s = retry_after_s(answer.headers)
        except Throttled as error:
            if error.retry_after_s > LONGEST_PAUSE_S:
                raise
            self._asked_s = error.retry_after_s
            return None
        except TransientError:
            pass
        if answer is not None and answer.status < 500 and answer.status != 408:
            self._failures = 0
            return answer
        self._failures += 1
        if self._failures > TOLERATED_FAILURES:
            raise TransientError(f"the operation cannot be followed: {self._failures} polls failed")
        return answer


def _operation_state(body: Mapping[str, Any]) -> str:
    """An operation names its state; whatever does not is not its end."""
    return str(body.get("status") or "").lower()


def _has_ended(answer: Answer, state: str) -> bool:
    """Whether there is nothing to wait for: a final state, or a refusal of the poll itself."""
    if answer.status == 429:
        return (retry_after_s(answer.headers) or 0.0) > LONGEST_PAUSE_S
    if answer.status >= 400:
        return answer.status < 500 and answer.status != 408
    return answer.status != 202 and state in _ENDED


def _fault(answer: Answer, state: str) -> Fault | None:
    if answer.status >= 400:
        words = f"the poll was answered {answer.status}"
        return Fault.of_body(
            answer.body, status=answer.status, retry_after_s=retry_after_s(answer.headers), default=words
        )
    return None if state == "succeeded" else Fault.of_body(answer.body, default=f"the operation ended as {state}")
