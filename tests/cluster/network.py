"""Pod networks: a namespace for each pod, connected by a veth pair to the node's bridge.

The node is the network namespace in which the tests themselves run (see isolation.py). A pod's default
route leads to the bridge, so what it sends to 169.254.169.254 passes the node's PREROUTING chain with the
pod's own source address, as it does on a real node.
"""

from dataclasses import dataclass

from tests.cluster.isolation import run

BRIDGE = "cni0"
BRIDGE_ADDRESS = "10.244.0.1"
POD_PREFIX = "10.244.0."
NODE_ADDRESS = "10.240.0.4"
METADATA_ADDRESS = "169.254.169.254"
METADATA_ADDRESS_6 = "fd00:ec2::254"
NODE_ADDRESS_6 = "fd00:244::1"
POD_PREFIX_6 = "fd00:244::"


@dataclass(frozen=True, slots=True)
class PodNetwork:
    """A pod's network namespace and its address."""

    namespace: str
    address: str


def create_node_network() -> None:
    """Give the node its bridge, its address and the metadata address, both on `lo`."""
    run("ip", "address", "add", f"{NODE_ADDRESS}/32", "dev", "lo")
    run("ip", "address", "add", f"{METADATA_ADDRESS}/32", "dev", "lo")
    run("ip", "address", "add", f"{METADATA_ADDRESS_6}/128", "dev", "lo", "nodad")
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "address", "add", f"{BRIDGE_ADDRESS}/24", "dev", BRIDGE)
    run("ip", "address", "add", f"{NODE_ADDRESS_6}/64", "dev", BRIDGE, "nodad")
    run("ip", "link", "set", BRIDGE, "up")


def connect_pod(namespace: str, address: str) -> PodNetwork:
    """Create the network *namespace* of a pod with *address*, and connect it."""
    outside = "veth" + address.removeprefix(POD_PREFIX)
    inside = ("ip", "-n", namespace)
    run("ip", "netns", "add", namespace)
    run("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", namespace)
    run("ip", "link", "set", outside, "master", BRIDGE, "up")
    run(*inside, "link", "set", "lo", "up")
    run(*inside, "address", "add", f"{address}/24", "dev", "eth0")
    run(*inside, "link", "set", "eth0", "up")
    run(*inside, "route", "add", "default", "via", BRIDGE_ADDRESS)
    return PodNetwork(namespace, address)


def connect_ipv6(pod: PodNetwork) -> str:
    """Give a connected pod an IPv6 address too, with the same last number, and return it."""
    inside = ("ip", "-n", pod.namespace)
    address = POD_PREFIX_6 + pod.address.removeprefix(POD_PREFIX)
    run(*inside, "address", "add", f"{address}/64", "dev", "eth0", "nodad")
    run(*inside, "route", "add", "default", "via", NODE_ADDRESS_6)
    return address


def disconnect_pod(pod: PodNetwork) -> None:
    """Remove the pod's namespace and, at once, its link: the address may be used again when this returns."""
    run("ip", "link", "delete", "veth" + pod.address.removeprefix(POD_PREFIX))
    run("ip", "netns", "delete", pod.namespace)


def reset_redirections() -> None:
    """Remove what NMI left in the NAT tables, and forget the connections that it redirected."""
    for program in ("iptables", "ip6tables"):
        for change in ("--flush", "--delete-chain"):
            run(program, "--wait", "--table", "nat", change)
    run("conntrack", "--flush")
