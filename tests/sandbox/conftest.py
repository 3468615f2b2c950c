"""A running sandbox, and clients of its servers."""

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from apps.sandbox.options import TENANT
from apps.sandbox.sandbox import Sandbox, SandboxOptions
from tests.sandbox.objects import CRD

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # for plain http: spares each client the loading of real CAs


@pytest.fixture
def options(tmp_path: Path) -> SandboxOptions:
    """What the sandbox of a test is made with; override to change it."""
    return SandboxOptions(operation_s=0.15, state_dir=tmp_path / "state", run_pods=False)


@pytest.fixture
async def sandbox(options: SandboxOptions) -> AsyncIterator[Sandbox]:
    """A running sandbox with the test's CRD."""
    async with Sandbox(options) as running:
        running.cluster.create(CRD)
        yield running


@pytest.fixture
async def kube(sandbox: Sandbox) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API server, with its token."""
    headers = {"authorization": f"Bearer {sandbox.token}"}
    async with httpx.AsyncClient(base_url=sandbox.kube_url, headers=headers, verify=NO_TLS) as client:
        yield client


@pytest.fixture
async def imds(sandbox: Sandbox) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the first node's IMDS that sends the Metadata header."""
    url = next(iter(sandbox.imds_urls.values()))
    async with httpx.AsyncClient(base_url=url, headers={"metadata": "true"}, verify=NO_TLS) as client:
        yield client


@pytest.fixture
async def azure(sandbox: Sandbox) -> AsyncIterator[httpx.AsyncClient]:
    """A client that trusts the sandbox's CA, for ARM and Entra."""
    async with httpx.AsyncClient(verify=ssl.create_default_context(cafile=str(sandbox.ca_file))) as client:
        yield client


@pytest.fixture
async def arm(sandbox: Sandbox, azure: httpx.AsyncClient) -> httpx.AsyncClient:
    """A client of ARM with a token that Entra gave to the sandbox's service principal."""
    form = {
        "grant_type": "client_credentials",
        "client_id": sandbox.client_id,
        "client_secret": sandbox.client_secret,
        "scope": f"{sandbox.arm_url}//.default",
    }
    answered = await azure.post(f"{sandbox.entra_url}/{TENANT}/oauth2/v2.0/token", data=form)
    azure.headers["authorization"] = f"Bearer {answered.json()['access_token']}"
    azure.base_url = httpx.URL(sandbox.arm_url)
    return azure
