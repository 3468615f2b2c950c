"""Scheduler and kubelet, as far as a demo needs them: pods get a node and an address, and some are real processes."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from apps.sandbox.cluster import Cluster
from apps.sandbox.deployments import Deployments
from apps.sandbox.following import follow
from apps.sandbox.options import Program
from apps.sandbox.podlog import PodLog
from apps.sandbox.resources import DEPLOYMENTS, NODES, PODS
from apps.sandbox.status import StatusError
from apps.sandbox.store import timestamp
from apps.sandbox.versions import Body, Stored

_STOP_S = 1.0  # what processes get between SIGTERM and SIGKILL when the sandbox ends


@dataclass(slots=True)
class _Run:
    """A pod on a node: its address and, if its image is known, its process."""

    namespace: str
    name: str
    uid: str
    address: str
    log: PodLog = field(default_factory=PodLog)
    spawned: asyncio.Event = field(default_factory=asyncio.Event)
    process: asyncio.subprocess.Process | None = None
    started: asyncio.Task[None] | None = None
    ending: asyncio.Task[None] | None = None


class Nodes:
    """Runs the cluster's pods on *addresses* (node name to address) until *stop*.

    A pod whose first container with an image of *images* (by prefix) exists runs that program: with PATH, HOSTNAME,
    POD_IP, the program's and the container's environment. It is Succeeded or Failed when the program exits and is not
    restarted. All other pods just become Running.
    """

    def __init__(self, cluster: Cluster, addresses: Mapping[str, str], images: Mapping[str, Program]) -> None:
        self._cluster = cluster
        self._addresses = addresses
        self._images = images
        self._numbers = itertools.count(1)
        self._runs: dict[str, _Run] = {}
        self._placed: dict[str, str] = {}  # uid of a pod to the node that was chosen for it
        self._logs: dict[tuple[str, str], PodLog] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._deployments = Deployments(cluster)
        cluster.holds = lambda pod: pod.body["metadata"]["uid"] in self._runs

    def start(self) -> None:
        """Begin to look after pods and Deployments."""
        store = self._cluster.store
        self._tasks.append(asyncio.create_task(follow(store, PODS, self._reconcile)))
        self._tasks.append(asyncio.create_task(follow(store, DEPLOYMENTS, self._deployments.reconcile)))

    async def stop(self) -> None:
        """End all processes; none is left when this returns."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        runs = tuple(self._runs.values())
        await asyncio.gather(*(self._stop_process(run, _STOP_S) for run in runs))
        await asyncio.gather(*(run.ending for run in runs if run.ending is not None))

    def log(self, namespace: str, name: str) -> PodLog | None:
        """Return the output of the newest pod of that name, if it is or was a process."""
        return self._logs.get((namespace, name))

    def _reconcile(self, held: Stored, is_gone: bool) -> None:
        self._deployments.reconcile_owner(held)
        pod = held.body
        run = self._runs.get(pod["metadata"]["uid"])
        if is_gone:
            self._placed.pop(pod["metadata"]["uid"], None)
        if is_gone or "deletionTimestamp" in pod["metadata"]:
            self._end(pod, run, is_gone)
        elif not pod["spec"].get("nodeName"):
            self._schedule(held)
        elif run is None and pod["spec"]["nodeName"] in self._addresses and _phase(pod) == "Pending":
            self._start(pod)

    def _schedule(self, held: Stored) -> None:
        wanted = held.body["spec"].get("nodeSelector") or {}
        nodes = [node for node in self._cluster.store.list(NODES) if wanted.items() <= node.labels.items()]
        names = [node.name for node in nodes if node.name in self._addresses]
        if not names:
            return
        load = Counter(self._placed.values())
        chosen = self._placed[held.body["metadata"]["uid"]] = min(names, key=lambda name: load[name])

        def bind(pod: Body) -> None:
            pod["spec"]["nodeName"] = chosen
            condition = {"type": "PodScheduled", "status": "True", "lastTransitionTime": timestamp()}
            pod.setdefault("status", {})["conditions"] = [condition]

        self._cluster.change("pods", held.namespace, held.name, bind)

    def _start(self, pod: Body) -> None:
        meta, spec = pod["metadata"], pod["spec"]
        number = next(self._numbers)
        own = f"127.1.{number >> 8 & 255}.{number & 255}"
        address = self._addresses[spec["nodeName"]] if spec.get("hostNetwork") else own
        run = _Run(meta["namespace"], meta["name"], meta["uid"], address)
        self._runs[run.uid] = run
        for container in spec.get("containers", ()):
            for prefix, program in self._images.items():
                if container.get("image", "").startswith(prefix):
                    self._logs[run.namespace, run.name] = run.log
                    run.started = asyncio.create_task(self._run(run, pod, container, program))
                    return
        self._set_status(run, "Running")

    async def _run(self, run: _Run, pod: Body, container: Body, program: Program) -> None:
        argv = [*program.argv, *container.get("args", ())]
        try:
            run.process, output = await _spawn(argv, self._environment(run, pod, container, program), run.log)
        except OSError as error:
            run.log.write(f"cannot start {argv[0]}: {error.strerror}\n".encode())
            run.log.finish()
            self._set_status(run, "Failed", exit_code=128)
            return
        finally:
            run.spawned.set()
        self._set_status(run, "Running")
        code = await run.process.wait()
        _signal(run.process, signal.SIGKILL)  # children that it has left, which may hold the output open
        await output.ended.wait()
        run.log.finish()
        self._set_status(run, "Failed" if code else "Succeeded", exit_code=code)

    def _environment(self, run: _Run, pod: Body, container: Body, program: Program) -> dict[str, str]:
        pod = {**pod, "status": {"podIP": run.address, "hostIP": self._addresses[pod["spec"]["nodeName"]]}}
        own = {entry["name"]: _value(entry, pod) for entry in container.get("env", ())}
        base = {"PATH": os.environ.get("PATH", os.defpath), "HOSTNAME": run.name, "POD_IP": run.address}
        return {**base, **program.env, **own}

    def _end(self, pod: Body, run: _Run | None, is_gone: bool) -> None:
        meta = pod["metadata"]
        if run is None:
            if not is_gone and not meta.get("finalizers"):
                self._cluster.delete(PODS, meta["namespace"], meta["name"], 0)
        elif run.ending is None:
            grace_s = 0 if is_gone else int(meta.get("deletionGracePeriodSeconds") or 0)
            run.ending = asyncio.create_task(self._finish(run, grace_s))

    async def _finish(self, run: _Run, grace_s: float) -> None:
        await self._stop_process(run, grace_s)
        del self._runs[run.uid]
        if (pod := self._pod(run)) is not None:
            self._cluster.delete(PODS, run.namespace, run.name, 0)
            if pod["metadata"].get("finalizers"):
                return
        if self._logs.get((run.namespace, run.name)) is run.log:
            del self._logs[run.namespace, run.name]

    async def _stop_process(self, run: _Run, grace_s: float) -> None:
        if run.started is None:
            return
        await run.spawned.wait()  # a start takes a moment and cannot be undone
        if run.process is not None and grace_s:
            _signal(run.process, signal.SIGTERM)
            await asyncio.wait({run.started}, timeout=grace_s)
        if run.process is not None:
            _signal(run.process, signal.SIGKILL)
        await asyncio.wait({run.started})

    def _pod(self, run: _Run) -> Body | None:
        with suppress(StatusError):
            pod = self._cluster.store.get(PODS, run.namespace, run.name).body
            return pod if pod["metadata"]["uid"] == run.uid else None
        return None

    def _set_status(self, run: _Run, phase: str, exit_code: int | None = None) -> None:
        if (pod := self._pod(run)) is None:
            return
        state = {"startedAt": pod.get("status", {}).get("startTime") or timestamp()}
        if exit_code is None:
            states: Body = {"running": state}
        else:
            reason = "Error" if exit_code else "Completed"
            done = {**state, "exitCode": exit_code, "reason": reason, "finishedAt": timestamp()}
            states = {"terminated": done}
        pod["status"] = _status(pod, phase, run.address, self._addresses[pod["spec"]["nodeName"]], states)
        self._cluster.replace(pod, PODS)


def _status(pod: Body, phase: str, address: str, host: str, state: Body) -> Body:
    ready = "True" if phase == "Running" else "False"
    now = timestamp()
    kinds = {"PodScheduled": "True", "Initialized": "True", "ContainersReady": ready, "Ready": ready}
    containers = [
        {
            "name": entry["name"],
            "image": entry.get("image", ""),
            "imageID": "",
            "ready": phase == "Running",
            "started": phase == "Running",
            "restartCount": 0,
            "state": state,
        }
        for entry in pod["spec"].get("containers", ())
    ]
    return {
        "phase": phase,
        "qosClass": "BestEffort",
        "hostIP": host,
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": pod.get("status", {}).get("startTime") or now,
        "conditions": [{"type": kind, "status": value, "lastTransitionTime": now} for kind, value in kinds.items()],
        "containerStatuses": containers,
    }


def _phase(pod: Body) -> str:
    return str(pod.get("status", {}).get("phase", "Pending"))


def _value(entry: Mapping[str, Any], pod: Body) -> str:
    """Return the value of one entry of a container's env; of references only fieldRef is known."""
    path = entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath", "")
    found: Any = pod
    for part in path.split(".") if path else ():
        found = found.get(part, "") if isinstance(found, Mapping) else ""
    return str(found) if path else str(entry.get("value", ""))


class _Output(asyncio.Protocol):
    """Writes what comes through a pipe to a log."""

    def __init__(self, log: PodLog) -> None:
        self.ended = asyncio.Event()
        self._log = log

    def data_received(self, data: bytes) -> None:
        self._log.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc  # how a pipe ends makes no difference
        self.ended.set()


async def _spawn(
    argv: Sequence[str], env: Mapping[str, str], log: PodLog
) -> tuple[asyncio.subprocess.Process, _Output]:
    """Start a program in a session of its own, its output going to *log*. Raises OSError."""
    # A pipe of our own: with asyncio's, wait() would last until children of the program have closed it too.
    reading, writing = os.pipe()
    output = _Output(log)
    pipe = os.fdopen(reading, "rb", buffering=0)
    await asyncio.get_running_loop().connect_read_pipe(lambda: output, pipe)
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=writing,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    finally:
        os.close(writing)
    return process, output


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
