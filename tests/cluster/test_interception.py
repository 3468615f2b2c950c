"""NMI's interception with real iptables, in a node's and a pod's network namespace that each test makes."""

import asyncio
import contextlib
import ctypes
import fcntl
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from apps.nmi.netfilter.firewall import Iptables
from apps.nmi.netfilter.interceptor import Interception, Interceptor
from apps.nmi.netfilter.rules import Intact, Redirect, installation, verdict
from podidentity_core.errors import TransientError

METADATA_IP = "169.254.169.254"
REDIRECT = Redirect(METADATA_IP, 80, "127.0.0.1", 2579)
NODE_IP, POD_IP = "10.244.77.1", "10.244.77.2"
CONF = Path("/proc/sys/net/ipv4/conf")

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
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE
COMMIT
"""

# As the original's troubleshooting page shows it.
OURS = """\
-N aad-metadata
-A aad-metadata ! -s 127.0.0.1/32 -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 127.0.0.1:2579
-A aad-metadata -j RETURN
"""

numbers = itertools.count()


@dataclass(frozen=True)
class Node:
    """A node with one pod. *back_end* holds the foreign rules, and so must hold ours."""

    name: str
    pod: str
    back_end: str

    def iptables(self, *arguments: str) -> str:
        return run(f"iptables-{self.back_end}", "-t", "nat", *arguments)

    def nat_table(self) -> str:
        saved = run(f"iptables-{self.back_end}-save", "-t", "nat")
        return "".join(line for line in saved.splitlines(keepends=True) if not line.startswith("#"))  # dates

    def foreign_rules(self) -> list[str]:
        return [line for line in self.nat_table().splitlines() if "aad-metadata" not in line and line[0] != ":"]


def run(*command: str, stdin: str = "") -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def enter(namespace: Path) -> None:
    """Move this thread, and with it the programs that it starts, into a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with namespace.open() as handle:
        if libc.setns(handle.fileno(), 0x40000000) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")


@pytest.fixture(params=["nft", "legacy"])
def node(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    unique = f"intercept-{os.getpid()}-{next(numbers)}"
    made = Node(f"{unique}-node", f"{unique}-pod", request.param)
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))
    home = Path(f"/proc/self/task/{os.getpid()}/ns/net")
    with contextlib.ExitStack() as stack:
        came_from = stack.enter_context(home.open())
        for name in (made.name, made.pod):
            run("ip", "netns", "add", name)
            stack.callback(run, "ip", "netns", "delete", name)
        _connect(made)
        enter(Path("/run/netns", made.name))
        stack.callback(enter, Path(f"/proc/self/fd/{came_from.fileno()}"))
        _skip_without(made.back_end)
        _prepare_node(made)
        yield made


def _skip_without(back_end: str) -> None:
    program = f"iptables-{back_end}"
    if shutil.which(program) is None:
        pytest.skip(f"this machine has no {program}")
    done = subprocess.run([program, "-t", "nat", "-S"], capture_output=True, text=True, timeout=30, check=False)
    if "Table does not exist" in done.stderr or "not supported" in done.stderr:
        pytest.skip(f"this kernel has no back end for {program}: {done.stderr.strip()}")


def _connect(node: Node) -> None:
    run("ip", "link", "add", "pod0", "netns", node.name, "type", "veth", "peer", "name", "eth0", "netns", node.pod)
    for line in (
        f"-n {node.name} link set lo up",
        f"-n {node.name} addr add {METADATA_IP}/32 dev lo",
        f"-n {node.name} addr add {NODE_IP}/24 dev pod0",
        f"-n {node.name} link set pod0 up",
        f"-n {node.pod} link set lo up",
        f"-n {node.pod} addr add {POD_IP}/24 dev eth0",
        f"-n {node.pod} link set eth0 up",
        f"-n {node.pod} route add default via {NODE_IP}",
    ):
        run("ip", *line.split())


def _prepare_node(node: Node) -> None:
    for name in ("all", "default", "pod0"):
        (CONF / name / "route_localnet").write_text("0")
    hint = "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n"
    for text in (hint, FOREIGN):
        run(f"iptables-{node.back_end}-restore", "--noflush", stdin=text)


class StandIn:
    """A server that answers every request with its name and the address that the request comes from.

    Clear *may_answer* to make it wait between a request, when it sets *asked*, and the answer.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self._connections: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def listening(self, ip: str, port: int) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, ip, port)
        yield
        server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(asyncio.current_task())
        body = f"{self._name} saw {writer.get_extra_info('peername')[0]}".encode()
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                self.asked.set()
                await self.may_answer.wait()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            writer.transport.abort()


@pytest.fixture
async def nmi(node: Node) -> AsyncIterator[StandIn]:
    """NMI's stand-in, while another one for the real metadata service listens too."""
    nmi = StandIn("nmi")
    async with StandIn("imds").listening(METADATA_IP, 80), nmi.listening("127.0.0.1", 2579):
        yield nmi


# Prints the body of the answer to each line of its input, or the error; a line "new" opens a connection first.
CLIENT = """
import http.client, sys
for line in sys.stdin:
    if line.strip() == "new":
        connection = http.client.HTTPConnection("169.254.169.254", timeout=3)
        connection.connect()
        connection.auto_open = 0
    try:
        connection.request("GET", "/")
        print(connection.getresponse().read().decode(), flush=True)
    except (OSError, http.client.HTTPException) as error:
        print(type(error).__name__, flush=True)
"""


class Client:
    """A program in the pod that talks to the metadata address."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, line: str = "new") -> str:
        self._process.stdin.write(f"{line}\n".encode())
        async with asyncio.timeout(10):
            return (await self._process.stdout.readline()).decode().strip()


@contextlib.asynccontextmanager
async def client_in(namespace: str) -> AsyncIterator[Client]:
    command = ("nsenter", f"--net=/run/netns/{namespace}", sys.executable, "-c", CLIENT)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    try:
        yield Client(process)
    finally:
        process.stdin.close()
        await process.wait()


class SteppedClock:
    """Lets a test start each round of an interceptor, and wait for its end."""

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
        async with asyncio.timeout(30):
            await self._ended.get()

    async def next_round(self) -> None:
        self._go_on.release()
        await self.round()


@contextlib.asynccontextmanager
async def intercepting(*, forget_flows: bool = False) -> AsyncIterator[tuple[Interceptor, SteppedClock]]:
    clock = SteppedClock()
    interceptor = Interceptor(Interception(REDIRECT, 60, forget_flows), Iptables(), clock, lambda: 0.5)
    task = asyncio.create_task(interceptor.run())
    try:
        await clock.round()
        yield interceptor, clock
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.usefixtures("nmi")
async def test_requests_of_pods_come_to_nmi_with_the_pods_address(node: Node) -> None:
    async with client_in(node.pod) as pod, client_in(node.name) as process_of_node:
        assert await pod.ask() == f"imds saw {POD_IP}"
        async with intercepting() as (interceptor, _):
            assert (interceptor.ready, interceptor.reason) == (True, "")
            assert await pod.ask() == f"nmi saw {POD_IP}"
            assert (await process_of_node.ask()).startswith("imds saw ")
        await interceptor.remove()
        assert await pod.ask() == f"imds saw {POD_IP}"


async def test_the_rules_read_as_users_know_them(node: Node) -> None:
    async with intercepting():
        assert node.iptables("-S", "aad-metadata") == OURS
        assert node.iptables("-S", "PREROUTING").splitlines()[1] == "-A PREROUTING -j aad-metadata"
        assert verdict(node.nat_table(), REDIRECT) == Intact()


async def test_removal_leaves_the_table_as_it_was_byte_by_byte(node: Node) -> None:
    before = node.nat_table()
    async with intercepting() as (interceptor, _):
        assert node.nat_table() != before

    await interceptor.remove()

    assert node.nat_table() == before


DAMAGES = {
    "chain flushed": ["-F aad-metadata"],
    "jump deleted": ["-D PREROUTING -j aad-metadata"],
    "chain deleted": ["-D PREROUTING -j aad-metadata", "-F aad-metadata", "-X aad-metadata"],
    "everything flushed": ["-F"],
    "jump pushed down": ["-I PREROUTING -i pod0 -j RETURN"],
    "jump pushed down twice": ["-I PREROUTING -j DOCKER", "-I PREROUTING -j KUBE-SERVICES"],
    "jump doubled": ["-A PREROUTING -j aad-metadata", "-I PREROUTING 2 -i eth9 -j aad-metadata"],
    "RETURN put first": ["-I aad-metadata -j RETURN"],
    "order reversed": ["-D aad-metadata -j RETURN", "-I aad-metadata -j RETURN"],
    "foreign rule in our chain": [f"-I aad-metadata -s {POD_IP} -j ACCEPT"],
    "DNAT to another address": ["-R aad-metadata 1 -p tcp -j DNAT --to-destination 10.244.77.1:9"],
}


@pytest.mark.usefixtures("nmi")
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_damage_is_repaired_at_the_next_look_and_foreign_rules_stay(node: Node, damage: list[str]) -> None:
    async with intercepting() as (interceptor, clock), client_in(node.pod) as pod:
        for command in damage:
            node.iptables(*command.split())
        foreign = node.foreign_rules()

        await clock.next_round()

        assert interceptor.ready
        assert verdict(node.nat_table(), REDIRECT) == Intact()
        assert node.foreign_rules() == foreign
        assert await pod.ask() == f"nmi saw {POD_IP}"


@pytest.mark.usefixtures("nmi")
async def test_no_request_slips_through_while_rules_are_repaired(node: Node) -> None:
    firewall = Iptables()
    await firewall.restore(installation(await firewall.listing(), REDIRECT))
    firewall.ensure_route_localnet()
    answers: tuple[list[str], list[str]] = ([], [])

    async def keep_asking(answers: list[str]) -> None:
        async with client_in(node.pod) as pod:
            while True:
                answers.append(await pod.ask())

    async with asyncio.timeout(60):
        clients = [asyncio.create_task(keep_asking(own)) for own in answers]
        for _ in range(20):
            asked = [len(own) for own in answers]
            while any(len(own) < before + 3 for own, before in zip(answers, asked, strict=True)):
                node.iptables("-I", "PREROUTING", "-i", "eth9", "-j", "DOCKER")
                await firewall.restore(installation(await firewall.listing(), REDIRECT))
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)

    assert {answer for own in answers for answer in own} == {f"nmi saw {POD_IP}"}


@pytest.mark.usefixtures("nmi")
async def test_older_connections_are_cut(node: Node) -> None:
    async with client_in(node.pod) as older, client_in(node.pod) as pod:
        assert await older.ask() == f"imds saw {POD_IP}"
        async with intercepting(forget_flows=True):
            assert await older.ask("same connection") == "ConnectionResetError"
            assert await pod.ask() == f"nmi saw {POD_IP}"


async def test_a_request_that_nmi_is_answering_survives_a_repair(node: Node, nmi: StandIn) -> None:
    async with intercepting(forget_flows=True) as (interceptor, clock), client_in(node.pod) as pod:
        nmi.may_answer.clear()
        asking = asyncio.create_task(pod.ask())
        await asyncio.wait_for(nmi.asked.wait(), 10)
        node.iptables("-F", "aad-metadata")
        await clock.next_round()
        nmi.may_answer.set()

        assert await asking == f"nmi saw {POD_IP}"
        assert interceptor.ready


@pytest.mark.usefixtures("nmi")
async def test_older_connections_stay_unless_asked_for(node: Node) -> None:
    async with client_in(node.pod) as older:
        assert await older.ask() == f"imds saw {POD_IP}"
        async with intercepting():
            assert await older.ask("same connection") == f"imds saw {POD_IP}"


async def test_a_chain_that_somebody_else_uses_ends_empty_and_is_reported(node: Node) -> None:
    async with intercepting() as (interceptor, _):
        node.iptables("-A", "OUTPUT", "-j", "aad-metadata")

    with pytest.raises(TransientError, match=r"-restore: .*\(exit status [1-4]\)"):
        await interceptor.remove()

    assert node.iptables("-S", "aad-metadata") == "-N aad-metadata\n"
    assert "aad-metadata" not in node.iptables("-S", "PREROUTING")


@pytest.mark.parametrize("node", ["legacy"], indirect=True)
async def test_a_held_lock_is_a_reason_and_no_end(node: Node, tmp_path: Path) -> None:
    async with intercepting() as (interceptor, clock):
        with (tmp_path / "xtables.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            await clock.next_round()
            assert not interceptor.ready
            assert "another program holds the xtables lock" in interceptor.reason

        await clock.next_round()
        assert interceptor.ready


# What a container of NMI does: install once, say how it went.
ONE_ROUND = """
import asyncio
from apps.nmi.netfilter.firewall import Iptables
from apps.nmi.netfilter.interceptor import Interception, Interceptor
from apps.nmi.netfilter.rules import Redirect

class Once(Exception):
    pass

class Clock:
    async def sleep(self, seconds):
        raise Once

redirect = Redirect("169.254.169.254", 80, "127.0.0.1", 2579)
interceptor = Interceptor(Interception(redirect, forget_flows=True), Iptables(), Clock(), lambda: 0.5)
try:
    asyncio.run(interceptor.run())
except Once:
    print(interceptor.reason or "ready")
"""


def one_round(*wrapper: str) -> str:
    return run(*wrapper, sys.executable, "-c", ONE_ROUND).strip()


def with_capabilities(*capabilities: str) -> tuple[str, ...]:
    kept = ",".join(("-all", *(f"+{capability}" for capability in capabilities)))
    return ("setpriv", f"--bounding-set={kept}", "--")


def test_the_capabilities_of_the_manifest_are_enough(node: Node) -> None:
    (CONF / "all" / "route_localnet").write_text("1")

    assert one_round(*with_capabilities("dac_read_search", "net_admin", "net_raw")) == "ready"
    assert verdict(node.nat_table(), REDIRECT) == Intact()


def test_without_capabilities_the_reason_names_them(node: Node) -> None:
    reason = one_round(*with_capabilities("dac_read_search"))

    assert reason.startswith("no permission to change the firewall; NMI needs root, NET_ADMIN and NET_RAW")


READ_ONLY_SETTINGS = (
    "unshare",
    "--mount",
    "sh",
    "-ec",
    'mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys; exec "$@"',
    "sh",
)


def test_in_a_container_that_may_not_set_route_localnet_the_reason_is_the_remedy(node: Node) -> None:
    reason = one_round(*READ_ONLY_SETTINGS)

    assert "sysctl -w net.ipv4.conf.all.route_localnet=1" in reason
    assert re.search(r"cannot be set from here \(Read-only file system\)", reason)
    assert verdict(node.nat_table(), REDIRECT) == Intact()  # pods get no answer rather than the node's identities
    (CONF / "pod0" / "route_localnet").write_text("1")
    assert one_round(*READ_ONLY_SETTINGS) == "ready"
