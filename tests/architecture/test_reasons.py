"""The table of reasons: codes are stable and unique, and whoever gives a reason fills in its whole sentence."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

import pytest

from podidentity_core.reasons import Explanation, Reason, because

PROJECT = Path(__file__).parents[2]
PACKAGES = ("podidentity_core", "podidentity_k8s", "podidentity_azure", "apps")


def test_every_code_is_used_once() -> None:
    codes = [reason.code for reason in Reason.__members__.values()]

    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("reason", Reason)
def test_a_reason_has_a_code_a_sentence_and_a_remedy(reason: Reason) -> None:
    assert re.fullmatch(r"PI[1-5]\d\d", reason.code)
    assert reason.sentence.strip()
    assert reason.remedy.strip()


@pytest.mark.parametrize("reason", Reason)
def test_the_message_names_every_fact(reason: Reason) -> None:
    facts = {name: f"<{name}>" for name in _places(reason)}

    explanation = because(reason, **facts)

    assert all(fact in explanation.message for fact in facts.values())
    assert str(explanation) == f"{explanation.message} ({reason.code}: {reason.remedy})"


def test_equal_explanations_are_equal_values() -> None:
    one = because(Reason.NO_BINDING, pod="a/b", label="c")
    other = because(Reason.NO_BINDING, label="c", pod="a/b")

    assert one == other == Explanation(Reason.NO_BINDING, (("label", "c"), ("pod", "a/b")))


def _places(reason: Reason) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(reason.sentence) if name is not None}


def _reasons_given(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and what is wrong with it for each `because(...)` that does not fill its sentence exactly."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "because":
            reason = node.args[0]
            if not isinstance(reason, ast.Attribute) or reason.attr not in Reason.__members__:
                yield node.lineno, "the reason is not a member of Reason by name"
            elif (given := {word.arg for word in node.keywords}) != (wanted := _places(Reason[reason.attr])):
                yield node.lineno, f"{reason.attr} wants {sorted(wanted)}, got {sorted(map(str, given))}"


def test_every_reason_is_given_with_exactly_its_facts() -> None:
    wrong = [
        f"{path.relative_to(PROJECT)}:{line} {problem}"
        for package in PACKAGES
        for path in sorted((PROJECT / package).rglob("*.py"))
        for line, problem in _reasons_given(path.read_text())
    ]

    assert wrong == []


@pytest.mark.parametrize(
    "source",
    [
        "because(Reason.NO_BINDING, pod=x)",
        "because(Reason.NO_BINDING, pod=x, label=y, extra=z)",
        "because(Reason.NO_BINDING, **facts)",
        "because(Reason.NOT_A_REASON)",
        "because(reason)",
    ],
)
def test_a_reason_that_lacks_a_fact_is_found(source: str) -> None:
    assert len(list(_reasons_given(source))) == 1
