"""NMI's command line: the original's flags and defaults, and what is refused."""

from dataclasses import replace

import pytest

from apps.goflags import TextRequested, UsageError
from apps.klog import LogOptions
from apps.nmi.flags import FLAGS, NmiConfig, parse

ORIGINAL = """
version bool False
nmi-listen-address string '127.0.0.1'
nmi-port string '2579'
metadata-ip string '169.254.169.254'
metadata-port string '80'
node string ''
ipt-update-interval-sec int 60
forceNamespaced bool False
MICNamespace string 'default'
http-probe-port string '8080'
retry-attempts-for-created int 16
retry-attempts-for-assigned int 4
find-identity-retry-interval int 5
enableProfile bool False
enableScaleFeatures bool True
block-instance-metadata bool False
metadata-header-required bool True
prometheus-port string '9090'
operation-mode string 'standard'
allow-network-plugin-kubenet bool False
kubelet-config string '/etc/default/kubelet'
set-retry-after-header bool False
enable-conntrack-deletion bool True
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
interception bool True
remove-rules-on-exit bool False
host-token-endpoint bool True
token-cache-max-age duration 86400.0
allow-ad-endpoints bool False
allow-foreign-secrets bool False
"""
"""The flags that the original does not have."""

DEFAULT = NmiConfig(
    kubeconfig="",
    node="node-1",
    listen_address="127.0.0.1",
    port=2579,
    metadata_address="169.254.169.254",
    metadata_port=80,
    probe_port=8080,
    metrics_port=9090,
    interception=True,
    rule_interval_s=60,
    managed=False,
    namespaced=False,
    mic_namespace="default",
    creation_wait_s=80,
    assignment_wait_s=100,
    own_node_only=True,
    block_instance_metadata=False,
    metadata_header_required=True,
    allow_kubenet=False,
    kubelet_config="/etc/default/kubelet",
    retry_after_header=False,
    remove_rules_on_exit=False,
    delete_conntrack=True,
    host_token=True,
    longest_kept_s=86_400,
    authority="",
    allow_ad_endpoints=False,
    allow_foreign_secrets=False,
    custom_user_agent="",
    log=LogOptions(),
    warnings=(),
)


def test_flags_kinds_and_defaults_are_the_originals_but_for_our_own_and_conntrack() -> None:
    ours = {f"{flag.name} {flag.kind} {flag.default!r}" for flag in FLAGS}

    assert ours == {*ORIGINAL.strip().splitlines(), *OWN.strip().splitlines()}
    assert len(FLAGS) == len(ours)


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("", {}),
        ("--nmi-listen-address=0.0.0.0 --nmi-port 2580", {"listen_address": "0.0.0.0", "port": 2580}),
        ("--metadata-ip=127.0.0.9 --metadata-port=81", {"metadata_address": "127.0.0.9", "metadata_port": 81}),
        ("--ipt-update-interval-sec=1", {"rule_interval_s": 1}),
        ("--forceNamespaced", {"namespaced": True}),
        ("--MICNamespace=kube-system", {"mic_namespace": "kube-system"}),
        ("--http-probe-port=8085", {"probe_port": 8085}),
        ("--prometheus-port=0", {"metrics_port": 0}),
        ("--retry-attempts-for-created=3", {"creation_wait_s": 15, "assignment_wait_s": 35}),
        ("--retry-attempts-for-assigned=1", {"assignment_wait_s": 85}),
        ("--find-identity-retry-interval=1", {"creation_wait_s": 16, "assignment_wait_s": 20}),
        ("--find-identity-retry-interval=0", {"creation_wait_s": 0, "assignment_wait_s": 0}),
        ("--enableScaleFeatures=false", {"own_node_only": False}),
        ("--block-instance-metadata", {"block_instance_metadata": True}),
        ("--metadata-header-required=false", {"metadata_header_required": False}),
        ("--operation-mode=Standard", {}),
        ("--allow-network-plugin-kubenet=true", {"allow_kubenet": True}),
        ("--kubelet-config=/etc/kubelet", {"kubelet_config": "/etc/kubelet"}),
        ("--set-retry-after-header", {"retry_after_header": True}),
        ("--enable-conntrack-deletion=false", {"delete_conntrack": False}),
        ("--remove-rules-on-exit", {"remove_rules_on_exit": True}),
        ("--host-token-endpoint=false", {"host_token": False}),
        ("--token-cache-max-age=1h30m", {"longest_kept_s": 5400}),
        ("--token-cache-max-age=0", {"longest_kept_s": 0}),
        ("--allow-ad-endpoints", {"allow_ad_endpoints": True}),
        ("--allow-foreign-secrets", {"allow_foreign_secrets": True}),
        (
            "--operation-mode=MANAGED --forceNamespaced",
            {"managed": True, "namespaced": True, "creation_wait_s": 0, "assignment_wait_s": 0},
        ),
        (
            "--nmi-listen-address=2001:DB8::1 --metadata-ip=fd00::1",
            {"listen_address": "2001:db8::1", "metadata_address": "fd00::1"},
        ),
        ("--custom-user-agent=me", {"custom_user_agent": "me"}),
        ("--log-format=json -v5", {"log": LogOptions(as_json=True, verbosity=5)}),
        ("--logtostderr=true", {}),
        (
            "--enableProfile",
            {"warnings": ("--enableProfile=true has no effect: py-spy profiles this process without it",)},
        ),
        ("--vmodule=a=1", {"warnings": ("--vmodule=a=1 has no effect: --v is for all modules",)}),
    ],
)
def test_a_flag_changes_its_value_and_no_other(line: str, changed: dict[str, object]) -> None:
    assert parse(["--node=node-1", *line.split()], {}) == replace(DEFAULT, **changed)


def test_the_manifests_command_line_is_understood() -> None:
    manifest = "--node=node-1 --http-probe-port=8085 --enableScaleFeatures=true --metadata-header-required=true"

    assert parse(manifest.split(), {"NODE_NAME": "x", "HOST_IP": "y"}) == replace(DEFAULT, probe_port=8085)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--node=", "--node=: must be the node's name: write --node=$(NODE_NAME), and set the variable NODE_NAME"),
        ("--node=$(NODE_NAME)", "--node=$(NODE_NAME): must be the node's name: write"),
        ("--nmi-listen-address=", "--nmi-listen-address=: must be an IP address, such as 127.0.0.1"),
        ("--nmi-listen-address=localhost", "--nmi-listen-address=localhost: must be an IP address"),
        ("--metadata-ip=169.254.169", "--metadata-ip=169.254.169: must be an IP address, such as 169.254.169.254"),
        ("--nmi-port=x", "--nmi-port=x: must be a port, such as --nmi-port=2579"),
        ("--metadata-port=0", "--metadata-port=0: must be a port, such as --metadata-port=80"),
        ("--http-probe-port=65536", "--http-probe-port=65536: must be a port"),
        ("--prometheus-port=", "--prometheus-port=: must be a port"),
        ("--http-probe-port=2579", "--http-probe-port=2579: --nmi-port has this port too"),
        ("--prometheus-port=8080", "--prometheus-port=8080: --http-probe-port has this port too"),
        ("--ipt-update-interval-sec=0", "--ipt-update-interval-sec=0: must be 1 or more"),
        ("--retry-attempts-for-created=-1", "--retry-attempts-for-created=-1: must be 0 or more"),
        ("--retry-attempts-for-assigned=-1", "--retry-attempts-for-assigned=-1: must be 0 or more"),
        ("--find-identity-retry-interval=-5", "--find-identity-retry-interval=-5: must be 0 or more"),
        ("--operation-mode=manged", "--operation-mode=manged: must be standard or managed"),
        ("--operation-mode=", "--operation-mode=: must be standard"),
        (
            "--operation-mode=Managed",
            "--operation-mode=Managed: managed needs the namespaced mode: add --forceNamespaced",
        ),
        ("--token-cache-max-age=-1s", "--token-cache-max-age=-1s: must be 0 or more"),
        ("--token-cache-max-age=5", "--token-cache-max-age=5: "),
        ("--log-format=x", "--log-format=x: must be text or json"),
        ("--host-ip=10.0.0.1", "unknown flag --host-ip=10.0.0.1: "),
        ("-node=x", "unknown flag -node=x: names of several letters take two dashes: write --node=x"),
    ],
)
def test_a_value_that_cannot_work_is_refused(line: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(["--node=node-1", *line.split()], {})

    assert str(caught.value).startswith(message)
    assert caught.value.usage.startswith("Usage of nmi:")


def test_a_missing_node_is_refused() -> None:
    with pytest.raises(UsageError, match="--node=: must be the node's name"):
        parse([], {"NODE_NAME": "node-1"})


@pytest.mark.parametrize(("value", "namespaced"), [("true", True), ("TRUE", False), ("1", False), ("", False)])
def test_only_the_word_true_in_the_environment_switches_namespaced_mode_on(value: str, namespaced: bool) -> None:
    assert parse(["--node=n"], {"FORCENAMESPACED": value}).namespaced is namespaced


def test_the_kubeconfig_comes_from_the_environment() -> None:
    assert parse(["--node=n"], {"KUBECONFIG": "/k"}).kubeconfig == "/k"


def test_the_authority_of_the_cloud_comes_from_the_environment_as_for_azure_sdks() -> None:
    assert parse(["--node=n"], {"AZURE_AUTHORITY_HOST": "https://login.microsoftonline.us"}).authority == (
        "https://login.microsoftonline.us"
    )


def test_the_version_is_told_without_a_node() -> None:
    with pytest.raises(
        TextRequested, match=r"^MIC Version: v\S+ - NMI Version: v\S+ - Commit: \S+ - Date: \S+$"
    ) as told:
        parse(["--version"], {})

    assert (told.value.exit_code, told.value.on_stderr) == (0, False)
