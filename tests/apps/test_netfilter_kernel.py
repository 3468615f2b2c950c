"""What NMI's interception reads from the kernel, and the one setting that it needs there."""

import os
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from apps.nmi.netfilter.firewall import Iptables
from apps.nmi.netfilter.route_localnet import ensure_route_localnet
from apps.nmi.netfilter.routing import parsed, read_routing
from podidentity_core.errors import RefusedError
from tests.apps.kernel import FIB_TRIE, IF_INET6, Kernel


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path / "proc")


@pytest.mark.parametrize(
    ("address", "interface"),
    [
        ("10.244.0.7", "cni0"),
        ("10.244.0.254", "cni0"),
        ("10.240.0.11", "azv1"),
        ("10.240.0.12", "azv2"),
        ("10.240.0.13", "eth0"),
        ("10.240.0.4", None),
        ("10.245.0.7", None),
        ("192.0.2.7", None),
    ],
    ids=[
        "bridge",
        "bridge, last address",
        "host route within the node's subnet, the lower metric",
        "host route, the only one that is up",
        "the node's subnet",
        "the node itself",
        "refused by a route",
        "default route",
    ],
)
def test_the_interface_towards_an_address_is_the_most_specific_routes(
    kernel: Kernel, address: str, interface: str | None
) -> None:
    assert read_routing(kernel.proc).interface_towards(IPv4Address(address)) == interface


def test_the_nodes_own_addresses_are_those_of_both_families() -> None:
    own = parsed("", FIB_TRIE, IF_INET6).own

    assert sorted(map(str, own)) == ["10.240.0.4", "127.0.0.1", "::1", "fd00:10::4"]


def test_a_kernel_without_ipv6_has_no_addresses_of_it(kernel: Kernel) -> None:
    (kernel.proc / "net/if_inet6").unlink()

    assert {address.version for address in read_routing(kernel.proc).own} == {4}


BRIDGED = ("10.244.0.7", "10.244.0.8")
ROUTED = ("10.240.0.11", "10.240.0.12")
NO_PODS = ()


def test_route_localnet_that_is_set_stays_untouched(kernel: Kernel) -> None:
    kernel.set_route_localnet("all")
    os.utime(kernel.route_localnet("all"), (1, 1))

    ensure_route_localnet(NO_PODS, kernel.proc)

    assert kernel.route_localnet("all").stat().st_mtime == 1


@pytest.mark.parametrize("pods", [NO_PODS, BRIDGED, ROUTED])
def test_route_localnet_is_set_if_permitted(kernel: Kernel, pods: tuple[str, ...]) -> None:
    ensure_route_localnet(pods, kernel.proc)

    assert kernel.route_localnet("all").read_text() == "1\n"


@pytest.mark.parametrize(
    ("pods", "with_setting"),
    [
        (NO_PODS, ["cni0"]),
        (BRIDGED, ["cni0"]),
        (ROUTED, ["azv1", "azv2"]),
        ((*BRIDGED, *ROUTED), ["cni0", "azv1", "azv2"]),
        (("10.240.0.4", *BRIDGED), ["cni0"]),
        (("10.240.0.4",), ["cni0"]),
        (("192.0.2.7", "fd00:244::7", "010.1.1.1", ""), ["azv1"]),
    ],
    ids=[
        "no pod known: any interface",
        "one bridge",
        "one interface per pod",
        "both",
        "a pod in the node's own network counts not",
        "only pods in the node's own network: any interface",
        "no pod whose way is known: any interface",
    ],
)
def test_the_setting_of_the_interfaces_of_pods_is_enough(
    kernel: Kernel, pods: tuple[str, ...], with_setting: list[str]
) -> None:
    kernel.forbid_writing()
    for name in with_setting:
        kernel.set_route_localnet(name)

    ensure_route_localnet(pods, kernel.proc)


@pytest.mark.parametrize(
    ("pods", "with_setting", "lacking"),
    [
        (NO_PODS, ["lo", "default"], "every interface"),
        (BRIDGED, ["eth0", "azv1"], "cni0"),
        (ROUTED, ["cni0"], "azv1, azv2"),
        (ROUTED, ["azv1"], "azv2"),
        ((*BRIDGED, *ROUTED, "10.240.0.13"), [], "azv1, azv2, cni0 and 1 others"),
    ],
)
def test_route_localnet_that_cannot_be_set_names_interfaces_and_remedy(
    kernel: Kernel, pods: tuple[str, ...], with_setting: list[str], lacking: str
) -> None:
    kernel.forbid_writing()
    for name in with_setting:
        kernel.set_route_localnet(name)

    with pytest.raises(
        RefusedError, match=rf"also for {lacking}, and .*: sysctl -w net\.ipv4\.conf\.all\.route_localnet=1$"
    ):
        ensure_route_localnet(pods, kernel.proc)


def test_a_kernel_without_ipv4_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="No such file or directory"):
        Iptables(4, proc=tmp_path).ensure_route_localnet(NO_PODS)
