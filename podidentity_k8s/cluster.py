"""The cluster as a stream of changes: a reflector for each resource, merged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from podidentity_core.model import Change, Synced
from podidentity_core.ports import Clock, ClusterReader
from podidentity_k8s.api import KubeApi
from podidentity_k8s.backoff import Random
from podidentity_k8s.reflector import Pace, Reflector
from podidentity_k8s.resources import Resource

_WAITING_BATCHES = 64  # then reading pauses, and TCP makes the server wait


class KubeCluster:
    """The ClusterReader of a real cluster, for the *resources* of `mic_resources()` or `nmi_resources()`."""

    def __init__(
        self, api: KubeApi, resources: Sequence[Resource], *, clock: Clock, random: Random, pace: Pace | None = None
    ) -> None:
        self._api = api
        self._resources = resources
        self._clock = clock
        self._random = random
        self._pace = pace or Pace()

    async def changes(self) -> AsyncIterator[Sequence[Change]]:
        """Yield batches of changes, for ever; `Synced` once every resource has been listed."""
        batches: asyncio.Queue[Sequence[Change]] = asyncio.Queue(_WAITING_BATCHES)
        reflectors = [
            Reflector(self._api, resource, clock=self._clock, random=self._random, pace=self._pace)
            for resource in self._resources
        ]
        running = {
            asyncio.create_task(reflector.run(batches.put), name=f"watch {resource.path}")
            for reflector, resource in zip(reflectors, self._resources, strict=True)
        }
        running.add(asyncio.create_task(_report_synced(reflectors, batches)))
        try:
            while True:
                yield await _next_batch(batches, running)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


async def _report_synced(reflectors: Sequence[Reflector], batches: asyncio.Queue[Sequence[Change]]) -> None:
    for reflector in reflectors:
        await reflector.synced.wait()
    await batches.put((Synced(),))


async def _next_batch(batches: asyncio.Queue[Sequence[Change]], running: set[asyncio.Task[None]]) -> Sequence[Change]:
    """Wait for the next batch; a task that breaks (a reflector by itself never ends) breaks the stream."""
    if not batches.empty():
        return batches.get_nowait()
    waiting = asyncio.create_task(batches.get())
    try:
        done, _ = await asyncio.wait({waiting, *running}, return_when=asyncio.FIRST_COMPLETED)
        if waiting in done:
            return waiting.result()
    finally:
        waiting.cancel()
    for task in done:
        running.discard(task)
        task.result()
    return await _next_batch(batches, running)


if TYPE_CHECKING:
    _: type[ClusterReader] = KubeCluster
