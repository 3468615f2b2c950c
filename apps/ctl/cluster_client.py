"""What the demo does with kubectl and az in the tutorial, over plain HTTP, since neither need be installed."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from apps.sandbox.options import TENANT, identity_id
from apps.sandbox.sandbox import Sandbox

_COLLECTIONS: Mapping[str, str] = {
    "AzureIdentity": "/apis/aadpodidentity.k8s.io/v1/namespaces/default/azureidentities",
    "AzureIdentityBinding": "/apis/aadpodidentity.k8s.io/v1/namespaces/default/azureidentitybindings",
    "Deployment": "/apis/apps/v1/namespaces/default/deployments",
}
_TABLE = "application/json;as=Table;g=meta.k8s.io;v=v1"
_LOOK_S = 0.05

T = TypeVar("T")


class DemoFailed(Exception):
    """Something that the tutorial promises did not happen."""


class ClusterClient:
    """A few of kubectl's commands."""

    def __init__(self, url: str, token: str) -> None:
        self._http = httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def create(self, manifest: Mapping[str, Any]) -> None:
        """`kubectl create`."""
        answer = await self._http.post(_COLLECTIONS[manifest["kind"]], json=manifest)
        answer.raise_for_status()

    async def event(self, reason: str, within_s: float) -> Mapping[str, Any]:
        """Return the first event with this reason, once there is one."""

        async def look() -> Mapping[str, Any] | None:
            events = (await self._get("/api/v1/events")).json()["items"]
            return next((event for event in events if event["reason"] == reason), None)

        return await _once(look, f"an event {reason!r}", within_s)

    async def table(self, plural: str) -> str:
        """`kubectl get` in all namespaces."""
        answer = await self._get(f"/apis/aadpodidentity.k8s.io/v1/{plural}", {"Accept": _TABLE})
        body = answer.json()
        names = [column["name"].upper() for column in body["columnDefinitions"] if not column.get("priority")]
        rows = [[str(cell) for cell in row["cells"][: len(names)]] for row in body["rows"]]
        spaces = [row["object"]["metadata"]["namespace"] for row in body["rows"]]
        lines = [["NAMESPACE", *names], *([space, *row] for space, row in zip(spaces, rows, strict=True))]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
        )

    async def pod_log(self, selector: str, text: str, within_s: float) -> str:
        """`kubectl logs`, once the log contains *text*."""

        async def look() -> str | None:
            pods = (await self._get(f"/api/v1/namespaces/default/pods?labelSelector={selector}")).json()["items"]
            logs = [await self._get(f"/api/v1/namespaces/default/pods/{p['metadata']['name']}/log") for p in pods]
            return next((log.text for log in logs if text in log.text), None)

        return await _once(look, f"{text!r} in the pod's log", within_s)

    async def _get(self, path: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
        answer = await self._http.get(path, headers=headers)
        answer.raise_for_status()
        return answer


async def _once(look: Callable[[], Awaitable[T | None]], what: str, within_s: float) -> T:
    try:
        async with asyncio.timeout(within_s):
            while (found := await look()) is None:  # noqa: ASYNC110 - what is awaited is in another process
                await asyncio.sleep(_LOOK_S)
            return found
    except TimeoutError:
        raise DemoFailed(f"{what} did not appear within {within_s:.0f} s") from None


@dataclass(frozen=True, slots=True)
class AzureIdentity:
    """A user-assigned identity in Azure."""

    resource_id: str
    client_id: str


async def create_identity(sandbox: Sandbox, name: str) -> AzureIdentity:
    """`az identity create`: with a token of Entra ID, through Resource Manager."""
    tls = ssl.create_default_context(cafile=str(sandbox.ca_file))
    form = {
        "grant_type": "client_credentials",
        "client_id": sandbox.client_id,
        "client_secret": sandbox.client_secret,
        "scope": f"{sandbox.arm_url}/.default",
    }
    async with httpx.AsyncClient(verify=tls, trust_env=False) as http:
        answer = await http.post(f"{sandbox.entra_url}/{TENANT}/oauth2/v2.0/token", data=form)
        answer.raise_for_status()
        created = await http.put(
            f"{sandbox.arm_url}{identity_id(name)}?api-version=2023-01-31",
            headers={"Authorization": f"Bearer {answer.json()['access_token']}"},
            json={"location": "westeurope"},
        )
        created.raise_for_status()
    body = json.loads(created.content)
    return AzureIdentity(body["id"], body["properties"]["clientId"])
