"""MIC's command line: the original's flags and defaults, and what is refused."""

import socket
from dataclasses import replace

import pytest

from apps.goflags import TextRequested, UsageError
from apps.klog import LogOptions
from apps.mic.flags import FLAGS, MicConfig, parse
from podidentity_core.errors import ConfigurationError

ENVIRON = {"MIC_POD_NAMESPACE": "kube-system"}

ORIGINAL = """
kubeconfig string ''
cloudconfig string ''
forceNamespaced bool False
version bool False
syncRetryDuration duration 3600.0
leader-election-instance string ''
leader-election-namespace string 'default'
leader-election-name string 'aad-pod-identity-mic'
leader-election-duration duration 15.0
http-probe-port string '8080'
prometheus-port string '8888'
enableProfile bool False
enableScaleFeatures bool False
createDeleteBatch int 20
clientQps float 200.0
immutable-user-msis string ''
config-map-name string 'aad-pod-identity-config'
type-upgrade-status-key string 'type-upgrade-status'
enable-type-upgrade bool True
update-user-msi-max-retry int 2
update-user-msi-retry-interval duration 1.0
identity-assignment-reconcile-interval duration 180.0
custom-user-agent string ''
log-format string 'text'
v int 0
vmodule string ''
logtostderr bool True
alsologtostderr bool False
stderrthreshold string '2'
log_backtrace_at string ':0'
add_dir_header bool False
log_dir string ''
log_file string ''
log_file_max_size int 1800
one_output bool False
skip_headers bool False
skip_log_headers bool False
"""

OWN = """
identity-grace-period duration 60.0
dry-run bool False
"""
"""The flags that the original does not have."""

DEFAULT = MicConfig(
    kubeconfig="",
    cloudconfig="",
    pod_namespace="kube-system",
    namespaced=False,
    replan_interval_s=3600.0,
    drift_interval_s=180.0,
    lease_identity=socket.gethostname(),
    lease_namespace="default",
    lease_name="aad-pod-identity-mic",
    lease_duration_s=15.0,
    probe_port=8080,
    metrics_port=8888,
    concurrent_writes=20,
    api_requests_per_s=200.0,
    api_burst=200,
    immutable_ids=frozenset(),
    host_retries=2,
    host_retry_interval_s=1.0,
    grace_s=60.0,
    dry_run=False,
    config_map_name="aad-pod-identity-config",
    type_upgrade_key="type-upgrade-status",
    type_upgrade=True,
    custom_user_agent="",
    log=LogOptions(),
    warnings=(),
)


def test_flags_kinds_and_defaults_are_the_originals_but_for_our_own() -> None:
    ours = {f"{flag.name} {flag.kind} {flag.default!r}" for flag in FLAGS}

    assert ours == {*ORIGINAL.strip().splitlines(), *OWN.strip().splitlines()}
    assert len(FLAGS) == len(ours)


def test_without_flags_all_is_as_in_the_original() -> None:
    assert parse([], ENVIRON) == DEFAULT


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("--kubeconfig=/k", {"kubeconfig": "/k"}),
        ("-kubeconfig /k", {"kubeconfig": "/k"}),
        ("--cloudconfig=/etc/kubernetes/azure.json", {"cloudconfig": "/etc/kubernetes/azure.json"}),
        ("--forceNamespaced", {"namespaced": True}),
        ("--identity-grace-period=5m", {"grace_s": 300.0}),
        ("--identity-grace-period=0", {"grace_s": 0.0}),
        ("--dry-run", {"dry_run": True}),
        ("-forceNamespaced=true", {"namespaced": True}),
        ("--syncRetryDuration=1h30m", {"replan_interval_s": 5400.0}),
        ("--leader-election-instance=mic-0", {"lease_identity": "mic-0"}),
        ("--leader-election-namespace=a", {"lease_namespace": "a"}),
        ("--leader-election-name=b", {"lease_name": "b"}),
        ("--leader-election-duration=1s", {"lease_duration_s": 1.0}),
        ("--http-probe-port=0", {"probe_port": 0}),
        ("--prometheus-port=9000", {"metrics_port": 9000}),
        ("--createDeleteBatch=1", {"concurrent_writes": 1}),
        ("--clientQps=0.5", {"api_requests_per_s": 0.5, "api_burst": 1}),
        ("--clientQps=12.9", {"api_requests_per_s": 12.9, "api_burst": 12}),
        ("--clientQps=0", {}),
        ("--config-map-name=c", {"config_map_name": "c"}),
        ("--type-upgrade-status-key=k", {"type_upgrade_key": "k"}),
        ("--enable-type-upgrade=false", {"type_upgrade": False}),
        ("--update-user-msi-max-retry=0", {"host_retries": 0}),
        ("--update-user-msi-retry-interval=500ms", {"host_retry_interval_s": 0.5}),
        ("--identity-assignment-reconcile-interval=0", {"drift_interval_s": 0.0}),
        ("--custom-user-agent=me", {"custom_user_agent": "me"}),
        ("--log-format=json -v=6", {"log": LogOptions(as_json=True, verbosity=6)}),
        ("--add_dir_header --skip_headers", {"log": LogOptions(with_headers=False, with_directory=True)}),
        ("--logtostderr --alsologtostderr=false --stderrthreshold=2", {}),
        (
            "--enableProfile",
            {"warnings": ("--enableProfile=true has no effect: py-spy profiles this process without it",)},
        ),
        (
            "--enableScaleFeatures=true",
            {"warnings": ("--enableScaleFeatures=true has no effect: deprecated: they are always on",)},
        ),
        ("--log_file=/f", {"warnings": ("--log_file=/f has no effect: the log goes to stderr",)}),
    ],
)
def test_a_flag_changes_its_value_and_no_other(line: str, changed: dict[str, object]) -> None:
    assert parse(line.split(), ENVIRON) == replace(DEFAULT, **changed)


def test_immutable_ids_are_trimmed_and_folded() -> None:
    config = parse(["--immutable-user-msis", "AB-1,, cd-2 ,"], ENVIRON)

    assert config == replace(DEFAULT, immutable_ids=frozenset({"ab-1", "cd-2"}))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--syncRetryDuration=0", "--syncRetryDuration=0: must be more than 0"),
        ("--leader-election-namespace=", "--leader-election-namespace=: must not be empty"),
        ("--leader-election-name=", "--leader-election-name=: must not be empty"),
        ("--leader-election-duration=999ms", "--leader-election-duration=999ms: must be 1s or more"),
        ("--leader-election-duration=-15s", "--leader-election-duration=-15s: must be 0 or more"),
        ("--http-probe-port=http", "--http-probe-port=http: must be a port, such as --http-probe-port=8080"),
        ("--prometheus-port=70000", "--prometheus-port=70000: must be a port, such as --prometheus-port=8888"),
        ("--prometheus-port=8080", "--prometheus-port=8080: --http-probe-port has this port too"),
        ("--createDeleteBatch=0", "--createDeleteBatch=0: must be 1 or more"),
        ("--clientQps=-1", "--clientQps=-1: must be 0 or more"),
        ("--config-map-name=", "--config-map-name=: must not be empty"),
        ("--type-upgrade-status-key=", "--type-upgrade-status-key=: must not be empty"),
        ("--update-user-msi-max-retry=-1", "--update-user-msi-max-retry=-1: must be 0 or more"),
        ("--update-user-msi-retry-interval=-1s", "--update-user-msi-retry-interval=-1s: must be 0 or more"),
        ("--identity-assignment-reconcile-interval=-3m", "--identity-assignment-reconcile-interval=-3m: must be 0"),
        ("--log-format=xml", "--log-format=xml: must be text or json"),
        ("--v=-1", "--v=-1: must be 0 or more"),
    ],
)
def test_a_value_that_cannot_work_is_refused(line: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(line.split(), ENVIRON)

    assert str(caught.value).startswith(message)
    assert caught.value.usage.startswith("Usage of mic:")


@pytest.mark.parametrize(
    ("value", "namespaced"), [("true", True), ("True", False), ("1", False), ("", False), ("false", False)]
)
def test_only_the_word_true_in_the_environment_switches_namespaced_mode_on(value: str, namespaced: bool) -> None:
    assert parse([], {**ENVIRON, "FORCENAMESPACED": value}).namespaced is namespaced


@pytest.mark.parametrize("environ", [{}, {"MIC_POD_NAMESPACE": ""}], ids=["unset", "empty"])
def test_the_pods_namespace_is_required_and_its_absence_explained(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=r"MIC_POD_NAMESPACE is empty: set it .*metadata\.namespace"):
        parse([], environ)


def test_the_version_is_told_without_any_environment() -> None:
    with pytest.raises(
        TextRequested, match=r"^MIC Version: v\S+ - NMI Version: v\S+ - Commit: \S+ - Date: \S+$"
    ) as told:
        parse(["--version", "--createDeleteBatch=0"], {})

    assert (told.value.exit_code, told.value.on_stderr) == (0, False)
