"""Every value of the chart that becomes a flag: our own programs understand it, and do what it says."""

import re
from collections.abc import Sequence

import pytest

from tests.cluster.charts import container_of, defaults, mic_config, nested, nmi_config, rendered
from tests.cluster.manifests import CHART


def test_without_values_the_command_lines_are_the_originals() -> None:
    assert container_of(defaults(), "mic")["args"] == ["--cloudconfig=/etc/kubernetes/azure.json", "--logtostderr=true"]
    assert container_of(defaults(), "nmi")["args"] == [
        "--node=$(NODE_NAME)",
        "--http-probe-port=8085",
        "--enableScaleFeatures=true",
        "--metadata-header-required=true",
    ]


AGENT = 'team "a": $x, é'
USED_FOR_MIC: Sequence[tuple[str, object, str, object]] = [
    ("mic.logVerbosity", 5, "log.verbosity", 5),
    ("mic.loggingFormat", "json", "log.as_json", True),
    ("mic.leaderElection.instance", "mic-a", "lease_identity", "mic-a"),
    ("mic.leaderElection.namespace", "locks", "lease_namespace", "locks"),
    ("mic.leaderElection.name", "lock", "lease_name", "lock"),
    ("mic.leaderElection.duration", "1m30s", "lease_duration_s", 90.0),
    ("mic.probePort", 9080, "probe_port", 9080),
    ("mic.probePort", "9080", "probe_port", 9080),
    ("mic.prometheusPort", "9888", "metrics_port", 9888),
    ("mic.syncRetryDuration", "10m", "replan_interval_s", 600.0),
    ("mic.immutableUserMSIs", ["A-1", "b-2"], "immutable_ids", frozenset({"a-1", "b-2"})),
    ("mic.createDeleteBatch", 1_000_000, "concurrent_writes", 1_000_000),
    ("mic.createDeleteBatch", "7", "concurrent_writes", 7),
    ("mic.clientQps", 2.5, "api_requests_per_s", 2.5),
    ("mic.cloudConfig", "/etc/other.json", "cloudconfig", "/etc/other.json"),
    ("mic.updateUserMSIMaxRetry", 0, "host_retries", 0),
    ("mic.updateUserMSIRetryInterval", "500ms", "host_retry_interval_s", 0.5),
    ("mic.identityAssignmentReconcileInterval", "0s", "drift_interval_s", 0.0),
    ("mic.identityGracePeriod", "2m", "grace_s", 120.0),
    ("mic.dryRun", True, "dry_run", True),
    ("forceNamespaced", "true", "namespaced", True),
    ("forceNamespaced", True, "namespaced", True),
    ("customUserAgent", AGENT, "custom_user_agent", AGENT),
]
USED_FOR_NMI: Sequence[tuple[str, object, str, object]] = [
    ("nmi.logVerbosity", "6", "log.verbosity", 6),
    ("nmi.loggingFormat", "json", "log.as_json", True),
    ("nmi.ipTableUpdateTimeIntervalInSeconds", 30, "rule_interval_s", 30),
    ("nmi.micNamespace", "identity", "mic_namespace", "identity"),
    ("nmi.probePort", "8086", "probe_port", 8086),
    ("nmi.probePort", "", "probe_port", 8080),
    ("nmi.prometheusPort", 9091, "metrics_port", 9091),
    ("nmi.retryAttemptsForCreated", 2, "creation_wait_s", 10),
    ("nmi.retryAttemptsForAssigned", "0", "assignment_wait_s", 80),
    ("nmi.findIdentityRetryIntervalInSeconds", 1, "creation_wait_s", 16),
    ("nmi.enableScaleFeatures", False, "own_node_only", False),
    ("nmi.blockInstanceMetadata", True, "block_instance_metadata", True),
    ("nmi.metadataHeaderRequired", "false", "metadata_header_required", False),
    ("nmi.allowNetworkPluginKubenet", "true", "allow_kubenet", True),
    ("nmi.kubeletConfig", "/etc/sysconfig/kubelet", "kubelet_config", "/etc/sysconfig/kubelet"),
    ("nmi.setRetryAfterHeader", True, "retry_after_header", True),
    ("nmi.enableConntrackDeletion", False, "delete_conntrack", False),
    ("nmi.removeRulesOnExit", True, "remove_rules_on_exit", True),
    ("nmi.tokenCacheMaxAge", "0s", "longest_kept_s", 0.0),
    ("nmi.allowForeignSecrets", True, "allow_foreign_secrets", True),
    ("nmi.allowAdEndpoints", "true", "allow_ad_endpoints", True),
    ("nmi.hostTokenEndpoint", False, "host_token", False),
    ("operationMode", "managed", "managed", True),
    ("operationMode", "managed", "namespaced", True),
    ("forceNamespaced", "true", "namespaced", True),
    ("customUserAgent", AGENT, "custom_user_agent", AGENT),
]


def attribute(config: object, path: str) -> object:
    for name in path.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize(("name", "value", "setting", "expected"), USED_FOR_MIC)
def test_mic_understands_a_value(name: str, value: object, setting: str, expected: object) -> None:
    config = mic_config(rendered(nested(name, value)))

    assert attribute(config, setting) == expected != attribute(mic_config(defaults()), setting)
    assert config.warnings == mic_config(defaults()).warnings


@pytest.mark.parametrize(("name", "value", "setting", "expected"), USED_FOR_NMI)
def test_nmi_understands_a_value(name: str, value: object, setting: str, expected: object) -> None:
    config = nmi_config(rendered(nested(name, value)))

    assert attribute(config, setting) == expected != attribute(nmi_config(defaults()), setting)
    assert config.warnings == ()


PASSED = re.compile(r'\(list "[\w-]+" .*?(?:\$(mic|nmi)|\.Values)\.([\w.]+)')


@pytest.mark.parametrize(
    ("file", "rows"), [("mic-deployment.yaml", USED_FOR_MIC), ("nmi-daemonset.yaml", USED_FOR_NMI)]
)
def test_the_tables_have_every_value_that_becomes_a_flag(
    file: str, rows: Sequence[tuple[str, object, str, object]]
) -> None:
    text = (CHART / "templates" / file).read_text()
    values = {".".join(part for part in found.groups() if part) for found in PASSED.finditer(text)}

    assert len(values) > 10
    assert values <= {name for name, _, _, _ in rows}


@pytest.mark.parametrize("program", ["mic", "nmi"])
def test_ports_and_probes_follow_their_values(program: str) -> None:
    objects = rendered({program: {"probePort": "7001", "prometheusPort": 7002}})
    container = container_of(objects, program)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}

    probed = container["livenessProbe"]["httpGet"]["port"]

    assert (ports.get(probed, probed), ports["metrics"]) == (7001, 7002)
