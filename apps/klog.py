"""Log lines in the two shapes of the original's klog, on stderr.

Text: `Lmmdd hh:mm:ss.uuuuuu ppppppp file.py:line] message`, L one of I, W, E, F; users look for errors with
`grep ^E`, so each record is one line. JSON: one object a line, with the original's keys and our `level` and `err`.
Source: k8s.io/klog/v2, k8s.io/component-base/logs/json.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
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
    Flag("alsologtostderr", "bool", False, _STDERR_ONLY, effect=False),
    Flag("log_backtrace_at", "string", ":0", "no stack can be asked for by line", effect=False),
    Flag("log_dir", "string", "", _STDERR_ONLY, effect=False),
    Flag("log_file", "string", "", _STDERR_ONLY, effect=False),
    Flag("log_file_max_size", "int", 1800, _STDERR_ONLY, effect=False),
    Flag("logtostderr", "bool", True, _STDERR_ONLY, effect=False),
    Flag("one_output", "bool", False, _STDERR_ONLY, effect=False),
    Flag("skip_log_headers", "bool", False, _STDERR_ONLY, effect=False),
    Flag("stderrthreshold", "string", "2", _STDERR_ONLY, effect=False),
    Flag("vmodule", "string", "", "--v is for all modules", effect=False),
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
    output = Output(stream or sys.stderr)
    output.setFormatter(JsonFormatter(options) if options.as_json else TextFormatter(options))
    root = logging.getLogger()
    root.handlers[:] = [output]
    root.setLevel(logging.WARNING)
    for name in OWN_LOGGERS:
        logging.getLogger(name).setLevel(verbose(options.verbosity))
    logging.captureWarnings(True)


class Output(logging.Handler):
    """All lines, in order: a logger's at once, direct ones together at the end of the event loop's turn."""

    formatter: TextFormatter | JsonFormatter

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line of *record*, after those that wait."""
        try:
            self._lines.append(self.format(record))
            self.flush()
        except Exception:  # noqa: BLE001  # as every handler of logging: what cannot be logged must not break the work
            self.handleError(record)

    def put(self, level: int, place: str, message: str) -> None:
        """Let a line be written soon. For the event loop's thread only."""
        self._lines.append(self.formatter.line(level, time.time(), place, message))
        if len(self._lines) == 1:
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Write the lines that wait."""
        lines, self._lines = self._lines, []
        if lines:
            self._stream.write("\n".join(lines) + "\n")
            self._stream.flush()


def direct(place: str) -> Callable[[int, str], None]:
    """Return a way to write lines, of a level and with a message, that come thousands of times a second.

    Call it after `setup`. A message must be what `one_line` makes of it. The lines look as if *place* (`file.py:line`)
    had logged them, at a tenth of the cost: there is no search for the caller, no record, and no write for each.
    """
    (output,) = (handler for handler in logging.getLogger().handlers if isinstance(handler, Output))

    def write(level: int, message: str) -> None:
        output.put(level, place, message)

    return write


class TextFormatter(logging.Formatter):
    """klog's line. An exception is named in it; its traceback follows only from `--v=5` on."""

    def __init__(self, options: LogOptions) -> None:
        super().__init__()
        self._options = options
        self._second = -1
        self._date = ""
        self._process = os.getpid()

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of *record*, without its end."""
        message = record.getMessage()
        if record.exc_info and (error := record.exc_info[1]):
            message = f"{message.rstrip()}: {_named(error)}"
        place = _place(record) if self._options.with_directory else record.filename
        message = one_line(message)
        line = self.line(record.levelno, record.created, f"{place}:{record.lineno}", message, record.process)
        if record.exc_info and self._options.verbosity >= _TRACEBACKS_FROM_V:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return line

    def line(self, level: int, created_s: float, place: str, message: str, process: int | None = None) -> str:
        """Return the line of a *message* logged at *place* (`file.py:line`) at wall time *created_s*, by us."""
        if not self._options.with_headers:
            return message
        letter = _INFO[1] if level == logging.INFO else _severity(level)[1]
        micro = int(created_s % 1 * 1_000_000)
        return (
            f"{letter}{self._day_and_time(int(created_s))}.{micro:06d} {process or self._process:7d} {place}] {message}"
        )

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
        extra: dict[str, object] = {}
        if record.exc_info and (error := record.exc_info[1]):
            extra["err"] = _named(error)
            if self._options.verbosity >= _TRACEBACKS_FROM_V:
                extra["stacktrace"] = self.formatException(record.exc_info)
        return self.line(
            record.levelno, record.created, f"{_place(record)}:{record.lineno}", record.getMessage(), extra
        )

    def line(
        self, level: int, created_s: float, place: str, message: str, extra: Mapping[str, object] | None = None
    ) -> str:
        """Return the object of a *message* logged at *place* (`file.py:line`) at wall time *created_s*."""
        fields: dict[str, object] = {
            "ts": created_s * 1000,
            "caller": place,
            "msg": message.rstrip("\n") + "\n",
            "level": _severity(level)[2],
        }
        if level < logging.ERROR:
            fields["v"] = max(0, (logging.INFO - level) // 2)
        return json.dumps({**fields, **(extra or {})})


def _severity(level: int) -> tuple[int, str, str]:
    return next(severity for severity in _SEVERITIES if level >= severity[0])


_SEVERITIES = (
    (logging.CRITICAL, "F", "fatal"),
    (logging.ERROR, "E", "error"),
    (logging.WARNING, "W", "warning"),
    (logging.INFO, "I", "info"),
    (logging.NOTSET, "I", "debug"),
)
_INFO = _severity(logging.INFO)


def _place(record: logging.LogRecord) -> str:
    return "/".join(PurePath(record.pathname).parts[-2:])


def _named(error: BaseException) -> str:
    """Name the exception and where it was raised, which is what one line can say of a traceback."""
    frames = traceback.extract_tb(error.__traceback__, limit=-1)
    raised = f" ({PurePath(frames[0].filename).name}:{frames[0].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{raised}"


def one_line(text: str) -> str:
    """Escape what would end the line or change the terminal: texts from pods must not forge lines."""
    text = text.rstrip("\n")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
