"""MIC's command line: the original's flags, and the values that the program works with.

Source: aad-pod-identity cmd/mic/main.go.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from apps import klog, version
from apps.goflags import GO, Arguments, Flag, TextRequested
from apps.goflags import parse as parse_arguments
from podidentity_core.errors import ConfigurationError

_DEFAULT_QPS = 200.0
"""The original's 5 let a roll-out of 1,000 pods wait 400 s for its own client; servers have a fairness of their own."""

FLAGS: Sequence[Flag] = (
    Flag("kubeconfig", "string", "", "path of a kubeconfig; empty: the cluster that the pod runs in"),
    Flag("cloudconfig", "string", "", "path of azure.json; empty: environment variables such as TENANT_ID"),
    Flag("forceNamespaced", "bool", False, "pods use identities of their own namespace only"),
    Flag("version", "bool", False, "print the version and end"),
    Flag("syncRetryDuration", "duration", 3600.0, "time between plans of everything, changes or not"),
    Flag("leader-election-instance", "string", "", "this process's name in the election; empty: the host's name"),
    Flag("leader-election-namespace", "string", "default", "namespace of the election's lock"),
    Flag("leader-election-name", "string", "aad-pod-identity-mic", "name of the election's lock"),
    Flag("leader-election-duration", "duration", 15.0, "how long a leader may be silent before another takes over"),
    Flag("http-probe-port", "string", "8080", "port of /healthz, on all interfaces"),
    Flag("prometheus-port", "string", "8888", "port of /metrics, on all interfaces"),
    Flag(
        "enableProfile",
        "bool",
        False,
        "py-spy profiles this process without it",
        effect=False,
    ),
    Flag("enableScaleFeatures", "bool", False, "deprecated: they are always on", effect=False),
    Flag("createDeleteBatch", "int", 20, "pods whose assignments are written at a time"),
    Flag("clientQps", "float", _DEFAULT_QPS, "writes of AzureAssignedIdentities a second; 0: the default"),
    Flag(
        "immutable-user-msis",
        "string",
        "",
        "client or resource IDs, comma-separated, that are never removed from a host",
    ),
    Flag("config-map-name", "string", "aad-pod-identity-config", "ConfigMap that remembers the type upgrade"),
    Flag("type-upgrade-status-key", "string", "type-upgrade-status", "key in that ConfigMap"),
    Flag("enable-type-upgrade", "bool", True, "mark in the ConfigMap that no object has a spelling of before 1.6"),
    Flag("update-user-msi-max-retry", "int", 2, "further attempts without the identities that a host refused"),
    Flag("update-user-msi-retry-interval", "duration", 1.0, "pause before each of them"),
    Flag("identity-assignment-reconcile-interval", "duration", 180.0, "time between drift checks; 0: none"),
    Flag("identity-grace-period", "duration", 60.0, "how long an identity stays on a host that nobody needs there"),
    Flag("dry-run", "bool", False, "watch, plan and log what would be done; write nothing"),
    Flag("custom-user-agent", "string", "", "text after the user agent towards Azure and Kubernetes"),
    *klog.FLAGS,
)


@dataclass(frozen=True, slots=True)
class MicConfig:
    """What MIC was told at its start. Empty texts mean what the flag's help says; ports of 0 mean a free one."""

    kubeconfig: str
    cloudconfig: str
    pod_namespace: str
    namespaced: bool
    replan_interval_s: float
    drift_interval_s: float
    """0: no drift checks."""
    lease_identity: str
    lease_namespace: str
    lease_name: str
    lease_duration_s: float
    probe_port: int
    metrics_port: int
    concurrent_writes: int
    api_requests_per_s: float
    api_burst: int
    immutable_ids: frozenset[str]
    """In lower case."""
    host_retries: int
    host_retry_interval_s: float
    grace_s: float
    dry_run: bool
    config_map_name: str
    type_upgrade_key: str
    type_upgrade: bool
    custom_user_agent: str
    log: klog.LogOptions
    warnings: tuple[str, ...]
    """What to log at start: settings that change nothing."""


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> MicConfig:
    """Read the command line, without the program's name, and the environment.

    Raises UsageError for a wrong flag, ConfigurationError for a wrong variable, TextRequested for `--help` and
    `--version`.
    """
    given = parse_arguments("mic", FLAGS, argv, GO)
    if given.switch("version"):
        raise TextRequested(version.installed().line())
    qps = given.number("clientQps") or _DEFAULT_QPS
    config = MicConfig(
        kubeconfig=given.text("kubeconfig"),
        cloudconfig=given.text("cloudconfig"),
        pod_namespace=_pod_namespace(environ),
        namespaced=given.switch("forceNamespaced") or environ.get("FORCENAMESPACED") == "true",
        replan_interval_s=given.number("syncRetryDuration", or_zero=False),
        drift_interval_s=given.number("identity-assignment-reconcile-interval"),
        lease_identity=given.text("leader-election-instance") or socket.gethostname(),
        lease_namespace=given.nonempty("leader-election-namespace"),
        lease_name=given.nonempty("leader-election-name"),
        lease_duration_s=_lease_duration_s(given),
        probe_port=given.port("http-probe-port"),
        metrics_port=given.port("prometheus-port"),
        concurrent_writes=given.whole("createDeleteBatch", at_least=1),
        api_requests_per_s=qps,
        api_burst=max(1, int(qps)),  # the original's was 0 below one a second, and then it did not start
        immutable_ids=_ids(given.text("immutable-user-msis")),
        host_retries=given.whole("update-user-msi-max-retry"),
        host_retry_interval_s=given.number("update-user-msi-retry-interval"),
        grace_s=given.number("identity-grace-period"),
        dry_run=given.switch("dry-run"),
        config_map_name=given.nonempty("config-map-name"),
        type_upgrade_key=given.nonempty("type-upgrade-status-key"),
        type_upgrade=given.switch("enable-type-upgrade"),
        custom_user_agent=given.text("custom-user-agent"),
        log=klog.options(given),
        warnings=tuple(given.without_effect()),
    )
    given.refuse_shared_ports("http-probe-port", "prometheus-port")
    return config


def _pod_namespace(environ: Mapping[str, str]) -> str:
    if namespace := environ.get("MIC_POD_NAMESPACE", ""):
        return namespace
    raise ConfigurationError(
        "environment variable MIC_POD_NAMESPACE is empty: set it to MIC's own namespace "
        "(in the Deployment: valueFrom.fieldRef.fieldPath: metadata.namespace)"
    )


def _lease_duration_s(given: Arguments) -> float:
    duration_s = given.number("leader-election-duration")
    if duration_s < 1:  # the lock's record has whole seconds
        raise given.refused("leader-election-duration", "must be 1s or more")
    return duration_s


def _ids(listed: str) -> frozenset[str]:
    return frozenset(item.strip().lower() for item in listed.split(",") if item.strip())
