"""Metrics of both daemons, in Prometheus' text format.

The names, labels and buckets are those of the original, so that its dashboards and alerts go on working. Its
counters end in `_count`, a name that the usual Prometheus client libraries would turn into `_count_total`.
Source: aad-pod-identity pkg/metrics/metrics.go.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import isfinite
from operator import itemgetter
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

if TYPE_CHECKING:
    from podidentity_core.ports import Meter

PREFIX = "aadpodidentity_"
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
OTHER = "other"
"""Stands for label values that are too many, too long or not printable."""

_MAX_VALUE_LENGTH = 255  # the original's limit (OpenCensus tag values); it dropped such samples altogether

_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 2, 3, 4, 5, 10)
_MINUTES = (0.5, 1, 5, 10, 30, 60, 120, 300, 600, 900, 1200)
_WAITS = (0.5, 1, 2, 3, 4, 5, 10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100)


@dataclass(frozen=True, slots=True)
class Metric:
    """What one metric looks like; *labels* in any order, *buckets* for histograms only."""

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    foreign: tuple[str, ...] = ()
    """Labels whose values pods choose: these give way first when there are too many."""


def _durations(what: str, buckets: tuple[float, ...], *labels: str, foreign: tuple[str, ...] = ()) -> Metric:
    return Metric("histogram", f"Seconds that {what} took.", labels, buckets, foreign)


METRICS: Mapping[str, Metric] = {
    "assigned_identity_addition_count": Metric("counter", "AzureAssignedIdentity objects created."),
    "assigned_identity_addition_duration_seconds": _durations("creating an AzureAssignedIdentity", _SECONDS),
    "assigned_identity_deletion_count": Metric("counter", "AzureAssignedIdentity objects deleted."),
    "assigned_identity_deletion_duration_seconds": _durations("deleting an AzureAssignedIdentity", _SECONDS),
    "assigned_identity_update_count": Metric("counter", "AzureAssignedIdentity objects replaced."),
    "assigned_identity_update_duration_seconds": _durations("replacing an AzureAssignedIdentity", _SECONDS),
    "cloud_provider_operations_duration_seconds": _durations(
        "a successful Azure Resource Manager operation, polling included,", _MINUTES, "operation_type"
    ),
    "cloud_provider_operations_errors_count": Metric(
        "counter", "Azure Resource Manager operations that failed.", ("operation_type",)
    ),
    "cloud_provider_requests_count": Metric(
        "counter", "Requests to Azure Resource Manager, by what became of them.", ("method", "outcome")
    ),
    "cloud_provider_remaining_requests": Metric(
        "gauge", "Requests that Azure says are left, by its own name of the limit.", ("limit",)
    ),
    "imds_operations_duration_seconds": _durations("getting a token", _SECONDS, "operation_type"),
    "imds_operations_errors_count": Metric("counter", "Tokens that could not be had.", ("operation_type",)),
    "kubernetes_api_operations_errors_count": Metric(
        "counter", "Kubernetes API operations that failed.", ("operation_type",)
    ),
    "mic_cycle_count": Metric("counter", "Cycles of MIC that had work to do."),
    "mic_cycle_duration_seconds": _durations("a cycle of MIC", _MINUTES),
    "mic_assignment_duration_seconds": _durations(
        "giving a pod all its identities, from the moment when MIC knew of pod and node,", _MINUTES
    ),
    "mic_skipped_pods": Metric("gauge", "Pods that lack an identity, by the code of the reason.", ("reason",)),
    "mic_waiting_assignments": Metric("gauge", "Assignments that wait for their host.", ("host",)),
    "mic_waiting_seconds": Metric("gauge", "How long the first of them has waited.", ("host",)),
    "mic_quarantined_identities": Metric(
        "gauge", "Identities that a host has refused and that wait for another try.", ("host",)
    ),
    "mic_new_leader_election_count": Metric("counter", "Times that this process became the leader."),
    "nmi_refused_requests_count": Metric(
        "counter", "Token requests that were refused, by the code of the reason.", ("namespace", "reason")
    ),
    "nmi_token_cache_count": Metric(
        "counter",
        "Uses of the token cache: hit, fetched, shared (with a call under way), refused (a moment ago), renewed, "
        "renewal_failed.",
        ("result",),
    ),
    "nmi_waiting_requests": Metric("gauge", "Token requests that wait for an assignment or for the token service."),
    "nmi_operations_duration_seconds": _durations(
        "answering a request to NMI, waits included,",
        _WAITS,
        "namespace",
        "operation_type",
        "resource",
        "status_code",
        foreign=("operation_type", "resource"),
    ),
}
"""Every metric by its name without the prefix."""


class _Value:
    """The one number of a counter's or a gauge's series."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0.0


class _Distribution:
    """The samples of one series of a histogram: how many fell into each bucket, and their sum."""

    __slots__ = ("counts", "sum")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * (buckets + 1)
        self.sum = 0.0


_Key = str | tuple[str, ...]
_Series = TypeVar("_Series", _Value, _Distribution)


class _Family(Generic[_Series]):
    """The series of one metric by the values of its labels, in the labels' alphabetical order."""

    def __init__(self, metric: Metric, new: Callable[[], _Series], limit: int) -> None:
        self.metric = metric
        self.series: dict[_Key, _Series] = {}
        self._names = tuple(sorted(metric.labels))
        self._foreign = frozenset(metric.foreign)
        self._key: Callable[[Mapping[str, str]], _Key]
        self._key = itemgetter(*self._names) if self._names else lambda _: ()
        self._new: Callable[[], _Series] = new
        self._limit = limit

    def at(self, labels: Mapping[str, str]) -> _Series:
        """Return the series with these labels. Raises KeyError or TypeError for labels that it lacks."""
        if len(labels) != len(self._names):
            raise TypeError(f"labels {sorted(labels)} given, {list(self._names)} expected")
        key = self._key(labels)
        found = self.series.get(key)
        return self._admit(_values(key)) if found is None else found

    def _admit(self, values: tuple[str, ...]) -> _Series:
        values = tuple(v if _is_presentable(v) else OTHER for v in values)
        if len(self.series) >= self._limit:
            values = tuple(OTHER if n in self._foreign else v for n, v in zip(self._names, values, strict=True))
        if len(self.series) >= 2 * self._limit:  # the labels that we choose ourselves are too many as well
            values = (OTHER,) * len(values)
        key = values[0] if len(values) == 1 else values
        if key not in self.series:
            self.series[key] = self._new()
        return self.series[key]

    def labelled(self) -> Iterator[tuple[str, _Series]]:
        """Yield each series after its labels as text, such as `a="x",b="y"`, sorted."""
        for key, series in sorted(self.series.items(), key=lambda item: _values(item[0])):
            pairs = zip(self._names, _values(key), strict=True)
            yield ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs), series


class PrometheusMeter:
    """The core's `Meter`, and the text that Prometheus reads of it.

    A series appears with its first sample. From *limit* label sets of a metric on, new values of labels that
    pods choose become `other`; from twice as many on, new values of all labels do. An unknown name or label is a
    bug and raises KeyError or TypeError. Not thread-safe: for the event loop's thread only.
    """

    def __init__(self, metrics: Mapping[str, Metric] = METRICS, *, limit: int = 1000) -> None:
        kinds = {name: metric.kind for name, metric in metrics.items()}
        values = {name: _Family(metrics[name], _Value, limit) for name in kinds if kinds[name] != "histogram"}
        self._counters = {name: family for name, family in values.items() if kinds[name] == "counter"}
        self._gauges = {name: family for name, family in values.items() if kinds[name] == "gauge"}
        self._histograms = {
            name: _Family(metric, _distribution_of(metric), limit)
            for name, metric in metrics.items()
            if metric.kind == "histogram"
        }

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add *amount* to a counter."""
        self._counters[name].at(labels).number += amount

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._gauges[name].at(labels).number = value

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add one sample, in the metric's unit, to a histogram."""
        family = self._histograms[name]
        series = family.at(labels)
        series.counts[bisect_left(family.metric.buckets, value)] += 1
        series.sum += value

    def render(self) -> bytes:
        """Return all series in text format 0.0.4, sorted by name, then by label values."""
        texts = {name: _values_text(name, family) for name, family in (self._counters | self._gauges).items()}
        texts |= {name: _histogram_text(name, family) for name, family in self._histograms.items()}
        return "".join(texts[name] for name in sorted(texts)).encode()


if TYPE_CHECKING:
    _: type[Meter] = PrometheusMeter


def _distribution_of(metric: Metric) -> Callable[[], _Distribution]:
    return lambda: _Distribution(len(metric.buckets))


def _values(key: _Key) -> tuple[str, ...]:
    return (key,) if isinstance(key, str) else key


def _is_presentable(value: str) -> bool:
    return len(value) <= _MAX_VALUE_LENGTH and value.isascii() and value.isprintable()


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if isfinite(value):
        return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
    return {float("inf"): "+Inf", float("-inf"): "-Inf"}.get(value, "NaN")


def _heading(name: str, metric: Metric) -> str:
    return f"# HELP {PREFIX}{name} {metric.help}\n# TYPE {PREFIX}{name} {metric.kind}\n"


def _values_text(name: str, family: _Family[_Value]) -> str:
    lines = [
        f"{PREFIX}{name}{{{labels}}} {_number(value.number)}\n"
        if labels
        else f"{PREFIX}{name} {_number(value.number)}\n"
        for labels, value in family.labelled()
    ]
    return _heading(name, family.metric) + "".join(lines) if lines else ""


def _histogram_text(name: str, family: _Family[_Distribution]) -> str:
    bounds = [*map(_number, family.metric.buckets), "+Inf"]
    lines: list[str] = []
    for labels, samples in family.labelled():
        before = f"{PREFIX}{name}_bucket{{{labels}," if labels else f"{PREFIX}{name}_bucket{{"
        braces = f"{{{labels}}}" if labels else ""
        totals = list(accumulate(samples.counts))
        lines += [f'{before}le="{le}"}} {total}\n' for le, total in zip(bounds, totals, strict=True)]
        lines.append(f"{PREFIX}{name}_sum{braces} {_number(samples.sum)}\n")
        lines.append(f"{PREFIX}{name}_count{braces} {totals[-1]}\n")
    return _heading(name, family.metric) + "".join(lines) if lines else ""
