"""How the Azure SDK reaches the network. Importing this module imports aiohttp and the SDK's core."""

from __future__ import annotations

import ssl

import aiohttp
from azure.core.pipeline.transport import AioHttpTransport

CONNECT_LIMIT_S = 10.0
READ_LIMIT_S = 30.0
"""How long a connection may take, and a silence on it. A PATCH is answered after 1 to 6 s."""


class Transport(AioHttpTransport):  # type: ignore[misc]  # azure-core exports it without its type
    """One kept-alive session for one SDK client, which closes it; nothing is opened before the first request.

    *proxies*: whether those of the environment are used, as the original does. Never for the metadata service: it
    answers no proxy, and a node-wide HTTP_PROXY would send the token there.

    The SDK's own transport builds a new TLS context for each request when it is given a certificate file, and aiohttp
    re-uses no connection across contexts: each poll would cost a handshake. One context in the connector does not.
    """

    def __init__(self, tls: ssl.SSLContext, *, proxies: bool) -> None:
        self.session: aiohttp.ClientSession | None
        super().__init__(connection_timeout=CONNECT_LIMIT_S, read_timeout=READ_LIMIT_S)
        self._tls = tls
        self._proxies = proxies

    async def open(self) -> None:
        """Make the session; a transport that was closed stays closed."""
        if self.session is None and not self._has_been_opened:
            self.session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._tls),
                trust_env=self._proxies,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,  # the SDK unpacks by itself
            )
        await super().open()
