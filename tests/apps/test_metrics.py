"""The text that Prometheus reads."""

import pytest

from apps.metrics import METRICS, Metric, PrometheusMeter

EXAMPLES = {
    "b_count": Metric("counter", "Things counted."),
    "a_count": Metric("counter", "Things by kind.", ("kind", "colour")),
    "level": Metric("gauge", "A level.", ("pool",)),
    "wait_seconds": Metric("histogram", "A wait.", (), (0.5, 1, 2.5)),
    "call_seconds": Metric("histogram", "A call.", ("op",), (1, 10), foreign=("op",)),
}


def test_nothing_is_shown_before_the_first_sample() -> None:
    assert PrometheusMeter().render() == b""


def test_the_text_is_format_0_0_4_byte_by_byte() -> None:
    meter = PrometheusMeter(EXAMPLES)
    meter.count("b_count")
    meter.count("b_count", 2.5)
    meter.count("a_count", kind="round", colour="red")
    meter.count("a_count", colour="blue", kind="round")
    meter.count("a_count", 3, colour="red", kind="round")
    meter.gauge("level", 7, pool="x")
    meter.gauge("level", -0.25, pool="x")
    for value in (0.5, 0.51, 99, 1):
        meter.observe("wait_seconds", value)
    meter.observe("call_seconds", 0.25, op="get")

    assert meter.render().decode() == (
        "# HELP aadpodidentity_a_count Things by kind.\n"
        "# TYPE aadpodidentity_a_count counter\n"
        'aadpodidentity_a_count{colour="blue",kind="round"} 1\n'
        'aadpodidentity_a_count{colour="red",kind="round"} 4\n'
        "# HELP aadpodidentity_b_count Things counted.\n"
        "# TYPE aadpodidentity_b_count counter\n"
        "aadpodidentity_b_count 3.5\n"
        "# HELP aadpodidentity_call_seconds A call.\n"
        "# TYPE aadpodidentity_call_seconds histogram\n"
        'aadpodidentity_call_seconds_bucket{op="get",le="1"} 1\n'
        'aadpodidentity_call_seconds_bucket{op="get",le="10"} 1\n'
        'aadpodidentity_call_seconds_bucket{op="get",le="+Inf"} 1\n'
        'aadpodidentity_call_seconds_sum{op="get"} 0.25\n'
        'aadpodidentity_call_seconds_count{op="get"} 1\n'
        "# HELP aadpodidentity_level A level.\n"
        "# TYPE aadpodidentity_level gauge\n"
        'aadpodidentity_level{pool="x"} -0.25\n'
        "# HELP aadpodidentity_wait_seconds A wait.\n"
        "# TYPE aadpodidentity_wait_seconds histogram\n"
        'aadpodidentity_wait_seconds_bucket{le="0.5"} 1\n'
        'aadpodidentity_wait_seconds_bucket{le="1"} 3\n'
        'aadpodidentity_wait_seconds_bucket{le="2.5"} 3\n'
        'aadpodidentity_wait_seconds_bucket{le="+Inf"} 4\n'
        "aadpodidentity_wait_seconds_sum 101.01\n"
        "aadpodidentity_wait_seconds_count 4\n"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1e6, "1000000"),
        (2.0**60, "1.152921504606847e+18"),
        (0.1, "0.1"),
        (-3.0, "-3"),
        (float("inf"), "+Inf"),
        (float("-inf"), "-Inf"),
        (float("nan"), "NaN"),
    ],
)
def test_numbers_are_written_as_prometheus_reads_them(value: float, text: str) -> None:
    meter = PrometheusMeter(EXAMPLES)
    meter.gauge("level", value, pool="x")

    assert meter.render().decode().splitlines()[-1] == f'aadpodidentity_level{{pool="x"}} {text}'


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ('a "b" \\c', 'a \\"b\\" \\\\c'),
        ("", ""),
        ("x" * 255, "x" * 255),
        ("x" * 256, "other"),
        ("line\nbreak", "other"),
        ("café", "other"),
    ],
    ids=["escaped", "empty", "long", "too long", "control", "not ASCII"],
)
def test_label_values_are_escaped_or_replaced(value: str, text: str) -> None:
    meter = PrometheusMeter(EXAMPLES)
    meter.gauge("level", 1, pool=value)
    meter.gauge("level", 1, pool=value)

    assert meter.render().decode().splitlines()[2:] == [f'aadpodidentity_level{{pool="{text}"}} 1']


def series(meter: PrometheusMeter) -> list[str]:
    return [line for line in meter.render().decode().splitlines() if not line.startswith("#")]


def test_too_many_values_of_labels_that_pods_choose_become_other() -> None:
    request = Metric("counter", "Requests.", ("resource", "status"), foreign=("resource",))
    meter = PrometheusMeter({"n": request}, limit=2)
    for resource in ("a", "b", "c", "d", "a"):
        meter.count("n", resource=resource, status="200")
    meter.count("n", resource="e", status="400")
    meter.count("n", resource="e", status="500")

    assert series(meter) == [
        'aadpodidentity_n{resource="a",status="200"} 2',
        'aadpodidentity_n{resource="b",status="200"} 1',
        'aadpodidentity_n{resource="other",status="200"} 2',
        'aadpodidentity_n{resource="other",status="400"} 1',
        'aadpodidentity_n{resource="other",status="other"} 1',
    ]


def test_ten_thousand_resources_do_not_grow_the_memory() -> None:
    meter = PrometheusMeter(limit=10)
    for number in range(10_000):
        meter.observe(
            "nmi_operations_duration_seconds",
            0.1,
            namespace=f"ns{number}",
            operation_type=f"/{number}",
            resource=f"r{number}",
            status_code="200",
        )

    counts = [line for line in series(meter) if "_count{" in line]
    assert len(counts) == 21  # twice the limit, and the last resort
    assert sum(int(line.rsplit(" ", 1)[1]) for line in counts) == 10_000


@pytest.mark.parametrize(
    ("labels", "error"),
    [({}, TypeError), ({"op": "x", "more": "y"}, TypeError), ({"operation": "x"}, KeyError)],
    ids=["missing", "too many", "unknown"],
)
def test_wrong_labels_are_a_bug(labels: dict[str, str], error: type[Exception]) -> None:
    with pytest.raises(error):
        PrometheusMeter(EXAMPLES).observe("call_seconds", 1, **labels)


def test_a_metric_takes_samples_of_its_own_kind_only() -> None:
    meter = PrometheusMeter(EXAMPLES)

    with pytest.raises(KeyError):
        meter.count("level")
    with pytest.raises(KeyError):
        meter.observe("b_count", 1)
    with pytest.raises(KeyError):
        meter.gauge("wait_seconds", 1)


A = "0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 2, 3, 4, 5, 10"
B = "0.5, 1, 5, 10, 30, 60, 120, 300, 600, 900, 1200"
C = "0.5, 1, 2, 3, 4, 5, 10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100"
ORIGINAL = {
    "assigned_identity_addition_duration_seconds": ("histogram", "", A),
    "assigned_identity_addition_count": ("counter", "", ""),
    "assigned_identity_deletion_duration_seconds": ("histogram", "", A),
    "assigned_identity_deletion_count": ("counter", "", ""),
    "assigned_identity_update_duration_seconds": ("histogram", "", A),
    "assigned_identity_update_count": ("counter", "", ""),
    "mic_cycle_duration_seconds": ("histogram", "", B),
    "mic_cycle_count": ("counter", "", ""),
    "mic_new_leader_election_count": ("counter", "", ""),
    "cloud_provider_operations_duration_seconds": ("histogram", "operation_type", B),
    "cloud_provider_operations_errors_count": ("counter", "operation_type", ""),
    "kubernetes_api_operations_errors_count": ("counter", "operation_type", ""),
    "nmi_operations_duration_seconds": ("histogram", "namespace operation_type resource status_code", C),
    "imds_operations_duration_seconds": ("histogram", "operation_type", A),
    "imds_operations_errors_count": ("counter", "operation_type", ""),
}


@pytest.mark.parametrize("name", ORIGINAL)
def test_names_labels_and_buckets_are_the_originals(name: str) -> None:
    metric = METRICS[name]

    buckets = ", ".join(f"{bound:g}" for bound in metric.buckets)
    assert (metric.kind, " ".join(sorted(metric.labels)), buckets) == ORIGINAL[name]


@pytest.mark.parametrize(("name", "metric"), METRICS.items(), ids=list(METRICS))
def test_every_metric_of_the_table_can_be_sampled(name: str, metric: Metric) -> None:
    meter = PrometheusMeter()
    labels = dict.fromkeys(metric.labels, "x")
    match metric.kind:
        case "counter":
            meter.count(name, **labels)
        case "gauge":
            meter.gauge(name, 1, **labels)
        case "histogram":
            meter.observe(name, 0.5, **labels)

    assert meter.render().startswith(f"# HELP aadpodidentity_{name} {metric.help}\n".encode())
