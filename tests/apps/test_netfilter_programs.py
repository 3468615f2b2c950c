"""The programs behind NMI's interception: small executables on PATH stand in for iptables and conntrack."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from apps.nmi.netfilter.command import run
from apps.nmi.netfilter.firewall import Iptables
from apps.nmi.netfilter.route_localnet import ensure_route_localnet
from apps.nmi.netfilter.rules import Redirect
from podidentity_core.errors import PermissionRefused, PodIdentityError, RefusedError, TransientError

REDIRECT = Redirect("169.254.169.254", 80, "127.0.0.1", 2579)
KUBE_CHAINS = "echo '*mangle'; echo ':KUBE-KUBELET-CANARY - [0:0]'; echo COMMIT"
EMPTY_TABLE = "echo '*mangle'; echo ':PREROUTING ACCEPT [0:0]'; echo COMMIT"
LOCK_HELD = "Another app is currently holding the xtables lock. Stopped waiting after 5s."
NO_TABLE = "can't initialize iptables table `nat': Table does not exist (do you need to insmod?)"


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


async def test_what_a_program_prints_and_how_it_ends_come_back(programs: Programs) -> None:
    programs.add("tool", "cat; printf '\\377'; echo '# remark' >&2; echo ' first ' >&2; echo second >&2; exit 3")

    finished = await run("tool", "-a", "b c", stdin="in\n", deadline_s=5)

    assert (finished.status, finished.out, finished.complaint) == (3, "in\n\N{REPLACEMENT CHARACTER}", "first; second")
    assert programs.calls == ["tool -a b c"]


async def test_a_long_complaint_is_cut(programs: Programs) -> None:
    programs.fail("tool", 1, "x" * 5000)

    assert len((await run("tool", deadline_s=5)).complaint) == 300


async def test_a_missing_program_is_named(programs: Programs) -> None:
    with pytest.raises(RefusedError, match="nowhere is not on PATH"):
        await run("nowhere", deadline_s=5)


async def test_a_file_that_is_not_executable_is_an_error_and_not_a_crash(programs: Programs) -> None:
    (programs.folder / "tool").write_text("no program")

    with pytest.raises(TransientError, match="cannot start tool: Permission denied"):
        await run("tool", deadline_s=5)


HANGING = "sleep 600 & echo $$ $! > {pids}.new; mv {pids}.new {pids}; wait"


async def hang_and_be_ended(programs: Programs, pids: Path) -> None:
    with pytest.raises(TransientError, match=r"tool did not finish within 1 s"):
        await run("tool", deadline_s=1)
    await gone(pids)


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


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_program_that_hangs_is_ended_with_all_that_it_started(
    programs: Programs, tmp_path: Path, new_loop: type[asyncio.AbstractEventLoop]
) -> None:
    pids = tmp_path / "pids"
    programs.folder.joinpath("mv").symlink_to("/bin/mv")
    programs.add("tool", HANGING.format(pids=pids))

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(hang_and_be_ended(programs, pids))


async def test_cancelling_ends_the_program(programs: Programs, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    programs.folder.joinpath("mv").symlink_to("/bin/mv")
    programs.add("tool", HANGING.format(pids=pids))
    task = asyncio.create_task(run("tool", deadline_s=60))
    await until(pids.exists)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    await gone(pids)


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
async def test_the_back_end_is_the_one_with_the_chains_of_kubernetes(
    programs: Programs, nft: str | None, legacy: str | None, chosen: str
) -> None:
    for name, script in (("iptables-nft-save", nft), ("iptables-legacy-save", legacy)):
        if script is not None:
            programs.add(name, script)
    for name in ("iptables", "iptables-nft", "iptables-legacy"):
        programs.add(name, f"echo {name}")

    listing = await Iptables().listing()

    assert listing == f"{chosen}\n{chosen}\n"
    assert programs.calls[-2:] == [f"{chosen} -w 5 -t nat -S PREROUTING", f"{chosen} -w 5 -t nat -S aad-metadata"]


async def test_the_back_end_is_looked_for_once_and_again_after_a_failure(programs: Programs) -> None:
    programs.add("iptables-nft-save", EMPTY_TABLE)
    programs.add("iptables", "exit 0")
    firewall = Iptables()
    await firewall.listing()
    await firewall.listing()
    assert programs.calls.count("iptables-nft-save -t mangle") == 1
    programs.fail("iptables", 4, "")
    with pytest.raises(TransientError):
        await firewall.listing()
    programs.add("iptables-nft-save", KUBE_CHAINS)
    programs.add("iptables-nft", "echo nft")

    assert await firewall.listing() == "nft\nnft\n"


async def test_a_chain_that_does_not_exist_is_no_error(programs: Programs) -> None:
    programs.add(
        "iptables",
        "case $6 in PREROUTING) echo -P PREROUTING ACCEPT;;"
        " *) echo 'iptables: No chain/target/match by that name.' >&2; exit 1;; esac",
    )

    assert await Iptables().listing() == "-P PREROUTING ACCEPT\n"


async def test_a_transaction_goes_in_whole_through_standard_input(programs: Programs, tmp_path: Path) -> None:
    programs.add("iptables-restore", f"cat > {tmp_path / 'received'}")

    await Iptables().restore("*nat\nCOMMIT\n")

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
async def test_a_failing_iptables_is_an_error_that_says_what_to_do(
    programs: Programs, status: int, complaint: str, error: type[PodIdentityError], says: str
) -> None:
    programs.fail("iptables-restore", status, complaint)

    with pytest.raises(error, match=says):
        await Iptables().restore("*nat\nCOMMIT\n")


async def test_without_iptables_the_message_names_it(programs: Programs) -> None:
    with pytest.raises(RefusedError, match="the program iptables is not on PATH"):
        await Iptables().listing()


async def test_an_iptables_that_hangs_holds_nothing_up_for_long(programs: Programs) -> None:
    programs.add("iptables", "exec sleep 600")

    with pytest.raises(TransientError, match="did not finish"):
        await Iptables(deadline_s=0.2).listing()


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (0, "conntrack v1.4.7 (conntrack-tools): 2 flow entries have been deleted."),
        (1, "conntrack v1.4.7 (conntrack-tools): 0 flow entries have been deleted."),
    ],
)
async def test_cutting_older_connections_succeeds_also_when_there_are_none(
    programs: Programs, status: int, line: str
) -> None:
    programs.fail("conntrack", status, line)

    await Iptables().forget_flows(REDIRECT)

    assert programs.calls == ["conntrack -D -p tcp -d 169.254.169.254 --dport 80 --reply-src 169.254.169.254"]


async def test_a_conntrack_without_permission_is_an_error(programs: Programs) -> None:
    programs.fail(
        "conntrack", 1, "Operation failed: sorry, you must be root or get CAP_NET_ADMIN capability to do this"
    )

    with pytest.raises(PermissionRefused, match="NET_ADMIN"):
        await Iptables().forget_flows(REDIRECT)


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    for name in ("all", "default", "lo", "eth0", "cni0"):
        (tmp_path / "conf" / name).mkdir(parents=True)
        (tmp_path / "conf" / name / "route_localnet").write_text("0\n")
    return tmp_path / "conf"


def forbid_writing(conf: Path) -> None:
    """Put a file of the kernel in the setting's place: nobody can write it, root included, and it is not 1."""
    setting = conf / "all" / "route_localnet"
    setting.unlink()
    setting.symlink_to("/proc/sys/kernel/ngroups_max")


def test_route_localnet_that_is_set_stays_untouched(conf: Path) -> None:
    setting = conf / "all" / "route_localnet"
    setting.write_text("1\n")
    os.utime(setting, (1, 1))

    ensure_route_localnet(conf)

    assert setting.stat().st_mtime == 1


def test_route_localnet_is_set_if_permitted(conf: Path) -> None:
    ensure_route_localnet(conf)

    assert (conf / "all" / "route_localnet").read_text() == "1\n"


def test_route_localnet_that_cannot_be_set_names_the_remedy(conf: Path) -> None:
    forbid_writing(conf)
    for name in ("lo", "default"):  # neither is an interface that pods come in by
        (conf / name / "route_localnet").write_text("1\n")

    with pytest.raises(RefusedError, match=r"sysctl -w net\.ipv4\.conf\.all\.route_localnet=1"):
        ensure_route_localnet(conf)


def test_an_interface_that_has_route_localnet_is_enough(conf: Path) -> None:
    forbid_writing(conf)
    (conf / "cni0" / "route_localnet").write_text("1\n")

    ensure_route_localnet(conf)


def test_a_kernel_without_ipv4_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="No such file or directory"):
        Iptables(conf=tmp_path).ensure_route_localnet()
