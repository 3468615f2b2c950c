"""The edge to azure-mgmt-compute: reads and writes of VMs and scale sets, as plain answers and errors of the core.

Importing this module imports the SDK, a sixth of a second and 20 MB: `hosts` does it for the first call.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

import aiohttp
from azure.core import MatchConditions
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    DecodeError,
    DeserializationError,
    HttpResponseError,
    SerializationError,
)
from azure.core.pipeline.policies import UserAgentPolicy
from azure.core.rest import AsyncHttpResponse, HttpRequest
from azure.mgmt.compute import __version__ as sdk_version
from azure.mgmt.compute.aio import ComputeManagementClient

from podidentity_azure.cloud import Cloud
from podidentity_azure.errors import Fault, core_error, retry_after_s
from podidentity_azure.operations import Answer
from podidentity_azure.transport import Transport
from podidentity_core.errors import PermissionRefused, PodIdentityError, RefusedError, TransientError
from podidentity_core.resource_ids import Host, HostKind, IdentityResource

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

CALL_LIMIT_S = 60.0
"""How long one call may take, with the token that it may need first."""


class Compute:
    """VMs and scale sets of every subscription, through one SDK client for each."""

    def __init__(self, cloud: Cloud, credential: AsyncTokenCredential, tls: ssl.SSLContext, user_agent: str) -> None:
        self._cloud = cloud
        self._credential = credential
        self._tls = tls
        self._user_agent = user_agent
        self._clients: dict[str, ComputeManagementClient] = {}

    async def read(self, host: Host) -> Answer:
        """Get the host. Raises errors of the core."""
        with translated(f"get {host}"):
            async with asyncio.timeout(CALL_LIMIT_S):
                operations = self._operations(host)
                answer: Answer = await operations.get(
                    host.resource_group, host.name, cls=_answer, api_version=self._cloud.compute_api_version
                )
        return answer

    async def patch(self, host: Host, body: Any, *, etag: str | None, sent: Collection[IdentityResource]) -> Answer:
        """Change the host, if it still has *etag*; return what ARM answers at once. Raises errors of the core."""
        with translated(f"patch {host}", sent):
            async with asyncio.timeout(CALL_LIMIT_S):
                operations = self._operations(host)
                poller = await operations.begin_update(
                    host.resource_group,
                    host.name,
                    body,
                    etag=etag,
                    match_condition=MatchConditions.IfNotModified if etag else None,
                    polling=False,
                    cls=_answer,
                    api_version=self._cloud.compute_api_version,
                )
                answer: Answer = await poller.result()
        return answer

    async def ask(self, host: Host, url: str) -> Answer:
        """Get *url*, whatever its status. Raises errors of the core when nobody answers."""
        with translated(f"follow the operation on {host}"):
            async with asyncio.timeout(CALL_LIMIT_S):
                return _of_response(await self._get(host, url))

    async def _get(self, host: Host, url: str) -> AsyncHttpResponse:
        try:
            return await self._client(host).send_request(HttpRequest("GET", url))
        except DecodeError as error:
            if error.response is None:
                raise
            return cast("AsyncHttpResponse", error.response)  # its status counts, whatever the body is

    def url(self, host: Host) -> str:
        """Return the address of the host itself."""
        path = quote(host.resource_id, safe="/()")
        return f"{self._cloud.resource_manager.rstrip('/')}{path}?api-version={self._cloud.compute_api_version}"

    async def aclose(self) -> None:
        """Close every connection, but not the credential."""
        for client in self._clients.values():
            await client.close()
        self._clients.clear()

    def _operations(self, host: Host) -> Any:
        client = self._client(host)
        return client.virtual_machines if host.kind is HostKind.VM else client.virtual_machine_scale_sets

    def _client(self, host: Host) -> ComputeManagementClient:
        subscription = host.subscription.lower()
        client = self._clients.get(subscription)
        if client is None:
            agent = UserAgentPolicy(sdk_moniker=f"mgmt-compute/{sdk_version}")
            agent.add_user_agent(self._user_agent)
            client = self._clients[subscription] = ComputeManagementClient(
                self._credential,
                host.subscription,
                self._cloud.resource_manager.rstrip("/"),
                credential_scopes=[f"{self._cloud.audience}/.default"],
                user_agent_policy=agent,
                transport=Transport(self._tls, proxies=True),
                # The caller decides again before it repeats a write, and the SDK would sleep as long as a throttled
                # host says, twenty minutes if need be, while other changes for that host could join in.
                retry_total=0,
            )
        return client


def _answer(pipeline_response: Any, _deserialized: object, _headers: object) -> Answer:
    return _of_response(pipeline_response.http_response)


def _of_response(response: AsyncHttpResponse) -> Answer:
    headers = {name.lower(): value for name, value in response.headers.items()}
    body = _object(response.text())
    if body is None and response.status_code in (200, 201):
        # A proxy's page, for example: no news of the host, and no end of an operation.
        raise DecodeError("the answer is no JSON object", response=response)
    return Answer(response.status_code, headers, body or {})


def _object(text: str) -> dict[str, Any] | None:
    try:
        body = json.loads(text)
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


_VENDOR_ERRORS = (
    AzureError,
    SerializationError,
    DeserializationError,
    aiohttp.ClientError,
    json.JSONDecodeError,  # of a success: the SDK lets it through
    TimeoutError,
)


@contextmanager
def translated(action: str, sent: Collection[IdentityResource] = ()) -> Iterator[None]:
    """Turn whatever the SDK raises into errors of the core; the original stays as their cause."""
    try:
        yield
    except _VENDOR_ERRORS as error:
        raise _translation(error, action, sent) from error


def _translation(error: Exception, action: str, sent: Collection[IdentityResource]) -> PodIdentityError:
    if isinstance(error, SerializationError):
        return RefusedError(f"{action}: {error}")
    if isinstance(error, TimeoutError):
        return TransientError(f"{action}: no answer within {CALL_LIMIT_S:.0f} s")
    fault = _fault(error)
    if fault is None:
        return TransientError(f"{action}: {type(error).__name__}: {error}")
    if isinstance(error, ClientAuthenticationError) and fault.status == 400:
        return PermissionRefused(f"{action}: {fault.text}")  # Entra ID and the metadata service say no in this way
    return core_error(fault, action, sent)


def _fault(error: BaseException | None) -> Fault | None:
    """What the nearest answer says that *error* came from: azure-identity wraps the metadata service's."""
    while error is not None:
        if isinstance(error, HttpResponseError) and error.response is not None and error.status_code is not None:
            headers = {name.lower(): value for name, value in getattr(error.response, "headers", {}).items()}
            return Fault.of_body(
                _object(_text(error)),
                status=error.status_code,
                retry_after_s=retry_after_s(headers),
                default=error.message,
            )
        error = error.__cause__
    return None


def _text(error: HttpResponseError) -> str:
    try:
        return error.response.text() if error.response is not None else ""
    except AzureError:  # the body was not read
        return ""
