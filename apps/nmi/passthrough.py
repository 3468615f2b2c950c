"""Instance metadata and the like, fetched from the real metadata service on a pod's behalf."""

from __future__ import annotations

import logging
import ssl

import httpx

from apps.nmi.answers import denial, send_answer
from apps.serving import Scope, Send
from podidentity_core.reasons import Reason, because

log = logging.getLogger(__name__)

_CONNECT_S = 2.0
_READ_S = 150.0
"""The first request for scheduled events takes IMDS up to two minutes."""

_NOT_SENT_ON = {
    b"connection",
    b"content-length",
    b"date",
    b"keep-alive",
    b"proxy-authenticate",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
}
"""Headers of one connection only, and those that our own server writes."""


class ImdsPassthrough:
    """Sends GET and HEAD requests on to *endpoint*, at a path that the core has approved, never the pod's spelling.

    Of the request's headers only `Metadata` and `Accept` are sent on; the answer is streamed, not kept. Close it
    after use.
    """

    def __init__(self, endpoint: str) -> None:
        self._endpoint = httpx.URL(endpoint)
        self._http = httpx.AsyncClient(
            trust_env=False,
            timeout=httpx.Timeout(_READ_S, connect=_CONNECT_S),
            follow_redirects=False,
            # IMDS has no TLS: a context that trusts nobody spares each node the memory of all the authorities.
            verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def __call__(self, path: str, scope: Scope, send: Send) -> int:
        """Fetch *path* with the request's query, and answer with what comes back; returns its status."""
        target = path.encode() + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        headers = [(name, value) for name, value in scope["headers"] if name in (b"metadata", b"accept")]
        try:
            url = self._endpoint.copy_with(raw_path=target)
        except httpx.InvalidURL:  # a '#' in the query, which h11 lets pass
            answer = denial(because(Reason.BAD_QUERY, problem="it has a character that must be percent-encoded"))
            await send_answer(send, answer)
            return answer.status
        request = self._http.build_request(scope["method"], url, headers=headers)
        request.headers["accept-encoding"] = "identity"
        try:
            response = await self._http.send(request, stream=True)
        except httpx.HTTPError as error:
            log.error("failed executing request for %s, error: %s", path, type(error).__name__)
            return await _unavailable(send, error)
        try:
            await _relay(response, send)
        finally:
            await response.aclose()
        return response.status_code


async def _relay(response: httpx.Response, send: Send) -> None:
    headers = [(name.lower(), value) for name, value in response.headers.raw if name.lower() not in _NOT_SENT_ON]
    if length := response.headers.get("content-length"):
        headers.append((b"content-length", length.encode()))
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    async for part in response.aiter_raw():
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _unavailable(send: Send, error: httpx.HTTPError) -> int:
    answer = denial(because(Reason.UPSTREAM_AWAY, problem=type(error).__name__))
    await send_answer(send, answer)
    return answer.status
