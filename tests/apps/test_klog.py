"""Log lines in klog's two shapes."""

import asyncio
import io
import json
import logging
import os
import re
import time
import warnings
from collections.abc import Iterator

import pytest

from apps import klog
from apps.goflags import PFLAG, parse
from apps.klog import LogOptions

LOG = logging.getLogger("apps.mic.loop")


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    names = [None, *klog.OWN_LOGGERS]
    handlers, levels = root.handlers[:], [logging.getLogger(name).level for name in names]
    yield
    root.handlers[:] = handlers
    for name, level in zip(names, levels, strict=True):
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(False)


def started(**options: object) -> io.StringIO:
    stream = io.StringIO()
    klog.setup(LogOptions(**options), stream)
    return stream


def record(level: int, message: str, *, directory: str = "/app/apps/mic") -> logging.LogRecord:
    made = logging.LogRecord("apps.mic.loop", level, f"{directory}/loop.py", 42, message, None, None)
    made.created = time.mktime((2026, 3, 4, 5, 6, 7, 0, 0, -1)) + 0.25
    made.process = 123
    return made


@pytest.mark.parametrize(
    ("level", "letter"),
    [
        (klog.verbose(6), "I"),
        (logging.INFO, "I"),
        (logging.WARNING, "W"),
        (logging.ERROR, "E"),
        (logging.CRITICAL, "F"),
    ],
)
def test_a_text_line_is_klogs_byte_by_byte(level: int, letter: str) -> None:
    line = klog.TextFormatter(LogOptions()).format(record(level, "no bindings"))

    assert line == f"{letter}0304 05:06:07.250000     123 loop.py:42] no bindings"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (LogOptions(with_directory=True), "I0304 05:06:07.250000     123 mic/loop.py:42] hello"),
        (LogOptions(with_headers=False), "hello"),
        (LogOptions(with_headers=False, with_directory=True), "hello"),
    ],
)
def test_headers_follow_the_flags(options: LogOptions, line: str) -> None:
    assert klog.TextFormatter(options).format(record(logging.INFO, "hello")) == line


def test_a_line_says_its_own_process_and_place() -> None:
    stream = started()

    LOG.error("failed to %s %s", "get", "pod")

    assert re.fullmatch(
        rf"E\d{{4}} \d\d:\d\d:\d\d\.\d{{6}} {os.getpid():7d} test_klog\.py:\d+\] failed to get pod\n",
        stream.getvalue(),
    )


def test_a_json_line_has_the_originals_keys_and_a_level() -> None:
    made = record(logging.WARNING, "no bindings")

    line = klog.JsonFormatter(LogOptions(as_json=True)).format(made)

    assert json.loads(line) == {
        "ts": made.created * 1000,
        "caller": "mic/loop.py:42",
        "msg": "no bindings\n",
        "level": "warning",
        "v": 0,
    }


@pytest.mark.parametrize(
    ("level", "fields"),
    [
        (klog.verbose(6), {"level": "debug", "v": 6}),
        (logging.DEBUG, {"level": "debug", "v": 5}),
        (logging.INFO, {"level": "info", "v": 0}),
        (logging.ERROR, {"level": "error"}),
        (logging.CRITICAL, {"level": "fatal"}),
    ],
)
def test_a_json_line_has_v_unless_it_is_an_error(level: int, fields: dict[str, object]) -> None:
    line = json.loads(klog.JsonFormatter(LogOptions()).format(record(level, "x")))

    assert {key: line[key] for key in ("level", "v") if key in line} == fields


def log_an_exception() -> None:
    try:
        raise LookupError("no\nnode")
    except LookupError:
        LOG.exception("cycle failed\n")


def test_an_exception_takes_one_line_of_text() -> None:
    stream = started()

    log_an_exception()

    assert re.fullmatch(r"E.*\] cycle failed: LookupError: no\\nnode \(test_klog\.py:\d+\)\n", stream.getvalue())


def test_a_traceback_follows_when_verbose() -> None:
    stream = started(verbosity=5)

    log_an_exception()

    first, *others = stream.getvalue().splitlines()
    assert re.search(r"cycle failed: LookupError: no\\nnode", first)
    assert others[0] == "Traceback (most recent call last):"


@pytest.mark.parametrize(("verbosity", "has_traceback"), [(0, False), (5, True)])
def test_json_names_an_exception_in_a_key_of_its_own(verbosity: int, has_traceback: bool) -> None:
    stream = started(as_json=True, verbosity=verbosity)

    log_an_exception()

    line = json.loads(stream.getvalue())
    assert line["msg"] == "cycle failed\n"
    assert re.fullmatch(r"LookupError: no\nnode \(test_klog\.py:\d+\)", line["err"])
    assert ("stacktrace" in line) is has_traceback


def test_a_text_from_outside_cannot_forge_a_line() -> None:
    stream = started()

    LOG.info("path=%s", "/x\r\nE0101 00:00:00.000000       1 a.py:1] forged\x1b[2J ünïcode")

    (line,) = stream.getvalue().splitlines()
    assert line.endswith(r"path=/x\r\nE0101 00:00:00.000000       1 a.py:1] forged\x1b[2J ünïcode")


@pytest.mark.parametrize(
    ("verbosity", "shown"),
    [
        (0, ["V0", "info"]),
        (1, ["V0", "info", "V1"]),
        (4, ["V0", "info", "V1", "V4"]),
        (5, ["V0", "info", "V1", "V4", "V5", "debug"]),
        (7, ["V0", "info", "V1", "V4", "V5", "debug", "V6", "V7"]),
        (99, ["V0", "info", "V1", "V4", "V5", "debug", "V6", "V7", "V50"]),
    ],
)
def test_v_opens_the_levels_up_to_its_number(verbosity: int, shown: list[str]) -> None:
    stream = started(verbosity=verbosity, with_headers=False)

    for v in (0, 1, 4, 5, 6, 7, 50):
        LOG.log(klog.verbose(v), "V%d", v)
    LOG.debug("debug")
    LOG.info("info")

    assert set(stream.getvalue().split()) == set(shown)


@pytest.mark.parametrize("name", ["httpx", "azure.core.pipeline.policies.http_logging_policy", "asyncio", "kubernetes"])
def test_libraries_only_warn_however_verbose_we_are(name: str) -> None:
    stream = started(verbosity=10, with_headers=False)
    library = logging.getLogger(name)

    library.info("Authorization: Bearer ey")
    library.debug("Authorization: Bearer ey")
    library.warning("slow")

    assert stream.getvalue() == "slow\n"


def test_python_warnings_become_log_lines() -> None:
    stream = started(with_headers=False)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old call", DeprecationWarning, stacklevel=1)

    assert "DeprecationWarning: old call" in stream.getvalue()


def test_a_second_setup_replaces_the_first() -> None:
    first, second = started(with_headers=False), started(with_headers=False)

    LOG.info("once")

    assert (first.getvalue(), second.getvalue()) == ("", "once\n")


def test_the_default_stream_is_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    klog.setup(LogOptions(with_headers=False))

    LOG.info("hello")

    assert capsys.readouterr() == ("", "hello\n")


def test_options_come_from_the_command_line() -> None:
    given = parse("prog", klog.FLAGS, ["-v=7", "--log-format=json", "--add_dir_header", "--skip_headers"], PFLAG)

    assert klog.options(given) == LogOptions(as_json=True, verbosity=7, with_headers=False, with_directory=True)


async def test_direct_lines_come_together_at_the_end_of_the_turn_and_in_order_with_others() -> None:
    stream = started()
    write = klog.direct("audit.py:1")

    write(logging.INFO, "first")
    write(logging.ERROR, "second")
    before = stream.getvalue()
    await asyncio.sleep(0)
    together = stream.getvalue()
    write(logging.INFO, "third")
    LOG.info("fourth")

    assert before == ""
    assert re.fullmatch(
        rf"I\d{{4}} \S+ {os.getpid():7d} audit\.py:1\] first\nE\d{{4}} \S+ {os.getpid():7d} audit\.py:1\] second\n",
        together,
    )
    assert [line.rpartition("] ")[2] for line in stream.getvalue().splitlines()] == [
        "first",
        "second",
        "third",
        "fourth",
    ]


async def test_direct_lines_have_the_form_of_all_others() -> None:
    stream = started(as_json=True)

    klog.direct("audit.py:1")(logging.ERROR, "a b")
    await asyncio.sleep(0)

    line = json.loads(stream.getvalue())
    assert (line["caller"], line["msg"], line["level"]) == ("audit.py:1", "a b\n", "error")
