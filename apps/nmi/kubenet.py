"""Whether the node's network lets a pod take another pod's address."""

from __future__ import annotations

from pathlib import Path

from podidentity_core.errors import ConfigurationError

_MARK = "--network-plugin=kubenet"


def refuse_kubenet(kubelet_config: str) -> None:
    """Read the kubelet's settings; on kubenet, ARP spoofing gives a pod any identity of its node.

    Source: aad-pod-identity pkg/utils/utils.go:30.

    Raises:
        ConfigurationError: when the node uses kubenet, or the file cannot be read.
    """
    try:
        text = Path(kubelet_config).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigurationError(
            f"--kubelet-config: cannot read {kubelet_config}: {error.strerror}; mount the node's file there (an empty "
            "one will do), or pass --allow-network-plugin-kubenet to skip the check"
        ) from error
    if _MARK in text:
        raise ConfigurationError(
            f"{kubelet_config} has {_MARK}: on kubenet a pod can take another pod's address, and with it its identity. "
            "Use Azure CNI, or keep NET_RAW from all pods and pass --allow-network-plugin-kubenet"
        )
