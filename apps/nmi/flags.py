"""NMI's command line: the original's flags, and the values that the program works with.

Source: aad-pod-identity cmd/nmi/main.go.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from apps import klog, version
from apps.goflags import PFLAG, Arguments, Flag, TextRequested
from apps.goflags import parse as parse_arguments

_DAY_S = 86_400.0

FLAGS: Sequence[Flag] = (
    Flag("version", "bool", False, "print the version and end"),
    Flag("nmi-listen-address", "string", "127.0.0.1", "address to listen on"),
    Flag("nmi-port", "string", "2579", "port to listen on"),
    Flag("metadata-ip", "string", "169.254.169.254", "address of the metadata service, which is intercepted"),
    Flag("metadata-port", "string", "80", "port of the metadata service"),
    Flag("node", "string", "", "name of the node that this process serves"),
    Flag("ipt-update-interval-sec", "int", 60, "seconds between checks of the iptables rules"),
    Flag("forceNamespaced", "bool", False, "pods use identities of their own namespace only"),
    Flag("MICNamespace", "string", "default", "namespace of MIC, whose pods get the node's own tokens"),
    Flag("http-probe-port", "string", "8080", "port of /healthz, on all interfaces"),
    Flag("retry-attempts-for-created", "int", 16, "intervals that a request waits for its assignment to appear"),
    Flag("retry-attempts-for-assigned", "int", 4, "intervals that it waits longer once there is one"),
    Flag("find-identity-retry-interval", "int", 5, "seconds of one interval of a request's wait"),
    Flag(
        "enableProfile",
        "bool",
        False,
        "py-spy profiles this process without it",
        effect=False,
    ),
    Flag("enableScaleFeatures", "bool", True, "read the assignments of this node only"),
    Flag("block-instance-metadata", "bool", False, "refuse requests for /metadata/instance"),
    Flag("metadata-header-required", "bool", True, "refuse requests without the header Metadata: true"),
    Flag("prometheus-port", "string", "9090", "port of /metrics, on all interfaces"),
    Flag("operation-mode", "string", "standard", "standard: MIC assigns the identities; managed: somebody else has"),
    Flag("allow-network-plugin-kubenet", "bool", False, "run although pods can take each other's address"),
    Flag("kubelet-config", "string", "/etc/default/kubelet", "file that says whether the node uses kubenet"),
    Flag("set-retry-after-header", "bool", False, "answer 503 and Retry-After while a pod has no identity"),
    Flag("interception", "bool", True, "write iptables rules; false: requests come here in another way (ours)"),
    Flag("remove-rules-on-exit", "bool", False, "at the end take the iptables rules out: pods reach the real service"),
    Flag("enable-conntrack-deletion", "bool", True, "end connections to the metadata service made before the rules"),
    Flag("host-token-endpoint", "bool", True, "serve /host/token to programs of the node"),
    Flag("token-cache-max-age", "duration", _DAY_S, "how long a token is kept at most; 0: no token is kept"),
    Flag("allow-ad-endpoints", "bool", False, "send credentials of service principals to any spec.adEndpoint"),
    Flag("allow-foreign-secrets", "bool", False, "let an AzureIdentity use Secrets of other namespaces"),
    Flag("custom-user-agent", "string", "", "text after the user agent"),
    *klog.FLAGS,
)


@dataclass(frozen=True, slots=True)
class NmiConfig:
    """What NMI was told at its start; ports of 0 mean a free one."""

    kubeconfig: str
    """Empty: the cluster that the pod runs in."""
    node: str
    listen_address: str
    port: int
    metadata_address: str
    metadata_port: int
    probe_port: int
    metrics_port: int
    interception: bool
    rule_interval_s: float
    managed: bool
    namespaced: bool
    mic_namespace: str
    creation_wait_s: float
    """How long a request waits while MIC has not created an assignment for it."""
    assignment_wait_s: float
    """How long it waits at most, from its beginning, once there is one."""
    own_node_only: bool
    block_instance_metadata: bool
    metadata_header_required: bool
    allow_kubenet: bool
    kubelet_config: str
    retry_after_header: bool
    remove_rules_on_exit: bool
    delete_conntrack: bool
    host_token: bool
    longest_kept_s: float
    """How long a token is kept at most; 0: not at all."""
    authority: str
    """The cloud's Entra ID; empty: the public one."""
    allow_ad_endpoints: bool
    allow_foreign_secrets: bool
    custom_user_agent: str
    log: klog.LogOptions
    warnings: tuple[str, ...]
    """What to log at start: settings that change nothing."""


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> NmiConfig:
    """Read the command line, without the program's name, and the environment.

    Raises UsageError for a wrong flag, TextRequested for `--help` and `--version`.
    """
    given = parse_arguments("nmi", FLAGS, argv, PFLAG)
    if given.switch("version"):
        raise TextRequested(version.installed().line())
    namespaced = given.switch("forceNamespaced") or environ.get("FORCENAMESPACED") == "true"
    managed = _is_managed(given, namespaced=namespaced)
    for_created, for_assigned, interval_s = (given.whole(name) for name in _WAITING)
    config = NmiConfig(
        kubeconfig=environ.get("KUBECONFIG", ""),
        node=_node(given),
        listen_address=_address(given, "nmi-listen-address"),
        port=given.port("nmi-port"),
        metadata_address=_address(given, "metadata-ip"),
        metadata_port=given.port("metadata-port", at_least=1),
        probe_port=given.port("http-probe-port"),
        metrics_port=given.port("prometheus-port"),
        interception=given.switch("interception"),
        rule_interval_s=given.whole("ipt-update-interval-sec", at_least=1),
        managed=managed,
        namespaced=namespaced,
        mic_namespace=given.text("MICNamespace"),
        creation_wait_s=0.0 if managed else for_created * interval_s,
        assignment_wait_s=0.0 if managed else (for_created + for_assigned) * interval_s,
        own_node_only=given.switch("enableScaleFeatures"),
        block_instance_metadata=given.switch("block-instance-metadata"),
        metadata_header_required=given.switch("metadata-header-required"),
        allow_kubenet=given.switch("allow-network-plugin-kubenet"),
        kubelet_config=given.text("kubelet-config"),
        retry_after_header=given.switch("set-retry-after-header"),
        remove_rules_on_exit=given.switch("remove-rules-on-exit"),
        delete_conntrack=given.switch("enable-conntrack-deletion"),
        host_token=given.switch("host-token-endpoint"),
        longest_kept_s=given.number("token-cache-max-age", or_zero=True),
        authority=environ.get("AZURE_AUTHORITY_HOST", ""),
        allow_ad_endpoints=given.switch("allow-ad-endpoints"),
        allow_foreign_secrets=given.switch("allow-foreign-secrets"),
        custom_user_agent=given.text("custom-user-agent"),
        log=klog.options(given),
        warnings=tuple(given.without_effect()),
    )
    given.refuse_shared_ports("nmi-port", "http-probe-port", "prometheus-port")
    return config


_WAITING = ("retry-attempts-for-created", "retry-attempts-for-assigned", "find-identity-retry-interval")


def _is_managed(given: Arguments, *, namespaced: bool) -> bool:
    mode = given.text("operation-mode").lower()
    if mode not in ("standard", "managed"):
        raise given.refused("operation-mode", "must be standard or managed")
    if mode == "managed" and not namespaced:
        raise given.refused(
            "operation-mode", "managed needs the namespaced mode: add --forceNamespaced (or FORCENAMESPACED=true)"
        )
    return mode == "managed"


def _node(given: Arguments) -> str:
    node = given.text("node")
    if not node or node.startswith("$("):  # Kubernetes leaves $(NAME) as it is when there is no such variable
        raise given.refused(
            "node",
            "must be the node's name: write --node=$(NODE_NAME), and set the variable NODE_NAME in the DaemonSet "
            "(valueFrom.fieldRef.fieldPath: spec.nodeName)",
        )
    return node


def _address(given: Arguments, name: str) -> str:
    try:
        return str(ipaddress.ip_address(given.text(name)))
    except ValueError:
        raise given.refused(name, f"must be an IP address, such as {given.flags[name].default}") from None
