"""Command lines as Go's flag package and pflag read them."""

from collections.abc import Callable

import pytest

from apps.goflags import (
    GO,
    PFLAG,
    Arguments,
    Dialect,
    Flag,
    TextRequested,
    UsageError,
    Value,
    answer,
    parse,
    seconds,
)

FLAGS = (
    Flag("node", "string", "n0", "a node"),
    Flag("Deep", "bool", False, "a switch"),
    Flag("count", "int", 20, "a number"),
    Flag("qps", "float", 5.0, "a rate"),
    Flag("wait", "duration", 60.0, "a time"),
    Flag("port", "string", "80", "a port"),
    Flag("port2", "string", "0", "another port"),
    Flag("v", "int", 0, "a level"),
    Flag("old", "string", "x", "was never any use", effect=False),
)


def read(line: str, dialect: Dialect = PFLAG) -> Arguments:
    return parse("prog", FLAGS, line.split(), dialect)


BOTH = [
    ("", "node", "n0"),
    ("--node=a", "node", "a"),
    ("--node a", "node", "a"),
    ("--node=", "node", ""),
    ("--node=a=b", "node", "a=b"),
    ("--node -x", "node", "-x"),
    ("--node=a --node=b", "node", "b"),
    ("--Deep", "Deep", True),
    ("--Deep false", "Deep", True),
    ("--Deep=false --node=a", "Deep", False),
    ("--v=5", "v", 5),
    ("--v 5", "v", 5),
    ("-v=5", "v", 5),
    ("-v 5", "v", 5),
    ("--count=-3", "count", -3),
    ("--count=+3", "count", 3),
    ("--count=0x14", "count", 20),
    ("--count=0b11", "count", 3),
    ("--count=0o17", "count", 15),
    ("--count=017", "count", 15),
    ("--count=1_000", "count", 1000),
    ("--qps=2.5", "qps", 2.5),
    ("--qps=1e3", "qps", 1000.0),
    ("--wait=1m30s", "wait", 90.0),
    ("-- --node=a", "node", "n0"),
]
ONLY_GO = [
    ("-node=a", "node", "a"),
    ("-node a", "node", "a"),
    ("-Deep", "Deep", True),
    ("-Deep=0", "Deep", False),
    ("word --node=a", "node", "n0"),
    ("--Deep false --node=a", "node", "n0"),
    ("- --node=a", "node", "n0"),
]
ONLY_PFLAG = [
    ("-v5", "v", 5),
    ("word --node=a", "node", "a"),
    ("--Deep false --node=a", "node", "a"),
    ("- --node=a", "node", "a"),
]
SPELLINGS = [
    *((GO, *case) for case in BOTH + ONLY_GO),
    *((PFLAG, *case) for case in BOTH + ONLY_PFLAG),
]


@pytest.mark.parametrize(("dialect", "line", "name", "value"), SPELLINGS)
def test_each_spelling_gives_its_value(dialect: Dialect, line: str, name: str, value: Value) -> None:
    values = read(line, dialect).values

    assert values[name] == value
    assert type(values[name]) is type(value)


@pytest.mark.parametrize("dialect", [GO, PFLAG], ids=["go", "pflag"])
@pytest.mark.parametrize(
    ("words", "value"), [("1 t T true TRUE True", True), ("0 f F false FALSE False", False)], ids=["yes", "no"]
)
def test_booleans_take_gos_words(dialect: Dialect, words: str, value: bool) -> None:
    assert [read(f"--Deep={word}", dialect).switch("Deep") for word in words.split()] == [value] * 6


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("3600s", 3600),
        ("1h", 3600),
        ("1m30s", 90),
        ("1h2m3s", 3723),
        ("500ms", 0.5),
        ("1.5h", 5400),
        (".5s", 0.5),
        ("2.s", 2),
        ("250us", 0.00025),
        ("250µs", 0.00025),
        ("1ns", 1e-9),
        ("-1m", -60),
        ("+1m", 60),
    ],
)
def test_durations_come_in_seconds(text: str, value: float) -> None:
    assert seconds(text) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("text", ["", "60", "s", ".s", "1 s", "1d", "1S", "1m 30s", "1m30", "--1s", "300000000h"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a duration|too long"):
        seconds(text)


BAD = [
    (GO, "--xyz=1", "unknown flag --xyz=1: --help lists all flags"),
    (GO, "--nod=a", "unknown flag --nod=a: did you mean --node? --help lists all flags"),
    (GO, "--NODE=a", "unknown flag --NODE=a: "),
    (GO, "--deep", "did you mean --Deep?"),
    (GO, "-v5", "unknown flag -v5: "),
    (GO, "---node=a", "---node=a: not a flag: write --NAME=VALUE"),
    (GO, "-=a", "-=a: not a flag: write --NAME=VALUE"),
    (PFLAG, "--xyz=1", "unknown flag --xyz=1: --help lists all flags"),
    (PFLAG, "--=a", "--=a: not a flag: write --NAME=VALUE"),
    (PFLAG, "-node=x", "unknown flag -node=x: names of several letters take two dashes: write --node=x"),
    (PFLAG, "-x", "unknown flag -x: --help lists all flags"),
    *(
        (dialect, line, message)
        for dialect in (GO, PFLAG)
        for line, message in [
            ("--node", "--node: a value is missing: write --node=VALUE"),
            ("-v", "-v: a value is missing: write --v=VALUE"),
            ("--Deep=yes", "--Deep=yes: must be true or false"),
            ("--Deep=", "--Deep=: must be true or false"),
            ("--count=1.5", "--count=1.5: must be a whole number, such as 20"),
            ("--count=", "--count=: must be a whole number"),
            ("--count=08", "--count=08: must be a whole number"),
            ("--count=9223372036854775808", "must be a whole number"),
            ("--qps=1_0", "--qps=1_0: must be a number, such as 2.5"),
            ("--qps=x", "--qps=x: must be a number, such as 2.5"),
            ("--wait=60", "--wait=60: must be a duration with a unit, such as 90s, 1m30s or 500ms"),
        ]
    ),
]


@pytest.mark.parametrize(("dialect", "line", "message"), BAD)
def test_an_error_names_flag_value_and_remedy(dialect: Dialect, line: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(line, dialect)

    assert message in str(caught.value)
    assert caught.value.usage.startswith("Usage of prog:")


@pytest.mark.parametrize(
    ("dialect", "word", "code"),
    [(GO, "-h", 0), (GO, "-help", 0), (GO, "--help", 0), (PFLAG, "-h", 2), (PFLAG, "--help", 2)],
)
def test_help_is_the_usage_with_the_dialects_exit_code(
    dialect: Dialect, word: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TextRequested) as caught:
        read(f"--node=a {word}", dialect)

    assert answer(caught.value) == code
    assert capsys.readouterr().err.startswith("Usage of prog:\n  --count int\n        a number (default 20)\n")


def test_the_usage_says_what_has_no_effect() -> None:
    usage = read("").usage

    assert "  --Deep\n        a switch\n" in usage
    assert "  --wait duration\n        a time (default 60s)" in usage
    assert "  --old string\n        was never any use (no effect) (default x)\n" in usage


def test_a_usage_error_is_printed_below_the_usage_with_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError) as caught:
        read("--xyz")

    assert answer(caught.value) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("Usage of prog:")
    assert printed.err.endswith("\n\nunknown flag --xyz: --help lists all flags\n")


def test_a_text_that_is_no_help_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(TextRequested("v1")) == 0
    assert capsys.readouterr() == ("v1\n", "")


REFUSED = [
    (lambda a: a.whole("count", at_least=1), "--count=0", "--count=0: must be 1 or more"),
    (lambda a: a.whole("count"), "--count=-1", "--count=-1: must be 0 or more"),
    (lambda a: a.number("wait"), "--wait=-1m", "--wait=-1m: must be 0 or more"),
    (lambda a: a.number("wait", or_zero=False), "--wait=0s", "--wait=0s: must be more than 0"),
    (lambda a: a.number("qps"), "--qps=nan", "--qps=nan: must be 0 or more"),
    (lambda a: a.number("qps"), "--qps=inf", "--qps=inf: must be 0 or more"),
    (lambda a: a.port("port"), "--port=65536", "--port=65536: must be a port, such as --port=80"),
    (lambda a: a.port("port"), "--port=http", "--port=http: must be a port"),
    (lambda a: a.port("port"), "--port=-1", "--port=-1: must be a port"),
    (lambda a: a.port("port"), "--port=", "--port=: must be a port"),
    (lambda a: a.port("port", at_least=1), "--port=0", "--port=0: must be a port"),
    (lambda a: a.choice("node", "a", "b"), "", "--node=n0: must be a or b"),
    (lambda a: a.nonempty("node"), "--node=", "--node=: must not be empty; the default is n0"),
    (lambda a: a.refuse_shared_ports("port", "port2"), "--port2=80", "--port2=80: --port has this port too"),
]


@pytest.mark.parametrize(("reader", "line", "message"), REFUSED, ids=[case[2] for case in REFUSED])
def test_a_value_out_of_its_range_is_refused(reader: Callable[[Arguments], object], line: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        reader(read(line))

    assert str(caught.value).startswith(message)
    assert caught.value.usage.startswith("Usage of prog:")


def test_values_in_their_range_are_given_as_they_are() -> None:
    given = read("--count=1 --wait=0 --qps=0.5 --port=65535 --port2=0 --node=b")

    assert (given.whole("count", at_least=1), given.number("wait"), given.number("qps")) == (1, 0.0, 0.5)
    assert (given.port("port"), given.port("port2")) == (65535, 0)
    assert (given.choice("node", "a", "b"), given.nonempty("node")) == ("b", "b")
    given.refuse_shared_ports("port", "port2")
    read("--port=0 --port2=0").refuse_shared_ports("port", "port2")


@pytest.mark.parametrize(
    ("dialect", "line", "warnings"),
    [
        (PFLAG, "--node=a --old=x", []),
        (PFLAG, "--node=a --old=y", ["--old=y has no effect: was never any use"]),
        (PFLAG, "a --node=b c", ["not a flag, ignored: a c"]),
        (GO, "--Deep false --node=b", ["not a flag, ignored: false --node=b"]),
    ],
)  # fmt: skip
def test_what_changes_nothing_is_told(dialect: Dialect, line: str, warnings: list[str]) -> None:
    assert read(line, dialect).without_effect() == warnings
