"""MIC's life: probes at once, work while it leads, and the lead handed over on SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import AsyncExitStack

from apps.mic.bootstrap import Mic, connected
from apps.mic.flags import MicConfig
from apps.pages import start_metrics, start_probe
from apps.running import first_of, stopped
from apps.serving import wait_for_termination
from apps.version import installed
from podidentity_core.errors import PodIdentityError

log = logging.getLogger(__name__)


class _Term:
    """Whether this process is at work, for the probe."""

    active = False


async def run(config: MicConfig) -> int:
    """Campaign and work until SIGTERM or SIGINT; returns the exit code.

    Source: aad-pod-identity cmd/mic/main.go. Losing the lead ends the work and not the process.

    Raises:
        ConfigurationError: a setting cannot be used, or a port is taken.
    """
    log.info("%s", installed().start_line("mic"))
    for warning in config.warnings:
        log.warning("%s", warning)
    terminated = wait_for_termination(asyncio.get_running_loop())
    term = _Term()
    async with AsyncExitStack() as stack:
        mic = await stack.enter_async_context(connected(config, os.environ))
        probe = await start_probe(config.probe_port, lambda: term.active)
        stack.push_async_callback(probe.stop, 0)
        metrics = await start_metrics(config.metrics_port, mic.render_metrics)
        stack.push_async_callback(metrics.stop, 0)
        leading = asyncio.create_task(mic.lock.lead(lambda: _serve_term(mic, term)), name="lead")
        stack.push_async_callback(stopped, leading)
        working = [leading]
        if config.cloudconfig:
            working.append(asyncio.create_task(mic.follow_azure_json(), name="azure.json"))
            stack.push_async_callback(stopped, working[-1])
        await first_of(terminated, *working)
    return 0


async def _serve_term(mic: Mic, term: _Term) -> None:
    mic.meter.count("mic_new_leader_election_count")
    try:
        await mic.prepare()
    except PodIdentityError as error:  # only other versions look for the mark; the next term tries again
        log.warning("the type upgrade could not be recorded, error: %s", error)
    term.active = True
    log.info("sync thread started.")
    try:
        await mic.work()
    finally:
        term.active = False
