"""Label and field selectors, as the query of a list or watch carries them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from apps.sandbox.resources import Resource
from apps.sandbox.status import bad_request

Test = Callable[[Mapping[str, str]], bool]
_SET = re.compile(r"^\s*(\S+)\s+(in|notin)\s+\(([^)]*)\)\s*$")
_EQUALITY = re.compile(r"^\s*([^=!\s]+)\s*(!=|==|=)\s*(\S*)\s*$")
_EXISTS = re.compile(r"^\s*(!?)\s*([^=!\s,()]+)\s*$")
_COMMAS = re.compile(r",(?![^(]*\))")  # commas outside parentheses


class Selectable(Protocol):
    """What a selector looks at."""

    @property
    def labels(self) -> Mapping[str, str]:
        """The object's labels."""
        ...

    @property
    def fields(self) -> Mapping[str, str]:
        """The object's selectable fields."""
        ...


@dataclass(frozen=True, slots=True)
class Selector:
    """Which objects a list or watch is about; an empty one matches all."""

    labels: tuple[Test, ...] = ()
    fields: tuple[Test, ...] = ()

    def matches(self, candidate: Selectable) -> bool:
        """Return whether every condition holds."""
        return all(test(candidate.labels) for test in self.labels) and all(
            test(candidate.fields) for test in self.fields
        )


EVERYTHING = Selector()


def selector(resource: Resource, labels: str = "", fields: str = "") -> Selector:
    """Parse both selectors of a request. Raises StatusError (400)."""
    if not labels and not fields:
        return EVERYTHING
    wanted = tuple(_label_test(part) for part in _COMMAS.split(labels) if part.strip())
    return Selector(wanted, tuple(_field_test(resource, part, labels, fields) for part in fields.split(",") if part))


def _label_test(text: str) -> Test:
    if found := _SET.match(text):
        key, operator, listed = found.groups()
        values = {value.strip() for value in listed.split(",")}
        return _one_of(key, values) if operator == "in" else _none_of(key, values)
    if found := _EQUALITY.match(text):
        key, operator, value = found.groups()
        return _none_of(key, {value}) if operator == "!=" else _one_of(key, {value})
    if found := _EXISTS.match(text):
        absent, key = found.groups()
        return (lambda held: key not in held) if absent else (lambda held: key in held)
    raise bad_request(f"unable to parse requirement: {text!r}")


def _one_of(key: str, values: set[str]) -> Test:
    return lambda held: held.get(key) in values


def _none_of(key: str, values: set[str]) -> Test:
    return lambda held: held.get(key) not in values


def _field_test(resource: Resource, text: str, labels: str, fields: str) -> Test:
    found = _EQUALITY.match(text)
    if not found:
        raise bad_request(f"invalid selector: '{text}'; can't understand '{text}'")
    key, operator, value = found.groups()
    if key not in ("metadata.name", "metadata.namespace", *resource.fields):
        where = f'label selector "{labels}", field selector "{fields}"'
        raise bad_request(f'Unable to find "{resource.key}" that match {where}: field label not supported: {key}')
    if operator == "!=":
        return lambda held: held.get(key, "") != value
    return lambda held: held.get(key, "") == value
