"""The one place that knows every class of MIC."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from apps.clock import SystemClock
from apps.metrics import PrometheusMeter
from apps.mic.azure_json import follow_file
from apps.mic.flags import MicConfig
from apps.running import stopped
from apps.version import installed
from podidentity_azure.cloud import AzureConfig, fingerprint, load_azure_config
from podidentity_azure.hosts import AzureHosts
from podidentity_core.planning import Rules
from podidentity_core.ports import LeaderLock
from podidentity_core.services.assignment import AssignmentPorts, AssignmentService, AssignmentSettings
from podidentity_core.services.dry_run import DryEvents, DryHosts, DryLock, DryStore
from podidentity_core.services.hosts import HostLimits
from podidentity_k8s.api import Connection, KubeApi
from podidentity_k8s.assignments import KubeAssignments
from podidentity_k8s.cluster import KubeCluster
from podidentity_k8s.config import load_credentials
from podidentity_k8s.events import KubeEvents
from podidentity_k8s.lease import LeaseLock
from podidentity_k8s.limits import RateLimit
from podidentity_k8s.resources import mic_resources
from podidentity_k8s.upgrade import mark_type_upgrade


@dataclass(frozen=True, slots=True)
class Mic:
    """Everything connected, nothing started. *prepare* comes first in each term, then *work*.

    *follow_azure_json* goes on beside them.
    """

    lock: LeaderLock
    prepare: Callable[[], Awaitable[None]]
    work: Callable[[], Awaitable[None]]
    follow_azure_json: Callable[[], Coroutine[Any, Any, None]]
    render_metrics: Callable[[], bytes]
    meter: PrometheusMeter


@asynccontextmanager
async def connected(config: MicConfig, environ: Mapping[str, str]) -> AsyncIterator[Mic]:
    """Connect everything MIC needs, and close it at the end. No request is made yet.

    Raises:
        ConfigurationError: a setting cannot be used.
    """
    build, tools = installed(), _Tools(SystemClock(), PrometheusMeter())
    agent = build.user_agent("MIC", config.custom_user_agent)
    azure = load_azure_config(config.cloudconfig or None, environ)
    credentials = await load_credentials(config.kubeconfig)
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(Connection(credentials, user_agent=agent))
        unlimited = tools.api(connection)
        events = await stack.enter_async_context(KubeEvents(unlimited, clock=tools.clock))
        hosts = AzureHosts(azure, clock=tools.clock, meter=tools.meter, agent=agent, environ=environ)
        stack.push_async_callback(hosts.aclose)
        # A candidate has the time for it; the leader that it becomes has not.
        stack.push_async_callback(stopped, asyncio.create_task(hosts.load(), name="load Azure's libraries"))
        lock = _lock(config, tools, connection, events)
        limit = RateLimit(config.api_requests_per_s, burst=config.api_burst, clock=tools.clock)
        ports = AssignmentPorts(
            cluster=KubeCluster(unlimited, mic_resources(), clock=tools.clock, random=random.random),
            store=KubeAssignments(tools.api(connection, limit=limit)),
            hosts=hosts,
            events=events,
            lock=lock,
            clock=tools.clock,
            meter=tools.meter,
            chance=random.random,
        )
        if config.dry_run:
            ports = replace(ports, store=DryStore(), hosts=DryHosts(hosts), events=DryEvents(), lock=DryLock())
        terms = _Terms(ports, _settings(config, azure), tools.meter)

        async def prepare() -> None:
            if config.type_upgrade and not config.dry_run:
                mark = partial(mark_type_upgrade, config_map=config.config_map_name, key=config.type_upgrade_key)
                await mark(unlimited, namespace=config.pod_namespace, version=build.version)

        async def take_up_azure_json() -> None:
            await hosts.reconfigure(load_azure_config(config.cloudconfig, environ))

        yield Mic(
            lock=ports.lock,
            prepare=prepare,
            work=terms.work,
            follow_azure_json=lambda: follow_file(config.cloudconfig, fingerprint, take_up_azure_json, tools.clock),
            render_metrics=terms.render_metrics,
            meter=tools.meter,
        )


class _Terms:
    """The work of each term, and what can be measured of the one that runs."""

    def __init__(self, ports: AssignmentPorts, settings: AssignmentSettings, meter: PrometheusMeter) -> None:
        self._ports = ports
        self._settings = settings
        self._meter = meter
        self._service: AssignmentService | None = None

    async def work(self) -> None:
        self._service = AssignmentService(self._ports, self._settings)
        try:
            await self._service.run()
        finally:
            self._service = None

    def render_metrics(self) -> bytes:
        if self._service is not None:
            self._service.measure()
        return self._meter.render()


@dataclass(frozen=True, slots=True)
class _Tools:
    clock: SystemClock
    meter: PrometheusMeter

    def api(self, connection: Connection, *, limit: RateLimit | None = None, retries: int = 2) -> KubeApi:
        return KubeApi(connection, clock=self.clock, random=random.random, limit=limit, retries=retries)


def _lock(config: MicConfig, tools: _Tools, connection: Connection, events: KubeEvents) -> LeaseLock:
    """The lock's calls wait behind nobody's, and it repeats them itself."""
    return LeaseLock(
        tools.api(connection, retries=0),
        namespace=config.lease_namespace,
        name=config.lease_name,
        identity=config.lease_identity,
        clock=tools.clock,
        random=random.random,
        duration_s=config.lease_duration_s,
        events=events,
    )


def _settings(config: MicConfig, azure: AzureConfig) -> AssignmentSettings:
    """The cluster's own identity never leaves a host: MIC itself could not come back in to repair it."""
    own = frozenset({azure.managed_identity.lower()}) if azure.managed_identity else frozenset[str]()
    return AssignmentSettings(
        rules=Rules(namespaced=config.namespaced, immutable=config.immutable_ids | own),
        limits=HostLimits(
            grace_s=config.grace_s, retries=config.host_retries, retry_interval_s=config.host_retry_interval_s
        ),
        parallel_writes=config.concurrent_writes,
        resync_interval_s=config.replan_interval_s,
        drift_interval_s=config.drift_interval_s,
    )
