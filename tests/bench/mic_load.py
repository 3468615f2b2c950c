"""What MIC's benchmark writes to the API server, and what a watch tells of the assignments."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from apps.clock import SystemClock
from podidentity_k8s.api import MERGE_PATCH, Connection, KubeApi
from podidentity_k8s.config import load_credentials

IN_FLIGHT = 32
_CORE = "/api/v1/namespaces/default"
_OURS = "/apis/aadpodidentity.k8s.io/v1"
_ASSIGNMENTS = f"{_OURS}/azureassignedidentities"
_PATHS = {
    "Node": "/api/v1/nodes",
    "Pod": f"{_CORE}/pods",
    "AzureIdentity": f"{_OURS}/namespaces/default/azureidentities",
    "AzureIdentityBinding": f"{_OURS}/namespaces/default/azureidentitybindings",
    "AzureAssignedIdentity": f"{_OURS}/namespaces/default/azureassignedidentities",
}
_WIPED = ("Pod", "AzureIdentityBinding", "AzureIdentity", "AzureAssignedIdentity", "Node")
_NO_GRACE = {"gracePeriodSeconds": 0}

Work = Coroutine[Any, Any, object]


class Client:
    """Writes with many requests in flight, so that the API server is the limit and not the benchmark."""

    def __init__(self, api: KubeApi) -> None:
        self._api = api

    async def create(self, bodies: Iterable[dict[str, Any]], *, per_s: float = math.inf) -> dict[str, float]:
        """Create objects, not more than *per_s* a second; return when each was there, by name."""
        created_s: dict[str, float] = {}
        begin_s, numbers = time.monotonic(), itertools.count()

        async def create(body: dict[str, Any]) -> None:
            await asyncio.sleep(begin_s + next(numbers) / per_s - time.monotonic())
            await self._api.post(_PATHS[body["kind"]], body)
            created_s[body["metadata"]["name"]] = time.monotonic()

        await _all(create(body) for body in bodies)
        return created_s

    async def delete(self, kind: str, names: Iterable[str]) -> None:
        """Delete objects, pods without grace period."""
        await _all(self._api.delete(f"{_PATHS[kind]}/{name}", _NO_GRACE) for name in names)

    async def replace_pods(self, pairs: Iterable[tuple[str, dict[str, Any]]], *, per_s: float) -> None:
        """For each pair create the new pod and then delete the old one, *per_s* pairs a second."""
        begin_s, numbers = time.monotonic(), itertools.count()

        async def replace(old: str, new: dict[str, Any]) -> None:
            await asyncio.sleep(begin_s + next(numbers) / per_s - time.monotonic())
            await self._api.post(_PATHS["Pod"], new)
            await self._api.delete(f"{_PATHS['Pod']}/{old}", _NO_GRACE)

        await _all(replace(old, new) for old, new in pairs)

    async def wipe(self) -> None:
        """Delete all that cases make, finalizers or not."""
        left, _ = await self._list()
        path, free = _PATHS["AzureAssignedIdentity"], {"metadata": {"finalizers": None}}
        await _all(self._api.patch(f"{path}/{name}", free, content_type=MERGE_PATCH) for name in left)
        for kind in _WIPED:
            await self._api.delete(_PATHS[kind], _NO_GRACE)

    @asynccontextmanager
    async def assignments(self) -> AsyncIterator[Assignments]:
        """Follow the assignments, from none on."""
        _, version = await self._list()
        seen = Assignments()
        async with asyncio.TaskGroup() as group:  # so that a failure ends the case
            following = group.create_task(seen.follow(self._api, version))
            yield seen
            following.cancel()

    async def _list(self) -> tuple[list[str], str]:
        page = json.loads(await self._api.get(_ASSIGNMENTS))
        return [one["metadata"]["name"] for one in page["items"]], page["metadata"]["resourceVersion"]


class Assignments:
    """All AzureAssignedIdentities as a watch tells of them: the pod of each, and since when it is usable."""

    def __init__(self) -> None:
        self.pods: dict[str, str] = {}
        self.assigned_s: dict[str, float] = {}
        self._changed = asyncio.Event()

    async def follow(self, api: KubeApi, version: str) -> None:
        """Take in what watches from *version* on say, for ever: a server ends one that does not keep up."""
        while True:
            query = {"watch": "true", "resourceVersion": version}
            async with api.stream(_ASSIGNMENTS, query=query) as content:
                async for line in content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise RuntimeError(f"the watch of the assignments failed: {event['object']}")
                    version = event["object"]["metadata"]["resourceVersion"]
                    self._take_in(event)
                    self._changed.set()

    def _take_in(self, event: dict[str, Any]) -> None:
        name = event["object"]["metadata"]["name"]
        if event["type"] == "DELETED":
            self.assigned_s.pop(self.pods.pop(name), None)
            return
        pod = self.pods[name] = event["object"]["spec"]["pod"]
        if event["object"]["status"]["status"] == "Assigned":
            self.assigned_s.setdefault(pod, time.monotonic())
        else:
            self.assigned_s.pop(pod, None)

    async def until(self, condition: Callable[[Assignments], bool], *, within_s: float) -> float:
        """Wait for *condition*, and return when that was. Raises TimeoutError."""
        async with asyncio.timeout(within_s):
            while not condition(self):
                self._changed.clear()
                await self._changed.wait()
        return time.monotonic()


@asynccontextmanager
async def client(kubeconfig: Path) -> AsyncIterator[Client]:
    """Connect to the API server as *kubeconfig* says."""
    credentials = await load_credentials(str(kubeconfig))
    async with Connection(credentials, user_agent="bench") as connection:
        yield Client(KubeApi(connection, clock=SystemClock(), random=random.random))


async def _all(work: Iterable[Work]) -> None:
    left = iter(work)

    async def some(left: Iterator[Work]) -> None:
        for one in left:
            await one

    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(some(left))
