"""NMI's life: listen, then intercept; on SIGTERM stop intercepting, let requests end, exit."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack

from apps.nmi.bootstrap import Nmi, connected, interceptor
from apps.nmi.flags import NmiConfig
from apps.nmi.kubenet import refuse_kubenet
from apps.nmi.netfilter.interceptor import Interceptor
from apps.pages import start_metrics, start_probe
from apps.running import first_of, stopped
from apps.serving import start_server, wait_for_termination
from apps.version import installed
from podidentity_core.errors import PodIdentityError

log = logging.getLogger(__name__)

GRACE_S = 10.0
"""How long requests that are under way at the end may take (the original slept as long)."""
REMOVAL_S = 15.0
"""How long the removal of the rules may take, so that it fits into a pod's 30 s of grace."""


async def run(config: NmiConfig) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code.

    Source: aad-pod-identity cmd/nmi/main.go, pkg/nmi/server/server.go:619. There the rules came after the caches
    were filled, and requests before that went to the real metadata service; here they come as soon as somebody
    listens, and early requests wait.

    Raises:
        ConfigurationError: a setting cannot be used, or a port is taken.
    """
    log.info("%s.", installed().start_line("nmi"))
    for warning in config.warnings:
        log.warning("%s", warning)
    if not config.allow_kubenet:
        refuse_kubenet(config.kubelet_config)
    terminated = wait_for_termination(asyncio.get_running_loop())
    async with AsyncExitStack() as stack:
        nmi = await stack.enter_async_context(connected(config))
        server = await start_server(nmi.app, config.listen_address, config.port, flag="--nmi-port", date_header=False)
        log.info("listening on %s:%d", config.listen_address, server.port)
        following = asyncio.create_task(nmi.service.run(), name="cluster")
        stack.push_async_callback(stopped, following)
        stack.push_async_callback(server.stop, GRACE_S)  # before the cluster is left, which early requests wait for
        rules = interceptor(config, server.port, nmi.clock) if config.interception else None
        probe = await start_probe(config.probe_port, lambda: _is_active(nmi, rules))
        stack.push_async_callback(probe.stop, 0)
        metrics = await start_metrics(config.metrics_port, nmi.meter.render)
        stack.push_async_callback(metrics.stop, 0)
        intercepting = asyncio.create_task(rules.run() if rules else asyncio.Event().wait(), name="interception")
        stack.push_async_callback(stopped, intercepting)
        await first_of(terminated, following, intercepting)
        await stopped(intercepting)
        return await _removed(rules)


def _is_active(nmi: Nmi, rules: Interceptor | None) -> bool:
    return nmi.service.synced and (rules is None or rules.ready)


async def _removed(rules: Interceptor | None) -> int:
    if rules is None:
        return 0
    try:
        async with asyncio.timeout(REMOVAL_S):
            await rules.remove()
    except (PodIdentityError, TimeoutError) as error:
        log.error("failed to clean up during shutdown, error: %s", error or type(error).__name__)
        return 1
    return 0
