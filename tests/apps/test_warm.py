"""Answers of the same second: kept while they would come out the same, and no longer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from apps.nmi.answers import Answer
from apps.nmi.audit import Record
from apps.nmi.warm import WarmAnswers
from podidentity_core.testing.clock import FakeClock

ASKED = ("10.0.0.7", b"/metadata/identity/oauth2/token", b"resource=x")
ANSWER = Answer(200, b"{}")
RECORD = Record("GET", "/", "10.0.0.7")


class Kept:
    """Warm answers of a service whose version the test sets."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.service = SimpleNamespace(version=1)
        self.warm = WarmAnswers(cast("Any", self.service), self.clock)
        self.warm.get(ASKED)
        self.warm.put(ASKED, ANSWER, RECORD)


@pytest.fixture
def kept() -> Kept:
    return Kept()


def test_an_answer_is_whole_and_says_its_length(kept: Kept) -> None:
    warm = kept.warm.get(ASKED)

    assert warm is not None
    assert (warm.start["status"], dict(warm.start["headers"])[b"content-length"]) == (200, b"2")
    assert (warm.body["body"], warm.record) == (b"{}", RECORD)


@pytest.mark.parametrize(
    "asked",
    [("10.0.0.8", *ASKED[1:]), (ASKED[0], b"/other", ASKED[2]), (*ASKED[:2], b"resource=y")],
    ids=["address", "path", "query"],
)
def test_another_request_has_another_answer(kept: Kept, asked: tuple[str, bytes, bytes]) -> None:
    assert kept.warm.get(asked) is None


def test_any_change_ends_it(kept: Kept) -> None:
    kept.service.version += 1

    assert kept.warm.get(ASKED) is None


async def test_the_end_of_the_second_ends_it(kept: Kept) -> None:
    await kept.clock.advance(0.5)
    before = kept.warm.get(ASKED)
    await kept.clock.advance(0.5)

    assert before is not None
    assert kept.warm.get(ASKED) is None


def test_a_pod_that_spells_its_request_in_many_ways_takes_no_more_memory(kept: Kept) -> None:
    for number in range(5000):
        kept.warm.put((*ASKED[:2], b"x=%d" % number), ANSWER, RECORD)

    assert len(kept.warm._kept) == 1024
    assert kept.warm.get(ASKED) is not None
