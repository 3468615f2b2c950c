"""What tests of the interception alone are made of: a node and its pods as network namespaces, and stand-ins.

There is no cluster here. Each test makes its own node, so that its back end, its address family and the settings of
its kernel are the test's own. The test's process moves into the node's namespace.
"""

import asyncio
import contextlib
import ctypes
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from apps.nmi.netfilter.firewall import Iptables
from apps.nmi.netfilter.interceptor import Interception, Interceptor
from apps.nmi.netfilter.rules import Redirect
from tests.cluster.isolation import run

CONF = Path("/proc/sys/net/ipv4/conf")


@dataclass(frozen=True)
class Family:
    """The addresses of a test: everything is there in IPv4 and in IPv6."""

    version: int
    program: str
    metadata_ip: str
    nmi_ip: str
    node_ip: str
    pod_ip: str
    prefix_length: int
    whole: int
    service_ip: str

    @property
    def redirect(self) -> Redirect:
        """What NMI keeps in place."""
        return Redirect(self.metadata_ip, 80, self.nmi_ip, 2579)


IPV4 = Family(4, "iptables", "169.254.169.254", "127.0.0.1", "10.244.77.1", "10.244.77.2", 24, 32, "10.96.0.1")
IPV6 = Family(6, "ip6tables", "fd00:ec2::254", "fd00:77::1", "fd00:77::1", "fd00:77::2", 64, 128, "fd00:96::1")

# A node has rules of others around ours: kube-proxy's, Docker's, and some with quoting that must survive. The
# MASQUERADE makes the kernel track connections from the start, as on a real node.
FOREIGN = """\
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:DOCKER - [0:0]
-A PREROUTING -m comment --comment "kubernetes \\"service\\" portals" -j KUBE-SERVICES
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-SERVICES -d {service} -p tcp -m tcp --dport 443 -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE
COMMIT
"""
BACK_END_HINT = "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n"

_numbers = itertools.count()


@dataclass(frozen=True)
class Node:
    """A node with one pod. *back_end* holds the foreign rules, and so must hold ours."""

    back_end: str
    family: Family
    name: str = field(default_factory=lambda: f"intercept-{os.getpid()}-{next(_numbers)}")

    @property
    def pod(self) -> str:
        """The namespace of its pod."""
        return f"{self.name}-pod"

    @property
    def program(self) -> str:
        """The program that manages its rules."""
        return f"{self.family.program}-{self.back_end}"

    def iptables(self, *arguments: str) -> str:
        """Run it on table nat."""
        return run(self.program, "-t", "nat", *arguments)

    def nat_table(self) -> str:
        """All of table nat."""
        saved = run(f"{self.program}-save", "-t", "nat")
        return "".join(line for line in saved.splitlines(keepends=True) if not line.startswith("#"))  # dates

    def foreign_rules(self) -> list[str]:
        """The rules of others, as they are written."""
        return [line for line in self.nat_table().splitlines() if "aad-metadata" not in line and line[0] != ":"]


@contextlib.contextmanager
def on_node(node: Node) -> Iterator[None]:
    """Make the node and its pod, and be on the node."""
    with contextlib.ExitStack() as stack:
        came_from = stack.enter_context(Path("/proc/thread-self/ns/net").open())
        for name in (node.name, node.pod):
            stack.enter_context(_namespace(name))
        _enter(f"/run/netns/{node.name}")
        stack.callback(_enter, f"/proc/self/fd/{came_from.fileno()}")
        run("ip", "address", "add", f"{node.family.metadata_ip}/{node.family.whole}", "dev", "lo", "nodad")
        _wire_pod(node)
        _skip_without(node.program)
        for text in (BACK_END_HINT, FOREIGN.format(service=f"{node.family.service_ip}/{node.family.whole}")):
            run(f"{node.program}-restore", "--noflush", stdin=text)
        for setting in CONF.glob("*/route_localnet"):
            setting.write_text("0")
        yield


@contextlib.contextmanager
def _namespace(name: str) -> Iterator[None]:
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "link", "set", "lo", "up")
        yield
    finally:
        run("ip", "netns", "delete", name)


def _enter(namespace: str) -> None:
    """Move this thread, and with it the programs that it starts, into a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(namespace).open() as handle:
        if libc.setns(handle.fileno(), 0x40000000) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")


def _wire_pod(node: Node) -> None:
    family = node.family
    add_veth("pod0", node.pod)
    for line in (
        f"address add {family.node_ip}/{family.prefix_length} dev pod0 nodad",
        f"-n {node.pod} address add {family.pod_ip}/{family.prefix_length} dev eth0 nodad",
        f"-n {node.pod} route add default via {family.node_ip}",
    ):
        run("ip", *line.split())


def add_veth(outside: str, pod: str) -> None:
    """Connect the namespace *pod* with the node by a link that the node sees as *outside*."""
    run("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", pod)
    run("ip", "link", "set", outside, "up")
    run("ip", "-n", pod, "link", "set", "eth0", "up")


def _skip_without(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"this machine has no {program}")
    done = subprocess.run([program, "-t", "nat", "-S"], capture_output=True, text=True, timeout=30, check=False)
    if "Table does not exist" in done.stderr or "not supported" in done.stderr:
        pytest.skip(f"this kernel has no back end for {program}: {done.stderr.strip()}")


@contextlib.contextmanager
def bridged_pods(node: Node) -> Iterator[dict[str, str]]:
    """Two more pods on one bridge; gives the namespace of each address."""
    run("ip", "link", "add", "cni0", "type", "bridge")
    run("ip", "address", "add", "10.244.78.1/24", "dev", "cni0")
    run("ip", "link", "set", "cni0", "up")
    pods = {f"10.244.78.{number}": f"{node.name}-bridged{number}" for number in (2, 3)}
    with contextlib.ExitStack() as stack:
        for number, (address, namespace) in enumerate(pods.items()):
            stack.enter_context(_namespace(namespace))
            add_veth(f"veth{number}", namespace)
            run("ip", "link", "set", f"veth{number}", "master", "cni0")
            run("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
            run("ip", "-n", namespace, "route", "add", "default", "via", "10.244.78.1")
        yield pods


@contextlib.contextmanager
def routed_pods(node: Node) -> Iterator[dict[str, str]]:
    """Two more pods of Azure CNI: a link and a host route for each, with addresses of the node's own subnet."""
    pods = {f"10.244.77.{number}": f"{node.name}-routed{number}" for number in (12, 13)}
    mac = "02:00:00:00:00:01"
    with contextlib.ExitStack() as stack:
        for number, (address, namespace) in enumerate(pods.items()):
            stack.enter_context(_namespace(namespace))
            add_veth(f"azv{number}", namespace)
            run("ip", "route", "add", f"{address}/32", "dev", f"azv{number}")
            run("ip", "link", "set", f"azv{number}", "address", mac)
            run("ip", "-n", namespace, "address", "add", f"{address}/32", "dev", "eth0")
            run("ip", "-n", namespace, "route", "add", "169.254.1.1/32", "dev", "eth0")
            run("ip", "-n", namespace, "neighbour", "add", "169.254.1.1", "lladdr", mac, "dev", "eth0")
            run("ip", "-n", namespace, "route", "add", "default", "via", "169.254.1.1")
        yield pods


class StandIn:
    """A server that answers every request with its name and the address that the request comes from.

    Clear *may_answer* to make it wait between a request, when it sets *asked*, and the answer.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @contextlib.asynccontextmanager
    async def listening(self, ip: str, port: int) -> AsyncIterator[None]:
        """Listen until the end of the block, and end all connections there."""
        server = await asyncio.start_server(self._accept, ip, port)
        try:
            yield
        finally:
            for listener in server.sockets:
                asyncio.get_running_loop().remove_reader(listener.fileno())
            for _ in range(10):  # turns in which what the loop has accepted becomes a connection; closing breaks that
                await asyncio.sleep(0)
            server.close()
            for connection, writer in self._connections.items():
                writer.transport.abort()
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._serve(reader, writer))
        self._connections[connection] = writer
        connection.add_done_callback(self._connections.pop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername") or ("a connection that is gone",)
        body = f"{self._name} saw {peer[0]}".encode()
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                self.asked.set()
                await self.may_answer.wait()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.transport.abort()


# Prints the body of the answer to each line of its input, or the error; a line "new" opens a connection first.
_CLIENT = """
import http.client, sys
for line in sys.stdin:
    try:
        if line.strip() == "new":
            connection = http.client.HTTPConnection(sys.argv[1], 80, timeout=float(sys.argv[2]))
            connection.connect()
            connection.auto_open = 0
        connection.request("GET", "/")
        print(connection.getresponse().read().decode(), flush=True)
    except (OSError, http.client.HTTPException) as error:
        print(type(error).__name__, flush=True)
"""


class Client:
    """A program in a pod that talks to the metadata address."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, line: str = "new") -> str:
        """Return the answer, or the name of the error; over a new connection, unless *line* says otherwise."""
        self._process.stdin.write(f"{line}\n".encode())
        async with asyncio.timeout(10):
            return (await self._process.stdout.readline()).decode().strip()


@contextlib.asynccontextmanager
async def client_in(namespace: str, node: Node, *, patience_s: float = 3) -> AsyncIterator[Client]:
    """A client in a pod, or with the node's own name on the node."""
    program = (sys.executable, "-c", _CLIENT, node.family.metadata_ip, str(patience_s))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        "nsenter", f"--net=/run/netns/{namespace}", *program, stdin=pipe, stdout=pipe
    )
    try:
        yield Client(process)
    finally:
        process.stdin.close()
        await process.wait()


class SteppedClock:
    """Lets a test start each look of an interceptor, and wait for its end."""

    def __init__(self) -> None:
        self._ended: asyncio.Queue[float] = asyncio.Queue()
        self._go_on = asyncio.Semaphore(0)

    async def sleep(self, seconds: float) -> None:
        self._ended.put_nowait(seconds)
        await self._go_on.acquire()

    def monotonic_s(self) -> float:
        return 0.0

    def wall_s(self) -> float:
        return 0.0

    async def round(self) -> None:
        """Wait until the look that is under way has ended."""
        async with asyncio.timeout(30):
            await self._ended.get()

    async def next_round(self) -> None:
        """Look once more."""
        self._go_on.release()
        await self.round()


@contextlib.asynccontextmanager
async def intercepting(
    node: Node, *, forget_flows: bool = False, redirect: Redirect | None = None
) -> AsyncIterator[tuple[Interceptor, SteppedClock]]:
    """An interceptor that has looked once, with the node's own programs."""
    clock = SteppedClock()
    interception = Interception(redirect or node.family.redirect, 60, forget_flows)
    interceptor = Interceptor(interception, Iptables(node.family.version), clock, lambda: 0.5)
    task = asyncio.create_task(interceptor.run())
    try:
        await clock.round()
        yield interceptor, clock
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
