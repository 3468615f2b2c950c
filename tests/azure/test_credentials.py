"""Which credential stands for which configuration."""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import parse_qs

import pytest

from apps.sandbox.options import identity_id
from apps.sandbox.sandbox import Sandbox
from podidentity_azure.cloud import CLOUDS, AzureConfig
from podidentity_azure.credentials import diverted_by, open_credential
from podidentity_azure.tls import ca_bundle, tls_context
from podidentity_core.errors import ConfigurationError

PUBLIC = CLOUDS["azurepubliccloud"]
WORKLOAD = {
    "AZURE_AUTHORITY_HOST": "https://login.example",
    "AZURE_TENANT_ID": "t",
    "AZURE_FEDERATED_TOKEN_FILE": "f",
    "AZURE_CLIENT_ID": "c",
}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ()),
        ({"AZURE_CLIENT_ID": "c", "AZURE_TENANT_ID": "t"}, ()),
        ({"IDENTITY_ENDPOINT": "http://x"}, ()),
        ({"MSI_ENDPOINT": ""}, ()),
        ({"MSI_ENDPOINT": "http://x", "MSI_SECRET": "s"}, ("MSI_ENDPOINT",)),
        ({"IDENTITY_ENDPOINT": "http://x", "IDENTITY_HEADER": "h"}, ("IDENTITY_ENDPOINT", "IDENTITY_HEADER")),
        ({"IDENTITY_ENDPOINT": "http://x", "IMDS_ENDPOINT": "y"}, ("IDENTITY_ENDPOINT", "IMDS_ENDPOINT")),
        (
            {"AZURE_AUTHORITY_HOST": "a", "AZURE_TENANT_ID": "t", "AZURE_FEDERATED_TOKEN_FILE": "f"},
            ("AZURE_AUTHORITY_HOST", "AZURE_TENANT_ID", "AZURE_FEDERATED_TOKEN_FILE"),
        ),
    ],
)
def test_variables_that_lead_away_from_the_node_are_known(environ: dict[str, str], expected: tuple[str, ...]) -> None:
    assert diverted_by(environ) == expected


@pytest.mark.parametrize(
    ("environ", "kind"),
    [
        ({}, "ImdsCredential"),
        ({"MSI_ENDPOINT": "http://x"}, "CloudShellCredential"),
        ({"IDENTITY_ENDPOINT": "http://x", "IDENTITY_HEADER": "h"}, "AppServiceCredential"),
        ({"IDENTITY_ENDPOINT": "http://x", "IMDS_ENDPOINT": "y"}, "AzureArcCredential"),
        (
            WORKLOAD,
            "WorkloadIdentityCredential",
        ),
    ],
)
async def test_the_vendor_is_led_away_by_just_these_and_the_log_says_so(
    environ: dict[str, str], kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("IDENTITY_ENDPOINT", "IDENTITY_HEADER", "IMDS_ENDPOINT", "MSI_ENDPOINT", "AZURE_FEDERATED_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    caplog.set_level(logging.WARNING)

    credential: Any = open_credential(AzureConfig(PUBLIC, managed_identity=""), environ=environ, tls=tls_context(""))

    assert type(credential._credential).__name__ == kind
    warned = [record for record in caplog.records if record.name == "podidentity_azure.credentials"]
    assert bool(warned) == bool(environ)
    await credential.close()


@pytest.mark.parametrize(
    ("managed_identity", "parameter"),
    [("", ""), ("a-client-id", "client_id"), (identity_id("mic"), "msi_res_id")],
    ids=["system-assigned", "by client ID", "by resource ID"],
)
async def test_the_node_is_asked_for_the_identity_that_is_configured(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, managed_identity: str, parameter: str
) -> None:
    node = sandbox.options.nodes[0]
    mic = sandbox.azure.add_identity(identity_id("mic"))
    sandbox.azure.attach(node.host_id, [mic.resource_id], system=True)
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", sandbox.imds_urls[node.name])
    named = mic.principal.client_id if parameter == "client_id" else managed_identity
    credential = open_credential(AzureConfig(PUBLIC, managed_identity=named), environ={}, tls=tls_context(""))

    await credential.get_token("https://management.azure.com//.default")

    query = parse_qs(sandbox.faults.seen("imds")[0].query)
    assert query.get(parameter) == ([named] if parameter else None)
    assert set(query) == {"api-version", "resource"} | ({parameter} - {""})
    assert query["resource"] == ["https://management.azure.com/"]
    await credential.close()


async def test_a_tenant_that_cannot_be_one_is_a_wrong_setting() -> None:
    config = AzureConfig(PUBLIC, "not a tenant", "c", "s3cret")

    with pytest.raises(ConfigurationError, match="tenant") as caught:
        open_credential(config, environ={}, tls=tls_context(""))

    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ""),
        ({"SSL_CERT_FILE": "b"}, "b"),
        ({"REQUESTS_CA_BUNDLE": "a", "SSL_CERT_FILE": "b"}, "a"),
        ({"REQUESTS_CA_BUNDLE": "", "SSL_CERT_FILE": "b"}, "b"),
    ],
)
def test_the_certificates_come_from_the_first_variable_that_is_set(environ: dict[str, str], expected: str) -> None:
    assert ca_bundle(environ) == expected
