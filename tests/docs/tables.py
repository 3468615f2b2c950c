"""The tables of the documentation that repeat the code. `python -m tests.docs.tables` writes them anew.

A table stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; the tests compare it with what the code says now.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from apps import klog
from apps.goflags import Flag
from apps.metrics import METRICS, PREFIX
from apps.mic.flags import FLAGS as MIC_FLAGS
from apps.nmi.flags import FLAGS as NMI_FLAGS
from podidentity_core.reasons import Reason

PROJECT = Path(__file__).parents[2]
DOCS = PROJECT / "docs"


def flag_table(flags: Iterable[Flag]) -> str:
    """List *flags*; a flag that does nothing says so."""
    rows = [
        (f"`--{flag.name}`", flag.kind, _default(flag), f"{flag.help}{'' if flag.effect else ' (no effect)'}")
        for flag in flags
    ]
    return _table(("flag", "kind", "default", "meaning"), rows)


def own_flags(flags: Sequence[Flag]) -> Sequence[Flag]:
    """*flags* without those of the log, which both programs have."""
    return [flag for flag in flags if flag not in klog.FLAGS]


def idle_flags() -> str:
    """List the flags that are accepted and do nothing."""
    every = {"mic": own_flags(MIC_FLAGS), "nmi": own_flags(NMI_FLAGS), "both": klog.FLAGS}
    rows = [
        (f"`--{flag.name}`", program, flag.help)
        for program, flags in every.items()
        for flag in flags
        if not flag.effect
    ]
    return _table(("flag", "program", "why"), rows)


def reason_table() -> str:
    """List all reasons by their codes."""
    rows = [(r.code, _shown(r.sentence), r.remedy) for r in sorted(Reason, key=lambda reason: reason.code)]
    return _table(("code", "what it says", "what to do"), rows)


def metric_table() -> str:
    """List all metrics."""
    rows = [
        (f"`{PREFIX}{name}`", metric.kind, ", ".join(metric.labels), metric.help) for name, metric in METRICS.items()
    ]
    return _table(("metric", "kind", "labels", "meaning"), rows)


TABLES: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "configuration.md": {
        "mic flags": lambda: flag_table(own_flags(MIC_FLAGS)),
        "nmi flags": lambda: flag_table(own_flags(NMI_FLAGS)),
        "log flags": lambda: flag_table(klog.FLAGS),
        "metrics": metric_table,
    },
    "troubleshooting.md": {"reasons": reason_table},
    "parity.md": {"idle flags": idle_flags},
}
"""Every table by the page and its name in there."""


def replaced(text: str, name: str, table: str) -> str:
    """Put *table* into the place that *text* has for *name*. Raises ValueError unless there is exactly one."""
    marks = rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)"
    result, count = re.subn(marks, lambda found: f"{found[1]}{table}{found[2]}", text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{count} places for the table {name!r} instead of one")
    return result


def refreshed(page: str) -> str:
    """The text of *page* with every table as the code has it now."""
    text = (DOCS / page).read_text(encoding="utf-8")
    for name, table in TABLES[page].items():
        text = replaced(text, name, table())
    return text


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _default(flag: Flag) -> str:
    if flag.kind == "duration":
        return f"`{flag.default:g}s`"
    if flag.kind == "float":
        return f"`{flag.default:g}`"
    if flag.default == "":
        return ""
    return f"`{str(flag.default).lower() if flag.kind == 'bool' else flag.default}`"


def _shown(sentence: str) -> str:
    """The sentence with its open places in italics."""
    return re.sub(r"\{(\w+)\}", r"*\1*", sentence)


def main() -> None:
    """Write every table anew."""
    for page in TABLES:
        (DOCS / page).write_text(refreshed(page), encoding="utf-8")


if __name__ == "__main__":
    main()
