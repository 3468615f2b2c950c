"""Which certificates are trusted."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

from podidentity_core.errors import ConfigurationError

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
