"""Whether the node's network lets a pod take another pod's address."""

from __future__ import annotations

from pathlib import Path

_MARK = "--network-plugin=kubenet"


def kubenet_fault(kubelet_config: str) -> str:
    """Read the kubelet's settings and return why NMI must not serve on this node, with the remedy, or "".

    On kubenet, ARP spoofing gives a pod any identity of its node. A file that cannot be read could say so, and is a
    fault too. Source: aad-pod-identity pkg/utils/utils.go:30, where either ends the program.
    """
    try:
        text = Path(kubelet_config).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return (
            f"--kubelet-config: cannot read {kubelet_config}: {error.strerror}; mount the node's file there (an empty "
            "one will do), or pass --allow-network-plugin-kubenet to skip the check"
        )
    if _MARK not in text:
        return ""
    return (
        f"{kubelet_config} has {_MARK}: on kubenet a pod can take another pod's address, and with it its identity. "
        "Use Azure CNI, or keep NET_RAW from all pods and pass --allow-network-plugin-kubenet"
    )
