"""Pods on nodes: placement, addresses, real processes and their end, Deployments."""

import asyncio
import dataclasses
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from apps.sandbox.options import NodeSpec, Program, SandboxOptions, scale_set_nodes, vm_id
from apps.sandbox.sandbox import Sandbox
from tests.sandbox.objects import pod, until

PODS = "/api/v1/namespaces/default/pods"
WAITER = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: (print("told to stop"), sys.exit(0)))
print("pid", os.getpid(), os.environ["POD_IP"], os.environ["NODE"], os.environ["ADDED"], sys.argv[1:])
sys.stdout.flush()
signal.pause()
"""
STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    time.sleep(600)
print("pid", os.getpid(), flush=True)
time.sleep(600)
"""

LEAVER = """
import os, time
if os.fork() == 0:
    time.sleep(600)
print("pid", os.getpid(), flush=True)
"""


def python(code: str) -> Program:
    """Return a program that runs *code*."""
    return Program((sys.executable, "-u", "-c", code), {"ADDED": "by the caller"})


@pytest.fixture
def options(options: SandboxOptions) -> SandboxOptions:
    """Two nodes on a scale set, one on a VM, and some programs."""
    images = {
        "waiter": python(WAITER),
        "stubborn": python(STUBBORN),
        "leaver": python(LEAVER),
        "good": python("print('done')"),
        "bad": python("raise SystemExit(3)"),
        "missing": Program(("/does/not/exist",)),
    }
    nodes = (*scale_set_nodes(2), NodeSpec("vm-node", vm_id("vm1")))
    return dataclasses.replace(options, run_pods=True, nodes=nodes, images=images)


def program_pod(name: str, image: str, **more: Any) -> dict[str, Any]:
    """Return a pod that runs a program."""
    node = {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
    body = pod(name)
    body["spec"] = {"containers": [{"name": "main", "image": image, "args": ["--x"], "env": [node]}], **more}
    return body


def state(sandbox: Sandbox, name: str) -> dict[str, Any]:
    """Return a pod as it is now."""
    return sandbox.store.get(sandbox.cluster.registry.named("pods"), "default", name).body


def phase(sandbox: Sandbox, name: str) -> str:
    """Return a pod's phase."""
    return str(state(sandbox, name)["status"]["phase"])


async def printed(sandbox: Sandbox, name: str, word: str) -> str:
    """Wait until a pod has printed a whole line with *word* and return all that it has printed."""

    def whole() -> str:
        log = sandbox.kube.logs("default", name)
        text = "" if log is None else bytes(log.data).decode()
        return text if word in text and text.endswith("\n") else ""

    await until(whole)
    return whole()


async def test_pods_are_spread_and_get_addresses_of_their_own(kube: httpx.AsyncClient, sandbox: Sandbox) -> None:
    for name in "abc":
        made = (await kube.post(PODS, json=pod(name))).json()
        assert made["status"]["phase"] == "Pending"
    await until(lambda: all(phase(sandbox, name) == "Running" for name in "abc"))

    pods = [state(sandbox, name) for name in "abc"]
    assert {body["spec"]["nodeName"] for body in pods} == {node.name for node in sandbox.options.nodes}
    assert len({body["status"]["podIP"] for body in pods}) == 3
    assert all(body["status"]["podIP"].startswith("127.1.") for body in pods)
    assert {c["type"]: c["status"] for c in pods[0]["status"]["conditions"]}["Ready"] == "True"


async def test_a_pod_goes_where_its_selector_says_and_host_network_shares_the_address(sandbox: Sandbox) -> None:
    body = pod("a")
    body["spec"] |= {"nodeSelector": {"kubernetes.io/hostname": "vm-node"}, "hostNetwork": True}
    sandbox.cluster.create(body)
    lost = pod("lost")
    lost["spec"]["nodeSelector"] = {"none": "such"}
    sandbox.cluster.create(lost)
    await until(lambda: phase(sandbox, "a") == "Running")

    assert state(sandbox, "a")["spec"]["nodeName"] == "vm-node"
    assert state(sandbox, "a")["status"]["podIP"] == sandbox.node_addresses["vm-node"]
    assert phase(sandbox, "lost") == "Pending"


async def test_a_known_image_is_a_process_that_ends_with_its_pod(kube: httpx.AsyncClient, sandbox: Sandbox) -> None:
    sandbox.cluster.create(program_pod("a", "waiter:1"))
    words = (await printed(sandbox, "a", "pid")).split(maxsplit=4)
    held = state(sandbox, "a")

    deleted = await kube.delete(f"{PODS}/a")
    await until(lambda: not _is_alive(int(words[1])))
    await until(lambda: sandbox.cluster.objects("pods") == [])

    assert words[2:] == [held["status"]["podIP"], held["spec"]["nodeName"], "by the caller ['--x']\n"]
    assert deleted.json()["metadata"]["deletionTimestamp"]


async def test_what_ignores_sigterm_is_killed_with_its_children(sandbox: Sandbox) -> None:
    sandbox.cluster.create(program_pod("a", "stubborn", terminationGracePeriodSeconds=1))
    pid = int((await printed(sandbox, "a", "pid")).split()[1])

    sandbox.cluster.delete(sandbox.cluster.registry.named("pods"), "default", "a")

    await until(lambda: sandbox.cluster.objects("pods") == [])
    await until(lambda: not _group_is_alive(pid))


async def test_what_a_program_leaves_behind_ends_with_it(sandbox: Sandbox) -> None:
    sandbox.cluster.create(program_pod("a", "leaver"))
    await until(lambda: phase(sandbox, "a") == "Succeeded")
    pid = int((await printed(sandbox, "a", "pid")).split()[1])

    await until(lambda: not _group_is_alive(pid))


@pytest.mark.parametrize(
    ("image", "ended", "code", "text"),
    [
        ("good", "Succeeded", 0, "done\n"),
        ("bad", "Failed", 3, ""),
        ("missing", "Failed", 128, "cannot start /does/not/exist: No such file or directory\n"),
    ],
)
async def test_a_program_that_ends_ends_its_pod(
    kube: httpx.AsyncClient, sandbox: Sandbox, image: str, ended: str, code: int, text: str
) -> None:
    sandbox.cluster.create(program_pod("a", image))
    await until(lambda: phase(sandbox, "a") == ended)

    terminated = state(sandbox, "a")["status"]["containerStatuses"][0]["state"]["terminated"]
    assert terminated["exitCode"] == code
    assert (await kube.get(f"{PODS}/a/log")).text == text
    assert (await kube.delete(f"{PODS}/a")).status_code == 200
    await until(lambda: sandbox.cluster.objects("pods") == [])


async def test_logs_can_be_followed_and_cut(kube: httpx.AsyncClient, sandbox: Sandbox) -> None:
    sandbox.cluster.create(program_pod("a", "waiter"))
    await printed(sandbox, "a", "pid")
    tail = await kube.get(f"{PODS}/a/log", params={"tailLines": 1})
    async with kube.stream("GET", f"{PODS}/a/log", params={"follow": "true"}) as answer:
        lines = answer.aiter_lines()
        first = await anext(lines)
        sandbox.cluster.delete(sandbox.cluster.registry.named("pods"), "default", "a")
        async with asyncio.timeout(5):
            rest = [line async for line in lines]

    assert tail.text == first + "\n"
    assert rest == ["told to stop"]


async def test_a_pod_that_waits_for_a_node_has_no_logs_yet(kube: httpx.AsyncClient, sandbox: Sandbox) -> None:
    body = pod("a")
    body["spec"]["nodeSelector"] = {"none": "such"}
    sandbox.cluster.create(body)

    answer = await kube.get(f"{PODS}/a/log")

    assert answer.status_code == 400
    assert "ContainerCreating" in answer.json()["message"]


async def test_a_deployment_keeps_its_pods_and_takes_them_along(kube: httpx.AsyncClient, sandbox: Sandbox) -> None:
    url = "/apis/apps/v1/namespaces/default/deployments"
    template = {"metadata": {"labels": {"app": "a"}}, "spec": pod("x")["spec"]}
    spec = {"replicas": 2, "selector": {"matchLabels": {"app": "a"}}, "template": template}
    await kube.post(url, json={"metadata": {"name": "a"}, "spec": spec})
    await until(lambda: _ready(sandbox) == 2)
    first = {body["metadata"]["name"] for body in sandbox.cluster.objects("pods")}

    await kube.delete(f"{PODS}/{min(first)}")
    await until(lambda: _ready(sandbox) == 2 and min(first) not in _names(sandbox))
    template["metadata"]["labels"]["version"] = "2"  # type: ignore[index]
    merge = {"content-type": "application/merge-patch+json"}
    await kube.patch(f"{url}/a", json={"spec": {"replicas": 1, "template": template}}, headers=merge)
    await until(lambda: _ready(sandbox) == 1 and not first & _names(sandbox))
    await kube.delete(f"{url}/a")
    await until(lambda: sandbox.cluster.objects("pods") == [])


async def test_no_process_outlives_the_sandbox(options: SandboxOptions) -> None:
    async with Sandbox(options) as sandbox:
        for name, image in (("a", "waiter"), ("b", "stubborn")):
            sandbox.cluster.create(program_pod(name, image))
        pids = [int((await printed(sandbox, name, "pid")).split()[1]) for name in "ab"]
        assert all(_is_alive(pid) for pid in pids)

    await until(lambda: not any(_group_is_alive(pid) for pid in pids))


def _names(sandbox: Sandbox) -> set[str]:
    return {body["metadata"]["name"] for body in sandbox.cluster.objects("pods")}


def _ready(sandbox: Sandbox) -> int:
    (deployment,) = sandbox.cluster.objects("deployments")
    status = deployment.get("status", {})
    return int(status["readyReplicas"]) if status.get("replicas") == status.get("readyReplicas") else -1


def _is_alive(pid: int) -> bool:
    fields = _stat(pid)
    return bool(fields) and fields[0] != "Z"


def _group_is_alive(group: int) -> bool:
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return any(fields[2] == str(group) and fields[0] != "Z" for pid in pids if (fields := _stat(pid)))


def _stat(pid: int) -> list[str]:
    """Return state, parent, group and more of a process; empty once it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
