"""Which endpoints get a credential."""

from __future__ import annotations

from dataclasses import replace

import pytest

from podidentity_azure.authority import KNOWN_HOSTS, PUBLIC_AUTHORITY, check_authority, token_url
from podidentity_core.errors import ConfigurationError, RefusedError
from podidentity_core.model import Identity, IdentityKind
from podidentity_core.testing import builders

OWN = "https://login.stack.example:8443/adfs/"
WEB = replace(builders.identity("web", kind=IdentityKind.SERVICE_PRINCIPAL), tenant_id="contoso.example")


def url_of(identity: Identity, *, configured: str = OWN, allow_any: bool = False) -> str:
    return str(token_url(identity, configured=configured, allow_any=allow_any))


@pytest.mark.parametrize(
    ("configured", "expected"),
    [
        (PUBLIC_AUTHORITY, "https://login.microsoftonline.com/contoso.example/oauth2/token"),
        ("https://login.microsoftonline.us", "https://login.microsoftonline.us/contoso.example/oauth2/token"),
        (OWN, "https://login.stack.example:8443/adfs/contoso.example/oauth2/token"),
    ],
)
def test_without_an_endpoint_the_configured_cloud_is_asked(configured: str, expected: str) -> None:
    assert url_of(WEB, configured=configured) == expected


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        *((f"https://{host}", f"https://{host}") for host in sorted(KNOWN_HOSTS)),
        ("https://login.microsoftonline.com/", "https://login.microsoftonline.com"),
        ("HTTPS://Login.MicrosoftOnline.COM:443", "https://login.microsoftonline.com"),
        ("https://login.microsoftonline.com:443", "https://login.microsoftonline.com"),
        ("https://login.microsoftonline.us/path", "https://login.microsoftonline.us/path"),
        ("https://LOGIN.stack.example:8443", "https://login.stack.example:8443"),
    ],
)
def test_the_endpoints_of_known_clouds_and_of_the_configured_one_are_used(endpoint: str, expected: str) -> None:
    assert url_of(replace(WEB, ad_endpoint=endpoint)) == f"{expected}/contoso.example/oauth2/token"


@pytest.mark.parametrize(
    ("endpoint", "complaint"),
    [
        ("http://login.microsoftonline.com/", "is not https"),
        ("http://login.stack.example:8443/", "is not https"),
        ("https://evil.example/", "not an Entra ID of a known cloud"),
        ("https://login.microsoftonline.com.evil.example/", "not an Entra ID of a known cloud"),
        ("https://evil-login.microsoftonline.com/", "not an Entra ID of a known cloud"),
        ("https://login.microsoftonline.com:8443/", "not an Entra ID of a known cloud"),
        ("https://login.stack.example/", "not an Entra ID of a known cloud"),
        ("https://login.microsoftonline.com./", "not an Entra ID of a known cloud"),
        ("https://10.0.0.1/", "not an Entra ID of a known cloud"),
        ("https://evil.example#login.microsoftonline.com", "is no address"),
        ("https://login.microsoftonline.com@evil.example/", "is no address"),
        ("https://evil.example\\@login.microsoftonline.com/", "is no address"),
        ("https://login.microsoftonline.com/?x=", "is no address"),
        ("https://login.microsoftonline.com/\x00", "is no address"),
        ("login.microsoftonline.com", "is no address"),
        ("//login.microsoftonline.com", "is no address"),
        ("ftp://login.microsoftonline.com", "is no address"),
        ("https://", "is no address"),
        ("https:///tenant", "is no address"),
        ("https://[::1", "is no address"),
        ("https://login.microsoftonline.com:port", "is no address"),
    ],
)
def test_other_endpoints_are_refused_with_the_field_and_the_remedy(endpoint: str, complaint: str) -> None:
    with pytest.raises(RefusedError, match=complaint) as caught:
        url_of(replace(WEB, ad_endpoint=endpoint))

    message = str(caught.value)
    assert "AzureIdentity default/web: spec.adEndpoint" in message
    assert ("--allow-ad-endpoints" in message) == (complaint != "is no address")


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [("http://adfs.example:80", "http://adfs.example"), ("https://10.0.0.1:8443/adfs/", "https://10.0.0.1:8443/adfs")],
)
def test_the_operator_can_allow_any_endpoint(endpoint: str, expected: str) -> None:
    found = url_of(replace(WEB, ad_endpoint=endpoint), allow_any=True)

    assert found == f"{expected}/contoso.example/oauth2/token"


def test_even_then_an_endpoint_is_an_address() -> None:
    with pytest.raises(RefusedError, match="is no address"):
        url_of(replace(WEB, ad_endpoint="https://user:password@adfs.example"), allow_any=True)


@pytest.mark.parametrize(
    "authority", [PUBLIC_AUTHORITY, OWN, "https://login.microsoftonline.us", "https://10.0.0.1/adfs"]
)
def test_the_operators_own_cloud_may_be_any(authority: str) -> None:
    check_authority(authority, allow_any=False)


@pytest.mark.parametrize("authority", ["", "N/A", "login.microsoftonline.us", "https://", "https://u:p@adfs.example"])
@pytest.mark.parametrize("allow_any", [False, True])
def test_but_it_is_an_address(authority: str, allow_any: bool) -> None:
    with pytest.raises(ConfigurationError, match=r"the address of Entra ID is '.*'.* write it as https://login\."):
        check_authority(authority, allow_any=allow_any)


def test_and_it_has_tls_unless_any_is_allowed() -> None:
    check_authority("http://adfs.example", allow_any=True)
    with pytest.raises(ConfigurationError):
        check_authority("http://adfs.example", allow_any=False)


@pytest.mark.parametrize("tenant", ["", "..", "../x", "a/b", "a?b", "a#b", "a b", "a%2fb", "a\n", "é"])
def test_a_tenant_does_not_choose_the_path(tenant: str) -> None:
    with pytest.raises(RefusedError, match=r"AzureIdentity default/web: the tenant .* correct spec\.tenantID"):
        url_of(replace(WEB, tenant_id=tenant))


def test_a_long_value_is_not_repeated_in_full() -> None:
    with pytest.raises(RefusedError) as caught:
        url_of(replace(WEB, ad_endpoint="https://" + "x" * 100_000))

    assert len(str(caught.value)) < 500
