"""How the Azure SDK reaches the network: one kept-alive aiohttp session per client, and the certificates it trusts."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING

from podidentity_core.errors import ConfigurationError

if TYPE_CHECKING:
    from azure.core.pipeline.transport import AioHttpTransport

CONNECT_LIMIT_S = 10.0
READ_LIMIT_S = 30.0
"""How long a connection may take, and a silence on it. A PATCH is answered after 1 to 6 s."""

CA_BUNDLE_VARIABLES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
"""The variables that name a file of trusted certificates, in order of precedence: what other Azure tools read."""


def ca_bundle(environ: Mapping[str, str]) -> str:
    """Return the file of certificates to trust instead of the system's, or the empty text."""
    return next((environ[name] for name in CA_BUNDLE_VARIABLES if environ.get(name)), "")


def tls_context(bundle: str) -> ssl.SSLContext:
    """Return a verifying context that trusts *bundle*, or the system's certificates if that is empty.

    Raises:
        ConfigurationError: when the file cannot be used.
    """
    try:
        return ssl.create_default_context(cafile=bundle or None)
    except OSError as error:  # an ssl.SSLError is one
        raise ConfigurationError(
            f"certificate file {bundle} ({' or '.join(CA_BUNDLE_VARIABLES)}) cannot be used: "
            f"{error.strerror or error}; name a readable file of PEM certificates"
        ) from error


def new_transport(tls: ssl.SSLContext, *, proxies: bool) -> AioHttpTransport:
    """Return a transport for one SDK client, which closes it. Call it with the event loop running.

    *proxies*: whether those of the environment are used, as the original does. Never for the metadata service: it
    answers no proxy, and a node-wide HTTP_PROXY would send the token there.

    The SDK's own transport builds a new TLS context for each request when it is given a certificate file, and aiohttp
    re-uses no connection across contexts: each poll would cost a handshake. One context in the connector does not.
    """
    import aiohttp
    from azure.core.pipeline.transport import AioHttpTransport

    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=tls),
        trust_env=proxies,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,  # the SDK unpacks by itself
    )
    return AioHttpTransport(session=session, connection_timeout=CONNECT_LIMIT_S, read_timeout=READ_LIMIT_S)
