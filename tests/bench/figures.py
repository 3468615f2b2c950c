"""What a benchmark gives: figures with their budgets, and the table that shows them."""

from __future__ import annotations

import gc
import operator
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
    ">=": operator.ge,
    ">": operator.gt,
}


@dataclass(frozen=True)
class Figure:
    """One measured value. *budget* is what it must be, in the same unit (`< 150`), or empty where nobody says."""

    name: str
    value: float
    unit: str
    budget: str
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the value is within its budget; None without one. Raises ValueError for a budget it cannot read."""
        if not self.budget:
            return None
        sign, _, bound = self.budget.partition(" ")
        if sign not in _COMPARE:
            raise ValueError(
                f"{self.name}: the budget {self.budget!r} is not one of {', '.join(_COMPARE)} and a number"
            )
        return _COMPARE[sign](self.value, float(bound))


@dataclass(frozen=True)
class Timing:
    """How long some runs took by the clock, and how much processor time this process spent in them."""

    wall_s: Sequence[float]
    cpu_s: Sequence[float]

    @property
    def wall_ms(self) -> float:
        """The median by the clock."""
        return statistics.median(self.wall_s) * 1000

    @property
    def cpu_ms(self) -> float:
        """The median of the processor time: what the clock would show on a core that nobody else uses."""
        return statistics.median(self.cpu_s) * 1000


def timed(runs: Iterable[Callable[[], object]]) -> Timing:
    """Time *runs* one by one, with the garbage collector as it is in production.

    Making the next run is not timed, nor is freeing what a run returns.
    """
    wall_s, cpu_s = [], []
    gc.collect()  # not to pay for what came before
    for run in runs:
        wall, cpu = time.perf_counter(), time.process_time()
        kept = run()
        wall_s.append(time.perf_counter() - wall)
        cpu_s.append(time.process_time() - cpu)
        del kept
    return Timing(wall_s, cpu_s)


def table(figures: Sequence[Figure]) -> str:
    """Align *figures* in columns, numbers to the right."""
    heads = ("figure", "measured", "unit", "budget", "met", "note")
    rows = [heads, *(_row(figure) for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    return "\n".join(_aligned(row, widths) for row in rows)


def _row(figure: Figure) -> tuple[str, ...]:
    met = {True: "yes", False: "NO", None: ""}[figure.met]
    return (figure.name, _number(figure.value), figure.unit, figure.budget, met, figure.note)


def _number(value: float) -> str:
    """Three digits that count, and no exponent."""
    decimals = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{decimals}f}"


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        cell.rjust(width) if column == 1 else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()
