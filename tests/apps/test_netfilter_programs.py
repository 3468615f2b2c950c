"""The programs behind NMI's interception: small executables on PATH stand in for iptables and conntrack."""

import asyncio
import functools
import inspect
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from apps.nmi.netfilter.command import Finished, run
from apps.nmi.netfilter.firewall import Iptables
from apps.nmi.netfilter.rules import Redirect
from podidentity_core.errors import PermissionRefused, PodIdentityError, RefusedError, TransientError
from tests.apps.kernel import Kernel

REDIRECT = Redirect("169.254.169.254", 80, "127.0.0.1", 2579)
REDIRECT6 = Redirect("fd00:ec2::254", 80, "fd00:10::4", 2579)
KUBE_CHAINS = "echo '*mangle'; echo ':KUBE-KUBELET-CANARY - [0:0]'; echo COMMIT"
EMPTY_TABLE = "echo '*mangle'; echo ':PREROUTING ACCEPT [0:0]'; echo COMMIT"
LOCK_HELD = "Another app is currently holding the xtables lock. Stopped waiting after 5s."
NO_TABLE = "can't initialize iptables table `nat': Table does not exist (do you need to insmod?)"


LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on asyncio's own event loop and on the daemons' one, which runs programs in its own way."""

    @pytest.mark.parametrize("new_loop", LOOPS.values(), ids=LOOPS)
    @functools.wraps(test)
    def on_one_loop(new_loop: Callable[[], asyncio.AbstractEventLoop], **fixtures: object) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(test(**fixtures))

    own = inspect.Parameter("new_loop", inspect.Parameter.KEYWORD_ONLY)
    wanted = inspect.signature(test)
    on_one_loop.__signature__ = wanted.replace(parameters=[*wanted.parameters.values(), own])
    return on_one_loop


class Programs:
    """A directory that is first on PATH, with executables that note how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._calls = folder / "calls"

    def add(self, name: str, script: str) -> None:
        path = self.folder / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {self._calls}\n{script}\n')
        path.chmod(0o755)

    def fail(self, name: str, status: int, complaint: str) -> None:
        self.add(name, f"cat >&2 <<'END'\n{complaint}\nEND\nexit {status}")

    @property
    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines()


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("sh", "cat", "sleep"):
        (folder / tool).symlink_to(f"/bin/{tool}")
    monkeypatch.setenv("PATH", str(folder))  # the machine's own iptables must not be found
    return Programs(folder)


@on_both_loops
async def test_what_a_program_prints_and_how_it_ends_come_back(programs: Programs) -> None:
    programs.add("tool", "cat; printf '\\377'; echo '# remark' >&2; echo ' first ' >&2; echo second >&2; exit 3")

    finished = await run("tool", "-a", "b c", stdin="in\n", deadline_s=5)

    assert (finished.status, finished.out, finished.complaint) == (3, "in\n\N{REPLACEMENT CHARACTER}", "first; second")
    assert programs.calls == ["tool -a b c"]


@on_both_loops
async def test_a_long_complaint_is_cut(programs: Programs) -> None:
    programs.fail("tool", 1, "x" * 5000)

    assert len((await run("tool", deadline_s=5)).complaint) == 300


@on_both_loops
async def test_a_missing_program_is_named(programs: Programs) -> None:
    with pytest.raises(RefusedError, match="nowhere is not on PATH"):
        await run("nowhere", deadline_s=5)


@on_both_loops
async def test_a_file_that_is_not_executable_is_an_error_and_not_a_crash(programs: Programs) -> None:
    (programs.folder / "tool").write_text("no program")

    with pytest.raises(TransientError, match="cannot start tool: Permission denied"):
        await run("tool", deadline_s=5)


HANGING = "sleep 600 & echo $$ $! > {pids}.new; mv {pids}.new {pids}; wait"
LEAVING_ONE_BEHIND = "sleep 600 & echo $! > {pids}.new; mv {pids}.new {pids}"


@pytest.fixture
def pids(programs: Programs, tmp_path: Path) -> Path:
    """Where a script of the program `tool` writes the processes that must be ended with it."""
    programs.folder.joinpath("mv").symlink_to("/bin/mv")
    return tmp_path / "pids"


async def gone(pids: Path) -> None:
    await until(lambda: not any(_alive(int(pid)) for pid in pids.read_text().split()))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - another process makes it true
            await asyncio.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"  # an orphan's exit status is for init to collect


@pytest.mark.parametrize("script", [HANGING, LEAVING_ONE_BEHIND], ids=["itself", "what it started"])
@on_both_loops
async def test_a_program_that_hangs_is_ended_with_all_that_it_started(
    programs: Programs, pids: Path, script: str
) -> None:
    programs.add("tool", script.format(pids=pids))

    with pytest.raises(TransientError, match=r"tool did not finish within 1 s"):
        await run("tool", deadline_s=1)

    await gone(pids)


@on_both_loops
async def test_cancelling_ends_the_program(programs: Programs, pids: Path) -> None:
    programs.add("tool", HANGING.format(pids=pids))
    task = asyncio.create_task(run("tool", deadline_s=60))
    await until(pids.exists)

    await cancelled(task)

    await gone(pids)


@on_both_loops
async def test_cancelling_ends_a_program_that_has_just_been_started(programs: Programs, pids: Path) -> None:
    programs.add("tool", HANGING.format(pids=pids))
    task = asyncio.create_task(run("tool", deadline_s=60))
    while not pids.exists():  # noqa: ASYNC240
        await asyncio.sleep(0)
        time.sleep(0.1)  # noqa: ASYNC251 - the loop learns nothing of the start while the program goes on

    await cancelled(task)

    await gone(pids)


@on_both_loops
async def test_cancelling_before_a_program_turns_out_to_be_missing_is_still_a_cancellation(programs: Programs) -> None:
    task = asyncio.create_task(run("nowhere", deadline_s=60))
    await asyncio.sleep(0)

    await cancelled(task)


async def cancelled(task: asyncio.Task[Finished]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(5):
            await task


@pytest.mark.parametrize(
    ("nft", "legacy", "chosen"),
    [
        (KUBE_CHAINS, EMPTY_TABLE, "iptables-nft"),
        (EMPTY_TABLE, KUBE_CHAINS, "iptables-legacy"),
        (KUBE_CHAINS, KUBE_CHAINS, "iptables-nft"),
        (EMPTY_TABLE, EMPTY_TABLE, "iptables"),
        (None, KUBE_CHAINS, "iptables-legacy"),
        (KUBE_CHAINS, None, "iptables-nft"),
        (None, None, "iptables"),
        ("exit 1", "exit 1", "iptables"),
    ],
)
@on_both_loops
async def test_the_back_end_is_the_one_with_the_chains_of_kubernetes(
    programs: Programs, nft: str | None, legacy: str | None, chosen: str
) -> None:
    for name, script in (("iptables-nft-save", nft), ("iptables-legacy-save", legacy)):
        if script is not None:
            programs.add(name, script)
    for name in ("iptables", "iptables-nft", "iptables-legacy"):
        programs.add(name, f"echo {name}")

    listing = await Iptables(4).listing()

    assert listing == f"{chosen}\n{chosen}\n"
    assert programs.calls[-2:] == [f"{chosen} -w 5 -t nat -S PREROUTING", f"{chosen} -w 5 -t nat -S aad-metadata"]


@on_both_loops
async def test_for_ipv6_everything_is_asked_of_the_programs_of_ipv6(programs: Programs) -> None:
    programs.add("iptables-nft-save", KUBE_CHAINS)
    programs.add("ip6tables-nft-save", EMPTY_TABLE)
    programs.add("ip6tables-legacy-save", KUBE_CHAINS)
    for name in ("ip6tables-legacy", "ip6tables-legacy-restore"):
        programs.add(name, "exit 0")
    firewall = Iptables(6)

    await firewall.listing()
    await firewall.restore("*nat\nCOMMIT\n")

    assert programs.calls[-3:] == [
        "ip6tables-legacy -w 5 -t nat -S PREROUTING",
        "ip6tables-legacy -w 5 -t nat -S aad-metadata",
        "ip6tables-legacy-restore -w 5 --noflush",
    ]


@on_both_loops
async def test_the_back_end_is_looked_for_once_and_again_after_a_failure(programs: Programs) -> None:
    programs.add("iptables-nft-save", EMPTY_TABLE)
    programs.add("iptables", "exit 0")
    firewall = Iptables(4)
    await firewall.listing()
    await firewall.listing()
    assert programs.calls.count("iptables-nft-save -t mangle") == 1
    programs.fail("iptables", 4, "")
    with pytest.raises(TransientError):
        await firewall.listing()
    programs.add("iptables-nft-save", KUBE_CHAINS)
    programs.add("iptables-nft", "echo nft")

    assert await firewall.listing() == "nft\nnft\n"


@on_both_loops
async def test_a_chain_that_does_not_exist_is_no_error(programs: Programs) -> None:
    programs.add(
        "iptables",
        "case $6 in PREROUTING) echo -P PREROUTING ACCEPT;;"
        " *) echo 'iptables: No chain/target/match by that name.' >&2; exit 1;; esac",
    )

    assert await Iptables(4).listing() == "-P PREROUTING ACCEPT\n"


@on_both_loops
async def test_a_transaction_goes_in_whole_through_standard_input(programs: Programs, tmp_path: Path) -> None:
    programs.add("iptables-restore", f"cat > {tmp_path / 'received'}")

    await Iptables(4).restore("*nat\nCOMMIT\n")

    assert (tmp_path / "received").read_text() == "*nat\nCOMMIT\n"
    assert programs.calls == ["iptables-restore -w 5 --noflush"]


FAILURES = {
    "lock held": (4, LOCK_HELD, TransientError, "another program holds the xtables lock"),
    "not root": (4, "Fatal: can't open lock file /run/xtables.lock: Permission denied", PermissionRefused, "NET_ADMIN"),
    "no capability, legacy": (
        3,
        "iptables v1.8.9 (legacy): can't initialize iptables table `nat': Permission denied (you must be root)",
        PermissionRefused,
        "needs root, NET_ADMIN and NET_RAW",
    ),
    "no capability, nft": (
        4,
        "iptables v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission denied (you must be root)",
        PermissionRefused,
        "needs root, NET_ADMIN and NET_RAW",
    ),
    "no kernel support": (3, NO_TABLE, TransientError, r"Table does not exist .* \(exit status 3\)"),
    "bad line": (1, "iptables-restore: line 4 failed", TransientError, "line 4 failed"),
    "silence": (2, "", TransientError, r"no message \(exit status 2\)"),
}


@pytest.mark.parametrize(("status", "complaint", "error", "says"), FAILURES.values(), ids=FAILURES)
@on_both_loops
async def test_a_failing_iptables_is_an_error_that_says_what_to_do(
    programs: Programs, status: int, complaint: str, error: type[PodIdentityError], says: str
) -> None:
    programs.fail("iptables-restore", status, complaint)

    with pytest.raises(error, match=says):
        await Iptables(4).restore("*nat\nCOMMIT\n")


@on_both_loops
async def test_without_iptables_the_message_names_it(programs: Programs) -> None:
    with pytest.raises(RefusedError, match="the program iptables is not on PATH"):
        await Iptables(4).listing()


@on_both_loops
async def test_an_iptables_that_hangs_holds_nothing_up_for_long(programs: Programs) -> None:
    programs.add("iptables", "exec sleep 600")

    with pytest.raises(TransientError, match="did not finish"):
        await Iptables(4, deadline_s=0.2).listing()


SHOWN = "conntrack v1.4.7 (conntrack-tools): %d flow entries have been shown."
OLDER = """\
tcp      6 431999 ESTABLISHED src=10.244.0.7 dst=169.254.169.254 sport=4001 dport=80 \
src=169.254.169.254 dst=10.244.0.7 sport=80 dport=4001 [ASSURED] mark=0 use=1
tcp      6 110 SYN_SENT src=10.244.0.7 dst=169.254.169.254 sport=4002 dport=80 [UNREPLIED] \
src=169.254.169.254 dst=10.244.0.7 sport=80 dport=4002 mark=0 use=1
tcp      6 431999 ESTABLISHED src=10.244.0.8 dst=169.254.169.254 sport=4003 dport=80 \
src=169.254.169.254 dst=10.240.0.4 sport=80 dport=4003 [ASSURED] mark=0 use=1
tcp      6 431999 ESTABLISHED src=10.240.0.4 dst=169.254.169.254 sport=4004 dport=80 \
src=169.254.169.254 dst=10.240.0.4 sport=80 dport=4004 [ASSURED] mark=0 use=1
"""
TURNED_ROUND = """\
tcp      6 299 ESTABLISHED src=169.254.169.254 dst=10.244.0.9 sport=80 dport=4005 \
src=10.244.0.9 dst=169.254.169.254 sport=4005 dport=80 [ASSURED] mark=0 use=1
tcp      6 299 ESTABLISHED src=169.254.169.254 dst=10.240.0.4 sport=80 dport=4006 \
src=10.240.0.4 dst=169.254.169.254 sport=4006 dport=80 [ASSURED] mark=0 use=1
"""


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path / "proc")


def conntrack_with(older: str, turned_round: str) -> str:
    """A script that lists these connections, the second for a selection by source port, and deletes all."""
    return f"""\
case "$*" in
-L*--sport*) echo '{turned_round}';;
-L*) echo '{older}';;
*) echo 'conntrack v1.4.7 (conntrack-tools): 1 flow entries have been deleted.' >&2;;
esac"""


@on_both_loops
async def test_older_connections_of_each_pod_are_cut_and_the_nodes_own_are_not(
    programs: Programs, kernel: Kernel
) -> None:
    programs.add("conntrack", conntrack_with(OLDER, TURNED_ROUND))

    assert await Iptables(4, proc=kernel.proc).forget_flows(REDIRECT) == 3

    older = "-f ipv4 -p tcp -d 169.254.169.254 --dport 80 --reply-src 169.254.169.254"
    turned_round = "-f ipv4 -p tcp -s 169.254.169.254 --sport 80"
    assert programs.calls == [
        f"conntrack -L {older}",
        f"conntrack -D {older} -s 10.244.0.7",
        f"conntrack -D {older} -s 10.244.0.8",
        f"conntrack -L {turned_round}",
        f"conntrack -D {turned_round} -d 10.244.0.9",
    ]


@on_both_loops
async def test_without_older_connections_none_is_cut(programs: Programs, kernel: Kernel) -> None:
    programs.fail("conntrack", 0, SHOWN % 0)

    assert await Iptables(4, proc=kernel.proc).forget_flows(REDIRECT) == 0


@on_both_loops
async def test_a_connection_that_has_ended_before_it_is_cut_is_no_error(programs: Programs, kernel: Kernel) -> None:
    ended = "echo 'conntrack v1.4.7 (conntrack-tools): 0 flow entries have been deleted.' >&2; exit 1"
    programs.add("conntrack", f"case $1 in -L) echo '{OLDER}';; *) {ended};; esac")

    await Iptables(4, proc=kernel.proc).forget_flows(REDIRECT)

    assert "conntrack -D" in programs.calls[-1]


@on_both_loops
async def test_connections_of_ipv6_are_looked_for_in_their_own_table(programs: Programs, kernel: Kernel) -> None:
    line = "tcp 6 299 ESTABLISHED src={} dst=fd00:ec2::254 sport=1 dport=80 src=fd00:ec2::254 dst={} sport=80 dport=1"
    pod, node = (line.format(address, address) for address in ("fd00:244::7", "fd00:10::4"))
    programs.add("conntrack", conntrack_with(f"{pod}\n{node}", ""))

    assert await Iptables(6, proc=kernel.proc).forget_flows(REDIRECT6) == 1

    older = "-f ipv6 -p tcp -d fd00:ec2::254 --dport 80 --reply-src fd00:ec2::254"
    assert programs.calls[:2] == [f"conntrack -L {older}", f"conntrack -D {older} -s fd00:244::7"]


@on_both_loops
async def test_a_conntrack_without_permission_is_an_error(programs: Programs, kernel: Kernel) -> None:
    programs.fail(
        "conntrack", 1, "Operation failed: sorry, you must be root or get CAP_NET_ADMIN capability to do this"
    )

    with pytest.raises(PermissionRefused, match="NET_ADMIN"):
        await Iptables(4, proc=kernel.proc).forget_flows(REDIRECT)


@on_both_loops
async def test_without_the_kernels_tables_nothing_is_cut(programs: Programs, tmp_path: Path) -> None:
    with pytest.raises(TransientError, match=r"cannot read .*net/route: No such file or directory"):
        await Iptables(4, proc=tmp_path).forget_flows(REDIRECT)
