"""Log lines in the two shapes of the original's klog, on stderr.

Text: `Lmmdd hh:mm:ss.uuuuuu ppppppp file.py:line] message`, L one of I, W, E, F; users look for errors with
`grep ^E`, so each record is one line. JSON: one object a line, with the original's keys and our `level` and `err`.
Source: k8s.io/klog/v2, k8s.io/component-base/logs/json.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TextIO

from apps.goflags import Arguments, Flag

OWN_LOGGERS = ("__main__", "apps", "podidentity_core", "podidentity_k8s", "podidentity_azure")
"""Whose lines `--v` opens. Libraries stay at warnings: some print requests and answers, tokens included."""

_TRACEBACKS_FROM_V = 5
_STDERR_ONLY = "the log goes to stderr"

FLAGS: Sequence[Flag] = (
    Flag("v", "int", 0, "number of the log level: 5 shows decisions and timings, 6 and more single objects"),
    Flag("log-format", "string", "text", "text or json"),
    Flag("add_dir_header", "bool", False, "put the directory before the file in each line"),
    Flag("skip_headers", "bool", False, "print messages without time and place"),
    Flag("alsologtostderr", "bool", False, _STDERR_ONLY, "ignored"),
    Flag("log_backtrace_at", "string", ":0", "no stack can be asked for by line", "ignored"),
    Flag("log_dir", "string", "", _STDERR_ONLY, "ignored"),
    Flag("log_file", "string", "", _STDERR_ONLY, "ignored"),
    Flag("log_file_max_size", "int", 1800, _STDERR_ONLY, "ignored"),
    Flag("logtostderr", "bool", True, _STDERR_ONLY, "ignored"),
    Flag("one_output", "bool", False, _STDERR_ONLY, "ignored"),
    Flag("skip_log_headers", "bool", False, _STDERR_ONLY, "ignored"),
    Flag("stderrthreshold", "string", "2", _STDERR_ONLY, "ignored"),
    Flag("vmodule", "string", "", "--v is for all modules", "ignored"),
)
"""klog's flags and the format. `--log_dir` and others of its kind mean files, and there are none."""


@dataclass(frozen=True, slots=True)
class LogOptions:
    """How log lines look and which appear."""

    as_json: bool = False
    verbosity: int = 0
    with_headers: bool = True
    with_directory: bool = False


def options(arguments: Arguments) -> LogOptions:
    """Read the options from the command line. Raises UsageError."""
    return LogOptions(
        as_json=arguments.choice("log-format", "text", "json") == "json",
        verbosity=arguments.whole("v"),
        with_headers=not arguments.switch("skip_headers"),
        with_directory=arguments.switch("add_dir_header"),
    )


def verbose(v: int) -> int:
    """Return the `logging` level of klog's V(*v*): 0 is INFO, 5 is DEBUG."""
    return max(1, logging.INFO - 2 * v)


def setup(options: LogOptions, stream: TextIO | None = None) -> None:
    """Send all log records to *stream*, or stderr, from now on. Call it once, before anything is logged."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(options) if options.as_json else TextFormatter(options))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in OWN_LOGGERS:
        logging.getLogger(name).setLevel(verbose(options.verbosity))
    logging.captureWarnings(True)


class TextFormatter(logging.Formatter):
    """klog's line. An exception is named in it; its traceback follows only from `--v=5` on."""

    def __init__(self, options: LogOptions) -> None:
        super().__init__()
        self._options = options
        self._second = -1
        self._date = ""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of *record*, without its end."""
        line = _one_line(record.getMessage())
        if record.exc_info and (error := record.exc_info[1]):
            line = f"{line}: {_one_line(_named(error))}"
        if self._options.with_headers:
            place = _place(record) if self._options.with_directory else record.filename
            micro = int(record.created % 1 * 1_000_000)
            letter = next(letter for level, letter, _ in _SEVERITIES if record.levelno >= level)
            head = f"{letter}{self._day_and_time(int(record.created))}.{micro:06d}"
            line = f"{head} {record.process or 0:7d} {place}:{record.lineno}] {line}"
        if record.exc_info and self._options.verbosity >= _TRACEBACKS_FROM_V:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return line

    def _day_and_time(self, second: int) -> str:
        if second != self._second:
            self._second, self._date = second, time.strftime("%m%d %H:%M:%S", time.localtime(second))
        return self._date


class JsonFormatter(logging.Formatter):
    """One JSON object a line. `msg` ends with a newline character, as the original's does."""

    def __init__(self, options: LogOptions) -> None:
        super().__init__()
        self._options = options

    def format(self, record: logging.LogRecord) -> str:
        """Return the object of *record*."""
        fields: dict[str, object] = {
            "ts": record.created * 1000,
            "caller": f"{_place(record)}:{record.lineno}",
            "msg": record.getMessage().rstrip("\n") + "\n",
            "level": next(name for level, _, name in _SEVERITIES if record.levelno >= level),
        }
        if record.levelno < logging.ERROR:
            fields["v"] = max(0, (logging.INFO - record.levelno) // 2)
        if record.exc_info and (error := record.exc_info[1]):
            fields["err"] = _named(error)
            if self._options.verbosity >= _TRACEBACKS_FROM_V:
                fields["stacktrace"] = self.formatException(record.exc_info)
        return json.dumps(fields)


_SEVERITIES = (
    (logging.CRITICAL, "F", "fatal"),
    (logging.ERROR, "E", "error"),
    (logging.WARNING, "W", "warning"),
    (logging.INFO, "I", "info"),
    (logging.NOTSET, "I", "debug"),
)


def _place(record: logging.LogRecord) -> str:
    return "/".join(PurePath(record.pathname).parts[-2:])


def _named(error: BaseException) -> str:
    """Name the exception and where it was raised, which is what one line can say of a traceback."""
    frames = traceback.extract_tb(error.__traceback__, limit=-1)
    raised = f" ({PurePath(frames[0].filename).name}:{frames[0].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{raised}"


def _one_line(text: str) -> str:
    """Escape what would end the line or change the terminal: texts from pods must not forge lines."""
    text = text.rstrip("\n")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
