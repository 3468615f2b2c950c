"""A stand-in for what the kernel of a node shows and takes in /proc, as far as NMI's interception goes there."""

import sys
from ipaddress import IPv4Network
from pathlib import Path

ROUTES = (  # interface, network, flags, metric
    ("eth0", "0.0.0.0/0", "0003", 100),
    ("eth0", "10.240.0.0/16", "0001", 100),
    ("cni0", "10.244.0.0/24", "0001", 0),
    ("azv1", "10.240.0.11/32", "0005", 0),
    ("azv2", "10.240.0.12/32", "0005", 0),
    ("old", "10.240.0.11/32", "0005", 50),
    ("down", "10.240.0.12/32", "0004", 0),
    ("*", "10.245.0.0/24", "0201", 0),
)
FIB_TRIE = """\
Local:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.240.0.0/16 2 0 2
        |-- 10.240.0.0
           /16 link UNICAST
        |-- 10.240.0.4
           /32 host LOCAL
        |-- 10.240.255.255
           /32 link BROADCAST
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.0
           /8 host LOCAL
        |-- 127.0.0.1
           /32 host LOCAL
"""
IF_INET6 = """\
00000000000000000000000000000001 01 80 10 80       lo
fd000010000000000000000000000004 02 40 00 80     eth0
"""


def route_table() -> str:
    lines = ["Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT"]
    for interface, text, flags, metric in ROUTES:
        network = IPv4Network(text)
        destination, mask = (
            f"{int.from_bytes(address.packed, sys.byteorder):08X}"
            for address in (network.network_address, network.netmask)
        )
        lines.append(f"{interface}\t{destination}\t00000000\t{flags}\t0\t0\t{metric}\t{mask}\t0\t0\t0")
    return "\n".join((*lines, ""))


class Kernel:
    """A folder in the place of /proc: a node with a bridge for pods, and pods with an interface each."""

    def __init__(self, proc: Path) -> None:
        self.proc = proc
        self._conf = proc / "sys/net/ipv4/conf"
        for name in ("all", "default", "lo", "eth0", "cni0", "azv1", "azv2"):
            (self._conf / name).mkdir(parents=True)
            self.set_route_localnet(name, "0")
        (proc / "net").mkdir()
        for name, text in (("route", route_table()), ("fib_trie", FIB_TRIE), ("if_inet6", IF_INET6)):
            (proc / "net" / name).write_text(text)

    def route_localnet(self, interface: str) -> Path:
        return self._conf / interface / "route_localnet"

    def set_route_localnet(self, interface: str, value: str = "1") -> None:
        self.route_localnet(interface).write_text(f"{value}\n")

    def forbid_writing(self) -> None:
        """Put a file of the real kernel in the setting's place: nobody can write it, root included; it is not 1."""
        setting = self.route_localnet("all")
        setting.unlink()
        setting.symlink_to("/proc/sys/kernel/ngroups_max")
