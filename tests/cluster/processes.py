"""Programs under test as real processes, on the node or in a pod, with their output kept in a file."""

import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tests.cluster.errors import NotInTime
from tests.cluster.isolation import in_namespace
from tests.cluster.network import PodNetwork
from tests.cluster.waiting import until

TAIL_LINES = 40

# Nothing else of the caller's environment reaches a program: a proxy or an Azure variable would change what it does.
BASE_ENVIRONMENT = {
    name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TZ", "PYTHONDONTWRITEBYTECODE") if name in os.environ
}


class Process:
    """A started program. Its standard output and error go to one file."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes], output: Path) -> None:
        self.name = name
        self.output = output
        self._popen = popen

    @property
    def pid(self) -> int:
        """Return the process id, as seen inside the run."""
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """Return the exit code, negative for a signal, or None while it runs."""
        return self._popen.poll()

    def lines(self) -> list[str]:
        """Return what it has printed so far."""
        return self.output.read_text(errors="replace").splitlines()

    def tail(self) -> str:
        """Return the last lines that it printed, and how it ended, for a failure report."""
        state = "runs" if self.exit_code is None else f"exit code {self.exit_code}"
        return "\n".join([*self.lines()[-TAIL_LINES:], f"[{self.name}: {state}]"])

    def wait_for_line(self, pattern: str, *, within_s: float = 10) -> str:
        """Return the first line in which *pattern* is found. Raises NotInTime, at once if it has ended."""

        def found() -> str | None:
            ended = self.exit_code is not None  # asked first: nothing is printed after it
            line = next((line for line in self.lines() if re.search(pattern, line)), None)
            if line is None and ended:
                raise NotInTime(f"{self.name} ended before it printed {pattern!r}:\n{self.tail()}")
            return line

        return until(found, f"{self.name} prints {pattern!r}", within_s=within_s)

    def wait_for_exit(self, *, within_s: float = 10) -> int:
        """Return the exit code once it has ended. Raises NotInTime."""
        try:
            return self._popen.wait(within_s)
        except subprocess.TimeoutExpired:
            raise NotInTime(f"{self.name} still runs after {within_s} s:\n{self.tail()}") from None

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._popen.send_signal(number)

    def stop(self, *, within_s: float = 10) -> int:
        """Ask it to end (SIGTERM), insist after *within_s* (SIGKILL), and return the exit code."""
        self._popen.terminate()
        with suppress(NotInTime):
            return self.wait_for_exit(within_s=within_s)
        return self.kill()

    def kill(self) -> int:
        """End it as a crash would (SIGKILL), and return the exit code."""
        self._popen.kill()
        return self._popen.wait()


class Processes:
    """Starts processes, and stops those that still run, the newest first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[Process] = []

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        pod: PodNetwork | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Process:
        """Start *command* on the node, or in *pod*, with *environment* and little else."""
        output = self._folder / f"{name}-{len(self._started)}.log"
        argv = in_namespace(pod.namespace if pod else None, [str(part) for part in command])
        with output.open("wb") as sink:
            popen = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env={**BASE_ENVIRONMENT, **(environment or {})},
                start_new_session=True,  # a Ctrl-C is for the tests, which then stop it
            )
        process = Process(name, popen, output)
        self._started.append(process)
        return process

    def stop_all(self) -> None:
        """Stop what still runs."""
        for process in reversed(self._started):
            if process.exit_code is None:
                process.stop()

    def report(self) -> str:
        """Return the tails of all outputs, for a failure report."""
        return "\n\n".join(f"{process.output}\n{process.tail()}" for process in self._started)
