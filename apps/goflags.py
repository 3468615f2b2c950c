"""Command lines in the syntax of the original's two programs, read from a table of flags.

MIC parses with Go's `flag` (one dash or two, the first other argument ends the flags), NMI with pflag (two dashes,
flags and arguments mixed, short flags of one letter). Source: aad-pod-identity cmd/mic/main.go, cmd/nmi/main.go.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isfinite
from typing import Literal

from podidentity_core.errors import ConfigurationError

Kind = Literal["string", "bool", "int", "float", "duration"]
Value = str | bool | int | float


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag; a duration's default is in seconds.

    One without *effect* is there for old command lines only; *help* says why.
    """

    name: str
    kind: Kind
    default: Value
    help: str
    effect: bool = True


@dataclass(frozen=True, slots=True)
class Dialect:
    """What differs between Go's `flag` and pflag. *mixed*: flags may follow other arguments."""

    one_dash_names: bool
    mixed: bool
    help_exit_code: int


GO = Dialect(one_dash_names=True, mixed=False, help_exit_code=0)
PFLAG = Dialect(one_dash_names=False, mixed=True, help_exit_code=2)


class UsageError(ConfigurationError):
    """The command line is wrong. The message names the flag, the value and the remedy; *usage* lists all flags."""

    def __init__(self, message: str, usage: str = "") -> None:
        super().__init__(message)
        self.usage = usage


class TextRequested(Exception):
    """No error: the command line asks for a text, such as the help, and not for a run."""

    def __init__(self, text: str, *, exit_code: int = 0, on_stderr: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.exit_code = exit_code
        self.on_stderr = on_stderr


def answer(outcome: UsageError | TextRequested) -> int:
    """Print the text asked for, or the usage and what is wrong; return the exit code."""
    if isinstance(outcome, TextRequested):
        print(outcome.text, file=sys.stderr if outcome.on_stderr else sys.stdout)
        return outcome.exit_code
    print(f"{outcome.usage}\n\n{outcome}".lstrip(), file=sys.stderr)
    return 2


@dataclass(frozen=True, slots=True)
class Arguments:
    """A parsed command line: every flag has a value, given or default. The readers raise UsageError."""

    flags: Mapping[str, Flag]
    values: Mapping[str, Value]
    written: Mapping[str, str]
    """The given values as they were typed, for messages."""
    rest: tuple[str, ...]
    """What is not a flag."""
    usage: str

    def text(self, name: str) -> str:
        """Return the value of a string flag."""
        return str(self.values[name])

    def switch(self, name: str) -> bool:
        """Return the value of a boolean flag."""
        return self.values[name] is True

    def whole(self, name: str, *, at_least: int = 0) -> int:
        """Return the value of an int flag that must not be less than *at_least*."""
        value = int(self.values[name])
        if value < at_least:
            raise self.refused(name, f"must be {at_least} or more")
        return value

    def number(self, name: str, *, or_zero: bool = True) -> float:
        """Return a float, or a duration in seconds, that is positive or, with *or_zero*, 0."""
        value = float(self.values[name])
        if not isfinite(value) or value < 0 or (value == 0 and not or_zero):
            raise self.refused(name, "must be 0 or more" if or_zero else "must be more than 0")
        return value

    def port(self, name: str, *, at_least: int = 0) -> int:
        """Return the port that a string flag names; 0 stands for a free one."""
        text = self.text(name)
        if re.fullmatch(r"[0-9]{1,5}", text) is None or not at_least <= int(text) <= 65535:
            raise self.refused(name, f"must be a port, such as --{name}={self.flags[name].default}")
        return int(text)

    def nonempty(self, name: str) -> str:
        """Return the value of a string flag that must not be empty."""
        if not (text := self.text(name)):
            raise self.refused(name, f"must not be empty; the default is {self.flags[name].default}")
        return text

    def choice(self, name: str, *choices: str) -> str:
        """Return the value of a string flag that must be one of *choices*."""
        if (text := self.text(name)) not in choices:
            raise self.refused(name, f"must be {' or '.join(choices)}")
        return text

    def refuse_shared_ports(self, *names: str) -> None:
        """Raise UsageError if two of these flags name one port."""
        for other, name in combinations(names, 2):
            if self.port(name) == self.port(other) != 0:
                raise self.refused(name, f"--{other} has this port too: choose another for one of them")

    def refused(self, name: str, why: str) -> UsageError:
        """Return the error for a value that cannot be used."""
        return UsageError(f"--{name}={self._shown(name)}: {why}", self.usage)

    def without_effect(self) -> list[str]:
        """Return a warning for each thing on the command line that changes nothing."""
        changed = [flag for name, flag in self.flags.items() if self.values[name] != flag.default]
        warnings = [
            f"--{flag.name}={self._shown(flag.name)} has no effect: {flag.help}" for flag in changed if not flag.effect
        ]
        return warnings + ([f"not a flag, ignored: {' '.join(self.rest)}"] if self.rest else [])

    def _shown(self, name: str) -> str:
        return self.written.get(name, _written(self.flags[name].default))


def parse(program: str, flags: Sequence[Flag], argv: Sequence[str], dialect: Dialect) -> Arguments:
    """Read *argv*, without the program's name; the last of several values counts.

    Raises UsageError for an unknown flag or a value that is not of the flag's kind, TextRequested for `--help`.
    """
    table = {flag.name: flag for flag in flags}
    explained = usage(program, flags)
    try:
        written, rest = _read(table, argv, dialect)
        values = {flag.name: flag.default for flag in flags}
        values |= {name: _converted(table[name], text) for name, text in written.items()}
    except UsageError as error:
        error.usage = explained
        raise
    except _Help:
        raise TextRequested(explained, exit_code=dialect.help_exit_code, on_stderr=True) from None
    return Arguments(table, values, written, tuple(rest), explained)


def _effect_note(flag: Flag) -> str:
    return "" if flag.effect else " (no effect)"


def usage(program: str, flags: Sequence[Flag]) -> str:
    """Return the list of all flags, sorted by name."""
    lines = [f"Usage of {program}:"]
    for flag in sorted(flags, key=lambda flag: flag.name.lower()):
        kind = "" if flag.kind == "bool" else f" {flag.kind}"
        lines.append(f"  --{flag.name}{kind}\n        {flag.help}{_effect_note(flag)}{_default_note(flag)}")
    return "\n".join(lines)


def _written(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _default_note(flag: Flag) -> str:
    shown = f"{flag.default:g}s" if flag.kind == "duration" else _written(flag.default)
    return f" (default {shown})" if flag.default else ""


class _Help(Exception):
    """No error: the help is asked for."""


def _read(table: Mapping[str, Flag], argv: Sequence[str], dialect: Dialect) -> tuple[dict[str, str], list[str]]:
    written: dict[str, str] = {}
    rest: list[str] = []
    words = deque(argv)
    while words:
        word = words.popleft()
        if word == "--":
            return written, [*rest, *words]
        if not word.startswith("-") or word == "-":
            rest.append(word)
            if not dialect.mixed:
                return written, [*rest, *words]
            continue
        name, value = _split(word, dialect)
        flag = _known(table, name, word, dialect)
        if value is None and flag.kind != "bool" and not words:
            raise UsageError(f"{word}: a value is missing: write --{name}=VALUE")
        if value is None:  # a boolean never takes the next word: `--flag false` is true, and `false` an argument
            value = "true" if flag.kind == "bool" else words.popleft()
        written[name] = value
    return written, rest


def _split(word: str, dialect: Dialect) -> tuple[str, str | None]:
    """Return the name and, if it is in the same word, the value."""
    if word.startswith("--") or dialect.one_dash_names:
        body = word.removeprefix("-").removeprefix("-")
        if body.startswith(("-", "=")) or not body:
            raise UsageError(f"{word}: not a flag: write --NAME=VALUE; --help lists the names")
        name, equals, value = body.partition("=")
        return name, value if equals else None
    value = word[2:]
    return word[1], value.removeprefix("=") if value else None  # -v=5 and -v5


def _known(table: Mapping[str, Flag], name: str, word: str, dialect: Dialect) -> Flag:
    if name in table:
        return table[name]
    if name in ("h", "help"):
        raise _Help
    long_name = word.lstrip("-").partition("=")[0]
    if not dialect.one_dash_names and not word.startswith("--") and long_name in table:
        raise UsageError(f"unknown flag {word}: names of several letters take two dashes: write -{word}")
    close = difflib.get_close_matches(long_name, table, n=1)
    hint = f"did you mean --{close[0]}? " if close else ""
    raise UsageError(f"unknown flag {word}: {hint}--help lists all flags")


def _converted(flag: Flag, text: str) -> Value:
    convert, expected = _KINDS[flag.kind]
    try:
        return convert(text)
    except ValueError:
        raise UsageError(f"--{flag.name}={text}: must be {expected}") from None


def _boolean(text: str) -> bool:
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise ValueError


def _whole(text: str) -> int:
    """Read an integer as Go writes it: 20, -1, 0x14, 0b101, 0o24 or 024."""
    value = int(text, 8 if re.fullmatch(r"[+-]?0[0-7_]+", text) else 0)
    if text != text.strip() or not -(2**63) <= value < 2**63:
        raise ValueError
    return value


def _real(text: str) -> float:
    if re.search(r"[\s_]", text):  # Python allows more than Go
        raise ValueError
    return float(text)


_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_LONGEST_S = 2**63 / 1e9  # Go counts nanoseconds in 64 bits


def seconds(text: str) -> float:
    """Read a duration as Go writes it, such as `1m30s`, `500ms`, `1.5h` or `0`. Raises ValueError for others."""
    body = text.removeprefix("-") if text.startswith("-") else text.removeprefix("+")
    parts = _PART.findall(body)
    if body != "0" and (not parts or "".join(number + unit for number, unit in parts) != body):
        raise ValueError(f"not a duration: {text!r}")
    total = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    if total >= _LONGEST_S:
        raise ValueError(f"too long: {text!r}")
    return -total if text.startswith("-") else total


_KINDS: Mapping[Kind, tuple[Callable[[str], Value], str]] = {
    "string": (str, "a text"),
    "bool": (_boolean, "true or false"),
    "int": (_whole, "a whole number, such as 20"),
    "float": (_real, "a number, such as 2.5"),
    "duration": (seconds, "a duration with a unit, such as 90s, 1m30s or 500ms"),
}
