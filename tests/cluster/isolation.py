"""Namespaces of our own for the whole run: one process to kill, and nothing of the machine is touched.

The pytest process forks. Its child becomes process 1 of new PID, mount and network namespaces and runs the
tests there; the parent passes signals on and waits. Process 1 *is* the node: the control plane, the Azure
side, MIC and NMI all run in its network namespace, and pods get namespaces connected to it. When it ends,
however it ends, the kernel kills every process that it left and removes every link, address, rule and
mount. So two runs never meet, and there is nothing that a killed run could leave behind.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.errors import MachineLacks

RUN = Path("/run/podidentity")  # on the run's own tmpfs: keys, tokens and etcd's data never reach a disk

TOOLS = {"mount": "mount", "ip": "iproute2", "nsenter": "util-linux", "iptables": "iptables", "conntrack": "conntrack"}

CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x20000000, 0x40000000
PR_SET_PDEATHSIG = 1


def require_machine() -> None:
    """Check what the tier needs of the machine. Raises MachineLacks."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise MachineLacks("the cluster tests make network namespaces and iptables rules: run them as root on Linux")
    for tool, package in TOOLS.items():
        if shutil.which(tool) is None:
            raise MachineLacks(f"no '{tool}' on PATH: apt-get install {package}")


def is_inside() -> bool:
    """Tell whether this process runs in the namespaces that `enter` makes."""
    return RUN.is_dir() and os.getpid() == 1


def enter() -> None:
    """Continue in a child inside new namespaces; the parent never returns but exits as the child does."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise MachineLacks(f"cannot make namespaces ({reason}): the tests need CAP_SYS_ADMIN, as on a machine or VM")
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child != 0:
        _wait_and_exit(child)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # A Ctrl-C reaches both processes: only the parent reacts, and tells us with SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _prepare_mounts()
        _prepare_node()
    except (RuntimeError, OSError) as error:
        raise MachineLacks(f"cannot prepare the namespaces: {error}") from error


def _wait_and_exit(child: int) -> None:
    """Pass the first SIGINT or SIGTERM on to *child*, kill it at the second, and exit with its code."""
    heard: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        os.kill(child, signal.SIGKILL if heard else signal.SIGTERM)
        heard.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(128 - code if code < 0 else code)


def _prepare_mounts() -> None:
    """Give the run its own /proc and /run, and a resolver that answers "nobody there" at once."""
    run("mount", "--make-rprivate", "/")
    run("mount", "-t", "proc", "proc", "/proc")
    resolver = Path("/etc/resolv.conf").resolve()
    run("mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", "/run")
    RUN.mkdir(mode=0o700)
    # The machine's resolver cannot be reached from here: a look-up would take its whole time-out.
    own = RUN / "resolv.conf"
    own.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    if resolver.exists():
        run("mount", "--bind", str(own), str(resolver))
    elif resolver.is_relative_to("/run"):
        resolver.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(own, resolver)


def _prepare_node() -> None:
    """Turn the new network namespace into a node: it forwards, and may redirect to loopback addresses."""
    run("ip", "link", "set", "lo", "up")
    for setting, value in (
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/conf/all/route_localnet", "1"),  # as kube-proxy sets it: NMI listens on 127.0.0.1
        ("net/ipv4/conf/default/route_localnet", "1"),
    ):
        Path("/proc/sys", setting).write_text(value)


def run(*command: str, stdin: str | None = None) -> str:
    """Run a short administrative command and return its output; an error carries what it said."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, input=stdin, timeout=30)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def in_namespace(name: str | None, command: Sequence[str]) -> list[str]:
    """Return *command* as it runs in the pod namespace *name*, or unchanged for the node itself."""
    # Not `ip netns exec`: it remounts /sys.
    return list(command) if name is None else ["nsenter", f"--net=/run/netns/{name}", "--", *command]
