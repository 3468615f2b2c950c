"""A sandbox with the four CRDs, and connections to it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from apps.clock import SystemClock
from apps.sandbox.sandbox import Sandbox, SandboxOptions
from podidentity_core.ports import Clock
from podidentity_k8s.api import Connection, KubeApi
from podidentity_k8s.config import load_credentials

CRDS = tuple(sorted((Path(__file__).parents[2] / "deploy/chart/crds").glob("*.yaml")))


@pytest.fixture
def clock() -> Clock:
    return SystemClock()


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(SandboxOptions(nodes=(), crds=CRDS, run_pods=False)) as running:
        yield running


@pytest.fixture
async def connection(sandbox: Sandbox) -> AsyncIterator[Connection]:
    async with Connection(await load_credentials(str(sandbox.kubeconfig)), user_agent="test/1") as opened:
        yield opened


@pytest.fixture
def api(connection: Connection, clock: Clock) -> KubeApi:
    return KubeApi(connection, clock=clock, random=random.random)
