"""The credential with which the program itself goes to Resource Manager, through azure-identity."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from podidentity_azure.cloud import AzureConfig
from podidentity_core.errors import ConfigurationError

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

_log = logging.getLogger(__name__)

_DIVERSIONS = (
    ("IDENTITY_ENDPOINT", "IDENTITY_HEADER"),
    ("IDENTITY_ENDPOINT", "IMDS_ENDPOINT"),
    ("MSI_ENDPOINT",),
    ("AZURE_AUTHORITY_HOST", "AZURE_TENANT_ID", "AZURE_FEDERATED_TOKEN_FILE"),
)
"""Variables with which azure-identity leaves the node's metadata service for App Service, Arc, Cloud Shell or workload
identity. The original heeded MSI_ENDPOINT alone. Source: go-autorest autorest/adal/token.go:771."""


def diverted_by(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the variables because of which a managed identity's token comes from elsewhere than the node."""
    return next((names for names in _DIVERSIONS if all(environ.get(name) for name in names)), ())


def open_credential(config: AzureConfig, *, environ: Mapping[str, str], tls: ssl.SSLContext) -> AsyncTokenCredential:
    """Return the credential that *config* describes; close it after use.

    No request is made until the first token is needed. Tokens are cached in it and renewed in time.

    Raises:
        ConfigurationError: when the settings cannot be those of a credential.
    """
    try:
        if config.managed_identity is None:
            return _service_principal(config, tls)
        return _managed_identity(config.managed_identity, environ, tls)
    except ValueError as error:
        raise ConfigurationError(f"cloud configuration: {error}; correct the identity's settings") from error


def _service_principal(config: AzureConfig, tls: ssl.SSLContext) -> AsyncTokenCredential:
    from azure.identity.aio import ClientSecretCredential

    from podidentity_azure.transport import Transport

    return ClientSecretCredential(
        config.tenant_id,
        config.client_id,
        config.client_secret,
        authority=config.cloud.authority,
        disable_instance_discovery=config.cloud.custom,
        retry_total=1,  # whoever needs the token tries again by itself
        transport=Transport(tls, proxies=True),
    )


def _managed_identity(identity: str, environ: Mapping[str, str], tls: ssl.SSLContext) -> AsyncTokenCredential:
    from azure.identity.aio import ManagedIdentityCredential

    from podidentity_azure.transport import Transport

    if names := diverted_by(environ):
        _log.warning("the managed identity is not asked of the node's metadata service, because of %s", names)
    options: dict[str, Any] = {"transport": Transport(tls, proxies=False)}
    if identity.startswith("/"):
        # The asyncio class sends these keys as they are; IMDS knows no `resource_id`.
        options["identity_config"] = {"msi_res_id": identity}
    elif identity:
        options["client_id"] = identity
    return ManagedIdentityCredential(**options)
