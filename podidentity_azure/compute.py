"""The edge to azure-mgmt-compute: reads and writes of VMs and scale sets, as plain answers and errors of the core.

Importing this module imports the SDK, a sixth of a second and 20 MB: `hosts` does it for the first call.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
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
from podidentity_azure.quotas import Call, Quotas
from podidentity_azure.transport import Transport
from podidentity_core.errors import PermissionRefused, PodIdentityError, RefusedError, TransientError
from podidentity_core.ports import Meter
from podidentity_core.resource_ids import Host, HostKind, IdentityResource

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

CALL_LIMIT_S = 60.0
"""How long one call may take, with the token that it may need first. A PATCH is answered after 1 to 6 s."""

POLL_LIMIT_S = 15.0
"""The same for a poll: a silent one is soon tried again, so that the end of the operation is not missed for long."""

Hooks = Mapping[str, Any]
"""What the SDK is given with each call so that it tells when the request goes out."""


class Compute:
    """VMs and scale sets of every subscription, through one SDK client for each.

    Each call waits until *quotas* admit it, for some seconds at most, and raises `Throttled` if that takes longer.
    """

    def __init__(
        self,
        cloud: Cloud,
        credential: AsyncTokenCredential,
        tls: ssl.SSLContext,
        user_agent: str,
        *,
        quotas: Quotas,
        meter: Meter,
    ) -> None:
        self._cloud = cloud
        self._credential = credential
        self._tls = tls
        self._user_agent = user_agent
        self._quotas = quotas
        self._meter = meter
        self._clients: dict[str, ComputeManagementClient] = {}

    async def read(self, host: Host) -> Answer:
        """Get the host. Raises errors of the core."""

        async def send(hooks: Hooks) -> Answer:
            answer: Answer = await self._operations(host).get(
                host.resource_group, host.name, cls=_answer, api_version=self._cloud.compute_api_version, **hooks
            )
            return answer

        return await self._call(host, Call.READ, send, f"get {host}")

    async def patch(self, host: Host, body: Any, *, etag: str | None, sent: Collection[IdentityResource]) -> Answer:
        """Change the host, if it still has *etag*; return what ARM answers at once. Raises errors of the core."""

        async def send(hooks: Hooks) -> Answer:
            poller = await self._operations(host).begin_update(
                host.resource_group,
                host.name,
                body,
                etag=etag,
                match_condition=MatchConditions.IfNotModified if etag else None,
                polling=False,
                cls=_answer,
                api_version=self._cloud.compute_api_version,
                **hooks,
            )
            answer: Answer = await poller.result()
            return answer

        return await self._call(host, Call.WRITE, send, f"patch {host}", sent)

    async def ask(self, host: Host, url: str) -> Answer:
        """Get *url*, whatever its status. Raises errors of the core when nobody answers."""

        async def send(hooks: Hooks) -> Answer:
            return _of_response(await self._get(host, url, hooks))

        return await self._call(host, self._kind_of(host, url), send, f"follow the operation on {host}")

    def left(self, host: Host, url: str) -> float:
        """How many polls of *url* the budget of *host* has left."""
        return self._quotas.left(host, self._kind_of(host, url))

    def _kind_of(self, host: Host, url: str) -> Call:
        return Call.READ if url == self.url(host) else Call.POLL

    async def _call(
        self,
        host: Host,
        call: Call,
        send: Callable[[Hooks], Awaitable[Answer]],
        action: str,
        named: Collection[IdentityResource] = (),
    ) -> Answer:
        """Make one call when its turn has come, within its deadline, and note what becomes of it."""
        await self._quotas.admit(host, call)
        begun: list[object] = []  # the token comes first; without one there is no request
        limit_s = POLL_LIMIT_S if call is Call.POLL else CALL_LIMIT_S
        try:
            with translated(action, named, limit_s=limit_s):
                async with asyncio.timeout(limit_s):
                    answer = await send({"raw_request_hook": begun.append})
        except PodIdentityError as error:
            if begun:
                refusal = _with_answer(error.__cause__)
                self._note(host, call, None if refusal is None else _answer_to(refusal), "failed")
            raise
        self._note(host, call, answer, "success")
        return answer

    def _note(self, host: Host, call: Call, answer: Answer | None, otherwise: str) -> None:
        outcome = otherwise if answer is None else _outcome(answer.status, otherwise)
        self._meter.count("cloud_provider_requests_count", method=call.value, outcome=outcome)
        if answer is not None:
            self._quotas.learn(host, call, answer)

    async def _get(self, host: Host, url: str, hooks: Hooks) -> AsyncHttpResponse:
        try:
            return await self._client(host).send_request(HttpRequest("GET", url), **hooks)
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


def _outcome(status: int, otherwise: str) -> str:
    """What became of a request, by its *status*: too many, an error of the server, a refusal, or *otherwise*."""
    if status == 429:
        return "throttled"
    if status == 408 or status >= 500:
        return "failed"
    return "refused" if status >= 400 else otherwise


def _answer(pipeline_response: Any, _deserialized: object, _headers: object) -> Answer:
    return _of_response(pipeline_response.http_response)


def _of_response(response: AsyncHttpResponse) -> Answer:
    body = _object(response.text())
    if body is None and response.status_code in (200, 201):
        # A proxy's page, for example: no news of the host, and no end of an operation.
        raise DecodeError("the answer is no JSON object", response=response)
    return Answer(response.status_code, _headers(response), body or {})


def _headers(response: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


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
)


@contextmanager
def translated(
    action: str, sent: Collection[IdentityResource] = (), *, limit_s: float = CALL_LIMIT_S
) -> Iterator[None]:
    """Turn whatever the SDK raises into errors of the core; the original stays as their cause."""
    try:
        yield
    except TimeoutError as error:
        raise TransientError(f"{action}: no answer within {limit_s:.0f} s") from error
    except _VENDOR_ERRORS as error:
        raise _translation(error, action, sent) from error


def _translation(error: Exception, action: str, sent: Collection[IdentityResource]) -> PodIdentityError:
    if isinstance(error, SerializationError):
        return RefusedError(f"{action}: {error}")
    fault = _fault(error)
    if fault is None:
        return TransientError(f"{action}: {type(error).__name__}: {error}")
    if isinstance(error, ClientAuthenticationError) and fault.status == 400:
        return PermissionRefused(f"{action}: {fault.text}")  # Entra ID and the metadata service say no in this way
    return core_error(fault, action, sent)


def _fault(error: Exception) -> Fault | None:
    refusal = _with_answer(error)
    if refusal is None:
        return None
    answer = _answer_to(refusal)
    wait_s = retry_after_s(answer.headers)
    return Fault.of_body(answer.body, status=answer.status, retry_after_s=wait_s, default=refusal.message)


def _with_answer(error: BaseException | None) -> HttpResponseError | None:
    """The nearest error with an answer that *error* came from: azure-identity wraps the metadata service's."""
    while error is not None:
        if isinstance(error, HttpResponseError) and error.response is not None and error.status_code is not None:
            return error
        error = error.__cause__
    return None


def _answer_to(refusal: HttpResponseError) -> Answer:
    try:
        text = refusal.response.text() if refusal.response is not None else ""
    except AzureError:  # the body was not read
        text = ""
    return Answer(refusal.status_code or 0, _headers(refusal.response), _object(text) or {})
