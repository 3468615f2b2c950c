"""NMI's life: listen, then intercept; on SIGTERM let requests end, and leave the rules where they are."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack

from apps.nmi.bootstrap import Nmi, connected, interceptor
from apps.nmi.flags import NmiConfig
from apps.nmi.kubenet import kubenet_fault
from apps.nmi.netfilter.interceptor import Interceptor
from apps.pages import Page, Text, start_metrics, start_probe
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
    were filled and went with the process, and requests before and after that went to the real metadata service. Here
    they come as soon as somebody listens, early requests wait, and after the end pods are refused until the next NMI
    listens.

    Raises:
        ConfigurationError: a setting cannot be used, or a port is taken.
    """
    log.info("%s.", installed().start_line("nmi"))
    for warning in config.warnings:
        log.warning("%s", warning)
    terminated = wait_for_termination(asyncio.get_running_loop())
    async with AsyncExitStack() as stack:
        nmi = await stack.enter_async_context(connected(config))
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _forget_tokens, nmi)
        metrics = await start_metrics(config.metrics_port, nmi.meter.render)
        stack.push_async_callback(metrics.stop, 0)
        fault = "" if config.allow_kubenet else kubenet_fault(config.kubelet_config)
        if fault:
            return await _refused(config, fault, terminated)
        return await _served(config, nmi, terminated, stack)


async def _refused(config: NmiConfig, fault: str, terminated: asyncio.Future[signal.Signals]) -> int:
    """Serve nobody, and say why: a crash loop would say less, and end the probe's answer with it."""
    log.error("nothing is served: %s", fault)
    probe = await start_probe(config.probe_port, lambda: False, more={"/readyz": _readiness(lambda: [fault])})
    await first_of(terminated)
    await probe.stop(0)
    return 0


async def _served(
    config: NmiConfig, nmi: Nmi, terminated: asyncio.Future[signal.Signals], stack: AsyncExitStack
) -> int:
    server = await start_server(nmi.app, config.listen_address, config.port, flag="--nmi-port", date_header=False)
    log.info("listening on %s:%d", config.listen_address, server.port)
    following = asyncio.create_task(nmi.service.run(), name="cluster")
    stack.push_async_callback(stopped, following)
    stack.push_async_callback(server.stop, GRACE_S)  # before the cluster is left, which early requests wait for
    rules = interceptor(config, server.port, nmi) if config.interception else None
    pages = {
        "/readyz": _readiness(lambda: _problems(nmi, rules, ending=terminated.done())),
        "/tokens/forget": Page(lambda: Text(b"%d tokens forgotten\n" % _forget_tokens(nmi)), ("POST",), local=True),
    }
    probe = await start_probe(config.probe_port, lambda: not _problems(nmi, rules), more=pages)
    stack.push_async_callback(probe.stop, 0)
    intercepting = asyncio.create_task(rules.run() if rules else asyncio.Event().wait(), name="interception")
    stack.push_async_callback(stopped, intercepting)
    await first_of(terminated, following, intercepting)
    nmi.service.end_waits()
    await stopped(intercepting)
    await server.stop(GRACE_S)  # while the probe still says why nobody is taken
    return await _removed(rules) if rules and config.remove_rules_on_exit else 0


def _problems(nmi: Nmi, rules: Interceptor | None, *, ending: bool = False) -> list[str]:
    """Why pods cannot rely on this NMI; nothing when they can."""
    problems = []
    if not nmi.service.synced:
        problems.append("the pods of this node have not been read from the API server yet")
    if rules is not None and not rules.ready:
        problems.append(f"interception: {rules.reason}")
    if ending:
        problems.append("this NMI is ending")
    return problems


def _readiness(problems: Callable[[], list[str]]) -> Page:
    def text() -> Text:
        found = problems()
        return Text("".join(f"{problem}\n" for problem in found or ["ready"]).encode(), 503 if found else 200)

    return Page(text)


def _forget_tokens(nmi: Nmi) -> int:
    number = nmi.service.forget_tokens()
    log.info("%d kept tokens are forgotten, as was asked for", number)
    return number


async def _removed(rules: Interceptor) -> int:
    try:
        async with asyncio.timeout(REMOVAL_S):
            await rules.remove()
    except (PodIdentityError, TimeoutError) as error:
        log.error("failed to clean up during shutdown, error: %s", error or type(error).__name__)
        return 1
    return 0
