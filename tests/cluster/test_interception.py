"""NMI's interception with real iptables, in a node's and a pod's network namespace that each test makes."""

import asyncio
import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from apps.nmi.netfilter.rules import Intact, verdict
from podidentity_core.errors import TransientError
from tests.cluster.interception import (
    CONF,
    IPV4,
    IPV6,
    Node,
    StandIn,
    bridged_pods,
    client_in,
    intercepting,
    on_node,
    routed_pods,
)
from tests.cluster.isolation import run

KINDS = {
    f"{back_end}-ipv{family.version}": (back_end, family) for family in (IPV4, IPV6) for back_end in ("nft", "legacy")
}
BOTH_BACK_ENDS_IN_IPV4 = pytest.mark.parametrize(
    "node", [("nft", IPV4), ("legacy", IPV4)], ids=["nft", "legacy"], indirect=True
)
LEGACY_OF_EACH_FAMILY = pytest.mark.parametrize(
    "node", [("legacy", IPV4), ("legacy", IPV6)], ids=["ipv4", "ipv6"], indirect=True
)

# As the original's troubleshooting page shows it.
OURS = """\
-N aad-metadata
-A aad-metadata ! -s 127.0.0.1/32 -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 127.0.0.1:2579
-A aad-metadata -j RETURN
"""
OURS_IN_IPV6 = """\
-N aad-metadata
-A aad-metadata ! -s ::1/128 -d fd00:ec2::254/128 -p tcp -m tcp --dport 80 -j DNAT --to-destination [fd00:77::1]:2579
-A aad-metadata -j RETURN
"""


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def node(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))
    made = Node(*request.param)
    with on_node(made):
        yield made


@pytest.fixture
async def imds(node: Node) -> AsyncIterator[StandIn]:
    """A stand-in for the real metadata service."""
    imds = StandIn("imds")
    async with imds.listening(node.family.metadata_ip, 80):
        yield imds


@pytest.fixture
async def nmi(node: Node, imds: StandIn) -> AsyncIterator[StandIn]:
    """NMI's stand-in, while the real metadata service listens too."""
    nmi = StandIn("nmi")
    async with nmi.listening(node.family.nmi_ip, 2579):
        yield nmi


@pytest.mark.usefixtures("nmi")
async def test_requests_of_pods_come_to_nmi_with_the_pods_address(node: Node) -> None:
    pod_ip = node.family.pod_ip
    async with client_in(node.pod, node) as pod, client_in(node.name, node) as process_of_node:
        assert await pod.ask() == f"imds saw {pod_ip}"
        async with intercepting(node) as (interceptor, _):
            assert (interceptor.ready, interceptor.reason) == (True, "")
            assert await pod.ask() == f"nmi saw {pod_ip}"
            assert (await process_of_node.ask()).startswith("imds saw ")
        await interceptor.remove()
        assert await pod.ask() == f"imds saw {pod_ip}"


async def test_the_rules_read_as_users_know_them(node: Node) -> None:
    async with intercepting(node):
        assert node.iptables("-S", "aad-metadata") == (OURS if node.family is IPV4 else OURS_IN_IPV6)
        assert node.iptables("-S", "PREROUTING").splitlines()[1] == "-A PREROUTING -j aad-metadata"
        assert verdict(node.nat_table(), node.family.redirect) == Intact()


async def test_removal_leaves_the_table_as_it_was_byte_by_byte(node: Node) -> None:
    before = node.nat_table()
    async with intercepting(node) as (interceptor, _):
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
    "foreign rule in our chain": ["-I aad-metadata -s {pod} -j ACCEPT"],
    "DNAT to another port": ["-R aad-metadata 1 -p tcp -j DNAT --to-destination :9"],
}


@pytest.mark.usefixtures("nmi")
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_damage_is_repaired_at_the_next_look_and_foreign_rules_stay(node: Node, damage: list[str]) -> None:
    async with intercepting(node) as (interceptor, clock), client_in(node.pod, node) as pod:
        for command in damage:
            node.iptables(*command.format(pod=node.family.pod_ip).split())
        foreign = node.foreign_rules()

        await clock.next_round()

        assert interceptor.ready
        assert verdict(node.nat_table(), node.family.redirect) == Intact()
        assert node.foreign_rules() == foreign
        assert await pod.ask() == f"nmi saw {node.family.pod_ip}"


async def test_a_chain_that_somebody_else_uses_ends_empty_and_is_reported(node: Node) -> None:
    async with intercepting(node) as (interceptor, _):
        node.iptables("-A", "OUTPUT", "-j", "aad-metadata")

    with pytest.raises(TransientError, match=r"-restore: .*\(exit status [1-4]\)"):
        await interceptor.remove()

    assert node.iptables("-S", "aad-metadata") == "-N aad-metadata\n"
    assert "aad-metadata" not in node.iptables("-S", "PREROUTING")


# Connections that are older than the rules.


@pytest.mark.usefixtures("nmi")
async def test_older_connections_are_cut(node: Node) -> None:
    async with client_in(node.pod, node) as older, client_in(node.pod, node) as pod:
        assert await older.ask() == f"imds saw {node.family.pod_ip}"
        async with intercepting(node, forget_flows=True) as (interceptor, _):
            assert interceptor.ready
            assert await older.ask("same connection") == "ConnectionResetError"
            assert await pod.ask() == f"nmi saw {node.family.pod_ip}"


@pytest.mark.usefixtures("nmi")
async def test_an_older_connection_on_which_an_answer_was_under_way_is_cut_at_the_next_look(
    node: Node, imds: StandIn
) -> None:
    async with client_in(node.pod, node) as older:
        imds.may_answer.clear()
        asking = asyncio.create_task(older.ask())
        await asyncio.wait_for(imds.asked.wait(), 10)
        async with intercepting(node, forget_flows=True) as (interceptor, clock):
            imds.may_answer.set()
            assert await asking == f"imds saw {node.family.pod_ip}"
            await clock.next_round()
            assert interceptor.ready
            assert await older.ask("same connection") == "ConnectionResetError"


@pytest.mark.usefixtures("nmi")
async def test_a_connection_made_while_somebody_had_taken_the_rules_away_for_a_moment_is_cut(node: Node) -> None:
    async with intercepting(node, forget_flows=True) as (interceptor, clock), client_in(node.pod, node) as pod:
        node.iptables("-D", "PREROUTING", "-j", "aad-metadata")
        assert await pod.ask() == f"imds saw {node.family.pod_ip}"
        node.iptables("-I", "PREROUTING", "-j", "aad-metadata")

        await clock.next_round()

        assert interceptor.ready
        assert await pod.ask("same connection") == "ConnectionResetError"


@pytest.mark.usefixtures("nmi")
async def test_a_connection_of_the_node_itself_is_never_cut(node: Node, imds: StandIn) -> None:
    async with client_in(node.name, node) as process_of_node:
        imds.may_answer.clear()
        asking = asyncio.create_task(process_of_node.ask())
        await asyncio.wait_for(imds.asked.wait(), 10)
        before = run("conntrack", "-L", "-f", f"ipv{node.family.version}", "-o", "id")
        async with intercepting(node, forget_flows=True) as (interceptor, _):
            assert interceptor.ready
            after = run("conntrack", "-L", "-f", f"ipv{node.family.version}", "-o", "id")
            imds.may_answer.set()
            assert (await asking).startswith("imds saw ")

    assert "id=" in before
    assert before.rpartition("id=")[2] == after.rpartition("id=")[2]


async def test_a_request_that_nmi_is_answering_survives_a_repair(node: Node, nmi: StandIn) -> None:
    async with intercepting(node, forget_flows=True) as (interceptor, clock), client_in(node.pod, node) as pod:
        nmi.may_answer.clear()
        asking = asyncio.create_task(pod.ask())
        await asyncio.wait_for(nmi.asked.wait(), 10)
        node.iptables("-F", "aad-metadata")
        await clock.next_round()
        nmi.may_answer.set()

        assert await asking == f"nmi saw {node.family.pod_ip}"
        assert interceptor.ready


@pytest.mark.usefixtures("nmi")
async def test_older_connections_stay_unless_asked_for(node: Node) -> None:
    async with client_in(node.pod, node) as older:
        assert await older.ask() == f"imds saw {node.family.pod_ip}"
        async with intercepting(node):
            assert await older.ask("same connection") == f"imds saw {node.family.pod_ip}"


# No way past: pods that never stop asking.


@dataclass(frozen=True)
class Asked:
    """One request over a new connection."""

    began_s: float
    ended_s: float
    answer: str


class Askers:
    """Pods' programs that ask over and over again, each over a new connection, and what they were answered."""

    def __init__(self, number: int) -> None:
        self.asked: list[list[Asked]] = [[] for _ in range(number)]

    async def keep_asking(self, own: list[Asked], node: Node) -> None:
        async with client_in(node.pod, node) as pod:
            while True:
                began_s = time.monotonic()
                answer = await pod.ask()
                own.append(Asked(began_s, time.monotonic(), answer.partition(" saw ")[0]))

    async def each_asked_again(self) -> None:
        """Wait until each has been answered a request that it had not begun yet."""
        now_s = time.monotonic()
        async with asyncio.timeout(20):
            while not all(own and own[-1].began_s > now_s for own in self.asked):  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    def answers(self, since_s: float = 0.0, until_s: float = float("inf")) -> list[str]:
        """What was answered to requests that began and ended in between."""
        every = [one for own in self.asked for one in own]
        return [one.answer for one in every if since_s < one.began_s and one.ended_s < until_s]


@contextlib.asynccontextmanager
async def askers(node: Node, number: int = 2) -> AsyncIterator[Askers]:
    made = Askers(number)
    tasks = [asyncio.create_task(made.keep_asking(own, node)) for own in made.asked]
    try:
        await made.each_asked_again()
        yield made
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


OPENINGS = (
    "-D PREROUTING -j aad-metadata",
    "-F PREROUTING",
    "-I PREROUTING -i pod0 -j ACCEPT",
    "-I PREROUTING -p tcp -j RETURN",
    "-F aad-metadata",
)
REPAIRS = 50


@pytest.mark.usefixtures("nmi")
async def test_from_the_repair_on_no_new_connection_passes_nmi_by(node: Node) -> None:
    repaired_s, before_repair, after_repair = 0.0, [], []
    async with intercepting(node, forget_flows=True) as (interceptor, clock), askers(node) as pods:
        for number in range(REPAIRS):
            damaged_s = time.monotonic()
            after_repair += pods.answers(repaired_s, damaged_s)
            node.iptables(*OPENINGS[number % len(OPENINGS)].split())
            opened_s = time.monotonic()
            await pods.each_asked_again()
            before_repair += pods.answers(opened_s)
            await clock.next_round()
            assert interceptor.ready
            repaired_s = time.monotonic()
            await pods.each_asked_again()
        after_repair += pods.answers(repaired_s)

    assert before_repair.count("imds") >= 2 * REPAIRS  # each opening was one
    assert len(after_repair) >= 2 * REPAIRS
    assert set(after_repair) == {"nmi"}


@pytest.mark.usefixtures("nmi")
async def test_no_new_connection_passes_nmi_by_while_harmless_changes_are_put_right(node: Node) -> None:
    async with intercepting(node) as (interceptor, clock), askers(node) as pods:
        for _ in range(20):
            node.iptables("-I", "PREROUTING", "-i", "eth9", "-j", "DOCKER")
            await clock.next_round()
            assert interceptor.ready
            await pods.each_asked_again()

        assert set(pods.answers()) == {"nmi"}


async def test_while_nmi_is_away_pods_are_refused_and_the_next_nmi_takes_over_without_a_gap(
    node: Node, imds: StandIn
) -> None:
    nmi_ip, redirect = node.family.nmi_ip, node.family.redirect
    async with contextlib.AsyncExitStack() as stack:
        async with StandIn("first nmi").listening(nmi_ip, 2579), intercepting(node, forget_flows=True) as (_, clock):
            pods = await stack.enter_async_context(askers(node))
            for _ in range(10):
                await clock.next_round()
                await pods.each_asked_again()
        ended_s = time.monotonic()
        await pods.each_asked_again()
        with_nobody_there = pods.answers(ended_s, time.monotonic())
        await stack.enter_async_context(StandIn("next nmi").listening(nmi_ip, 2580))
        elsewhere = type(redirect)(redirect.metadata_ip, 80, nmi_ip, 2580)
        interceptor, _ = await stack.enter_async_context(intercepting(node, forget_flows=True, redirect=elsewhere))
        assert interceptor.ready
        began_s = time.monotonic()
        await pods.each_asked_again()

        assert set(with_nobody_there) == {"ConnectionRefusedError"}
        assert set(pods.answers(began_s)) == {"next nmi"}
        assert "imds" not in pods.answers()


# What can be missing. None of it ends NMI: it is not ready, says why, and recovers.


@LEGACY_OF_EACH_FAMILY
async def test_a_held_lock_is_a_reason_and_no_end(node: Node, tmp_path: Path) -> None:
    async with intercepting(node) as (interceptor, clock):
        with (tmp_path / "xtables.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            await clock.next_round()
            assert not interceptor.ready
            assert "another program holds the xtables lock" in interceptor.reason

        await clock.next_round()
        assert interceptor.ready


@pytest.fixture
def path(node: Node, tmp_path: Path) -> Iterator[Path]:
    """A folder that is all of PATH: nothing of the machine is found but what a test puts there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PATH", str(folder))
        yield folder


def programs_of(node: Node) -> list[str]:
    """The programs that NMI uses on this node."""
    return [f"{node.program}{suffix}" for suffix in ("", "-restore", "-save")]


def real(program: str) -> str:
    """Where the machine has a program."""
    return shutil.which(program, path=f"{os.defpath}:/usr/sbin:/sbin")


def link(folder: Path, *programs: str) -> None:
    for program in programs:
        (folder / program).unlink(missing_ok=True)
        (folder / program).symlink_to(real(program))


def without_permission(folder: Path, *programs: str) -> None:
    """Put in the place of programs what runs them without NET_ADMIN."""
    for program in programs:
        (folder / program).unlink(missing_ok=True)  # a link: nothing must be written through it
        command = f"{real('setpriv')} --bounding-set=-net_admin -- {real(program)}"
        (folder / program).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (folder / program).chmod(0o755)


async def test_a_missing_iptables_is_a_reason_and_no_end(node: Node, path: Path) -> None:
    async with intercepting(node) as (interceptor, clock):
        assert interceptor.reason == f"the program {node.family.program} is not on PATH: install it in the image"
        link(path, *programs_of(node))

        await clock.next_round()

        assert interceptor.ready
        assert verdict(node.nat_table(), node.family.redirect) == Intact()


async def test_a_missing_conntrack_is_a_reason_while_the_rules_are_in_place(node: Node, path: Path) -> None:
    link(path, *programs_of(node))
    async with intercepting(node, forget_flows=True) as (interceptor, clock):
        assert interceptor.reason == "the program conntrack is not on PATH: install it in the image"
        assert verdict(node.nat_table(), node.family.redirect) == Intact()
        link(path, "conntrack")

        await clock.next_round()

        assert interceptor.ready


async def test_a_missing_permission_is_a_reason_and_no_end(node: Node, path: Path) -> None:
    without_permission(path, *programs_of(node), node.family.program)
    link(path, "conntrack")
    async with intercepting(node, forget_flows=True) as (interceptor, clock):
        assert interceptor.reason.startswith(
            "no permission to change the firewall; NMI needs root, NET_ADMIN and NET_RAW: "
        )
        link(path, *programs_of(node))
        await clock.next_round()
        assert interceptor.ready
        without_permission(path, "conntrack")
        await clock.next_round()
        assert interceptor.reason.startswith("no permission")
        link(path, "conntrack")
        await clock.next_round()
        assert interceptor.ready


# NMI's container: a look for each line of input, and what it came to.
LOOKS = """
import sys
import uvloop
from apps.nmi.netfilter.firewall import Iptables
from apps.nmi.netfilter.interceptor import Interception, Interceptor
from apps.nmi.netfilter.rules import Redirect

class Clock:
    async def sleep(self, seconds):
        print(interceptor.reason or "ready", flush=True)
        if not sys.stdin.readline():
            raise SystemExit

sys.stdin.readline()
metadata_ip, nmi_ip, *pods = sys.argv[1:]
redirect = Redirect(metadata_ip, 80, nmi_ip, 2579)
interception = Interception(redirect, forget_flows=True)
interceptor = Interceptor(interception, Iptables(redirect.family), Clock(), lambda: 0.5, lambda: pods)
uvloop.run(interceptor.run())
"""


@contextlib.contextmanager
def container(node: Node, *wrapper: str, pods: tuple[str, ...] = ()) -> Iterator[Callable[[], str]]:
    """NMI's interception in a process of its own, which *wrapper* gives less rights; gives what looks once."""
    arguments = (node.family.metadata_ip, node.family.nmi_ip, *pods)
    process = subprocess.Popen(
        [*wrapper, sys.executable, "-c", LOOKS, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def look() -> str:
        process.stdin.write("\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    try:
        yield look
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(30)


def with_capabilities(*capabilities: str) -> tuple[str, ...]:
    kept = ",".join(("-all", *(f"+{capability}" for capability in capabilities)))
    return ("setpriv", f"--bounding-set={kept}", "--")


def test_the_capabilities_of_the_manifest_are_enough(node: Node) -> None:
    (CONF / "all" / "route_localnet").write_text("1")

    with container(node, *with_capabilities("dac_read_search", "net_admin", "net_raw")) as look:
        assert look() == "ready"

    assert verdict(node.nat_table(), node.family.redirect) == Intact()


def test_without_capabilities_the_reason_names_them(node: Node) -> None:
    with container(node, *with_capabilities("dac_read_search")) as look:
        assert look().startswith("no permission to change the firewall; NMI needs root, NET_ADMIN and NET_RAW")
        assert look().startswith("no permission to change the firewall")


READ_ONLY_SETTINGS = (
    "unshare",
    "--mount",
    "sh",
    "-ec",
    'mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys; exec "$@"',
    "sh",
)
REMEDY = "on the node, run: sysctl -w net.ipv4.conf.all.route_localnet=1"


def set_route_localnet(interface: str) -> None:
    (CONF / interface / "route_localnet").write_text("1")


@BOTH_BACK_ENDS_IN_IPV4
@pytest.mark.parametrize("interface", ["all", "pod0"])
def test_in_a_container_that_may_not_set_route_localnet_the_reason_is_the_remedy(node: Node, interface: str) -> None:
    with container(node, *READ_ONLY_SETTINGS) as look:
        reason = look()
        assert "also for every interface, and cannot be set from here (Read-only file system)" in reason
        assert reason.endswith(REMEDY)
        assert (
            verdict(node.nat_table(), node.family.redirect) == Intact()
        )  # no answer rather than the node's identities
        set_route_localnet(interface)
        assert look() == "ready"


@pytest.mark.parametrize("node", [("nft", IPV6)], ids=["nft-ipv6"], indirect=True)
def test_ipv6_needs_no_setting(node: Node) -> None:
    with container(node, *READ_ONLY_SETTINGS) as look:
        assert look() == "ready"


@pytest.mark.parametrize("node", [("nft", IPV4)], ids=["nft-ipv4"], indirect=True)
@pytest.mark.parametrize(
    ("wire", "interfaces"), [(bridged_pods, ["cni0"]), (routed_pods, ["azv0", "azv1"])], ids=["bridge", "azure-cni"]
)
@pytest.mark.usefixtures("nmi")
async def test_nmi_is_ready_exactly_when_the_kernel_lets_its_pods_come_in(
    node: Node, wire: Callable[[Node], AbstractContextManager[dict[str, str]]], interfaces: list[str]
) -> None:
    set_route_localnet("pod0")  # of no help to the others
    with wire(node) as pods, container(node, *READ_ONLY_SETTINGS, pods=(node.family.node_ip, *pods)) as look:
        for number, interface in enumerate(interfaces):
            assert f"also for {', '.join(interfaces[number:])}, and cannot be set" in look()
            assert "TimeoutError" in await answers(node, pods)
            set_route_localnet(interface)

        assert look() == "ready"
        assert await answers(node, pods) == [f"nmi saw {address}" for address in pods]


async def answers(node: Node, pods: dict[str, str]) -> list[str]:
    """What each pod is answered."""
    found = []
    for namespace in pods.values():
        async with client_in(namespace, node, patience_s=0.5) as pod:
            found.append(await pod.ask())
    return found
