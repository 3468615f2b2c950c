"""Which Entra ID a service principal's credential may be sent to.

Whoever may create an AzureIdentity chooses its adEndpoint, and NMI sends the credential there, from the node's own
network. So an endpoint is only taken when it belongs to Azure, or when the operator allows any.
"""

from __future__ import annotations

import re

import httpx

from podidentity_core.errors import ConfigurationError, RefusedError
from podidentity_core.model import Identity

PUBLIC_AUTHORITY = "https://login.microsoftonline.com/"
ANY_ENDPOINT_FLAG = "--allow-ad-endpoints"

KNOWN_HOSTS = frozenset(
    {
        "login.microsoftonline.com",
        "login.microsoft.com",
        "login.windows.net",
        "sts.windows.net",
        "login.microsoftonline.us",
        "login-us.microsoftonline.com",
        "login.usgovcloudapi.net",
        "login.partner.microsoftonline.cn",
        "login.chinacloudapi.cn",
        "login.sovcloud-identity.fr",
        "login.sovcloud-identity.de",
        "login.sovcloud-identity.sg",
    }
)
"""The hosts of Entra ID in all clouds. Source: MSAL's list of trusted authorities."""

_TENANT = re.compile(r"[0-9A-Za-z][0-9A-Za-z.-]*")
_SHOWN_CHARS = 100  # of a value that somebody else wrote


def check_authority(configured: str, *, allow_any: bool) -> None:
    """Check the address of the operator's own cloud.

    Raises:
        ConfigurationError: when it is none, or not https though not any endpoint is allowed.
    """
    url = _url(configured)
    if url is None or (url.scheme != "https" and not allow_any):
        raise ConfigurationError(
            f"the address of Entra ID is {_shown(configured)}, which gets no credential; write it as {PUBLIC_AUTHORITY}"
        )


def token_url(identity: Identity, *, configured: str, allow_any: bool) -> httpx.URL:
    """Return where tokens of *identity* come from: Entra's endpoint of version 1, which knows resources as pods do.

    *configured* is the address of the operator's own cloud, for an identity that names none.

    Raises:
        RefusedError: the tenant is none, or the endpoint may not be used; names the field and the remedy.
    """
    tenant = identity.tenant_id
    if not _TENANT.fullmatch(tenant):
        raise RefusedError(
            f"AzureIdentity {identity.key}: the tenant {_shown(tenant)} is none; "
            "correct spec.tenantID or spec.auxiliaryTenantIDs: an ID or a domain name"
        )
    own = httpx.URL(configured)
    authority = _endpoint(identity, own, allow_any=allow_any) if identity.ad_endpoint else own
    return authority.copy_with(path=f"{authority.path.rstrip('/')}/{tenant}/oauth2/token")


def _endpoint(identity: Identity, own: httpx.URL, *, allow_any: bool) -> httpx.URL:
    field = f"AzureIdentity {identity.key}: spec.adEndpoint {_shown(identity.ad_endpoint)}"
    # The very object that is checked is used for the request: two parsers might see two hosts.
    url = _url(identity.ad_endpoint)
    if url is None:
        raise RefusedError(f"{field} is no address; write it as {PUBLIC_AUTHORITY}")
    if allow_any:
        return url
    if url.scheme != "https":
        raise RefusedError(
            f"{field} is not https, so the credential could be read on its way; write https://, or let the operator "
            f"allow any endpoint (NMI's flag {ANY_ENDPOINT_FLAG})"
        )
    if _origin(url) != _origin(own) and not (url.host in KNOWN_HOSTS and url.port in (None, 443)):
        raise RefusedError(
            f"{field} is not an Entra ID of a known cloud, so it gets no credential; correct or drop the field, or let "
            f"the operator allow any endpoint (NMI's flag {ANY_ENDPOINT_FLAG})"
        )
    return url


def _url(text: str) -> httpx.URL | None:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        return None
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query or url.fragment:
        return None
    return url


def _origin(url: httpx.URL) -> tuple[str, bytes, int | None]:
    return url.scheme, url.raw_host, url.port


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}...")
