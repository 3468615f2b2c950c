"""Answers that are good for the rest of the second: pods that ask over and over cost little more than the sockets.

An answer is kept only while it would come out the same: until anything changes in what is known of the cluster or of
tokens, or the second is over, since `expires_in` counts in seconds. Who may have it is thus decided no less strictly
than for each request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from apps.limited_http import answer_head
from apps.nmi.answers import Answer, messages
from apps.nmi.audit import Record
from podidentity_core.ports import Clock
from podidentity_core.services.tokens import TokenService

_MOST_KEPT = 1024
"""A pod can spell one request in any number of ways; what goes beyond is answered as if it were not asked again."""

Asked = tuple[str, bytes, bytes]
"""What an answer depends on, besides headers: the peer's address, path and query as they were sent."""


@dataclass(frozen=True, slots=True, repr=False)
class Warm:
    """The messages that make an answer, its head as bytes, and what to record of it. It holds a token: not shown."""

    start: dict[str, Any]
    body: dict[str, Any]
    head: bytes
    record: Record


class WarmAnswers:
    """Answers to GET requests for tokens."""

    def __init__(self, service: TokenService, clock: Clock) -> None:
        self._service = service
        self._clock = clock
        self._kept: dict[Asked, Warm] = {}
        self._version = -1
        self._second = -1

    def get(self, asked: Asked) -> Warm | None:
        """Return the answer that is still good."""
        version, second = self._service.version, int(self._clock.wall_s())
        if version != self._version or second != self._second:
            self._version, self._second = version, second
            self._kept.clear()
            return None
        return self._kept.get(asked)

    def put(self, asked: Asked, answer: Answer, record: Record) -> None:
        """Keep an answer that was made after `get` gave none, and without a wait in between."""
        if len(self._kept) < _MOST_KEPT:
            start, body = messages(answer)
            self._kept[asked] = Warm(start, body, answer_head(start), record)
