"""azure.json, the environment, and clouds."""

from __future__ import annotations

import json
import traceback
from pathlib import Path

import pytest

from podidentity_azure.cloud import CLOUDS, AzureConfig, fingerprint, load_azure_config
from podidentity_core.errors import ConfigurationError

SECRET = "p4ss-w0rd-of-the-cluster"
PRINCIPAL = {"cloud": "AzurePublicCloud", "tenantId": "t", "aadClientId": "c", "aadClientSecret": SECRET}
AKS = {
    "cloud": "AzurePublicCloud",
    "tenantId": "t",
    "subscriptionId": "s",
    "aadClientId": "msi",
    "aadClientSecret": "msi",
    "resourceGroup": "MC_rg_cluster_westeurope",
    "vmType": "vmss",
    "cloudProviderBackoff": True,
    "cloudProviderBackoffRetries": 6,
    "useManagedIdentityExtension": True,
    "userAssignedIdentityID": "kubelet",
}


def written(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "azure.json"


def test_a_service_principal_is_read(file: Path) -> None:
    config = load_azure_config(written(file, PRINCIPAL), {})

    assert config == AzureConfig(CLOUDS["azurepubliccloud"], "t", "c", SECRET)
    assert config.managed_identity is None


def test_the_managed_identity_of_an_aks_cluster_is_read(file: Path) -> None:
    config = load_azure_config(written(file, AKS), {})

    assert config.managed_identity == "kubelet"
    assert config.client_secret == ""


@pytest.mark.parametrize(
    "change",
    [{"userAssignedIdentityID": ""}, {"userAssignedIdentityID": None}],
    ids=["empty", "null"],
)
def test_a_managed_identity_without_a_name_is_the_system_assigned_one(file: Path, change: dict[str, object]) -> None:
    assert load_azure_config(written(file, AKS | change), {}).managed_identity == ""


def test_a_file_without_a_service_principal_at_all_is_enough_for_a_managed_identity(file: Path) -> None:
    config = load_azure_config(written(file, {"cloud": "AzurePublicCloud", "useManagedIdentityExtension": True}), {})

    assert config.managed_identity == ""


def test_the_file_may_be_yaml(file: Path) -> None:
    text = f"cloud: AzureUSGovernment\ntenantId: t\naadClientId: c\naadClientSecret: {SECRET}\n"

    assert load_azure_config(written(file, text), {}).cloud.name == "AzureUSGovernmentCloud"


def test_the_file_and_the_environment_are_not_mixed(file: Path) -> None:
    incomplete = {key: value for key, value in PRINCIPAL.items() if key != "tenantId"}

    with pytest.raises(ConfigurationError, match="tenantId is missing"):
        load_azure_config(written(file, incomplete), {"TENANT_ID": "t", "USE_MSI": "true"})


@pytest.mark.parametrize("flag", ["True", "true", "TRUE"])
def test_the_environment_stands_in_for_the_file(flag: str) -> None:
    environ = {"CLOUD": "AzureChinaCloud", "USE_MSI": flag, "USER_ASSIGNED_MSI_CLIENT_ID": "id"}

    assert load_azure_config(None, environ) == AzureConfig(CLOUDS["azurechinacloud"], managed_identity="id")


@pytest.mark.parametrize("flag", ["", "False", "1", "yes"])
def test_without_use_msi_the_environment_names_a_service_principal(flag: str) -> None:
    environ = {
        "CLOUD": "AzureCloud",
        "USE_MSI": flag,
        "TENANT_ID": "t",
        "CLIENT_ID": "c",
        "CLIENT_SECRET": SECRET,
    }

    assert load_azure_config("", environ) == AzureConfig(CLOUDS["azurecloud"], "t", "c", SECRET)


@pytest.mark.parametrize(
    ("name", "resource_manager", "authority"),
    [
        ("AzurePublicCloud", "https://management.azure.com/", "https://login.microsoftonline.com/"),
        ("AZURECLOUD", "https://management.azure.com/", "https://login.microsoftonline.com/"),
        ("azureusgovernmentcloud", "https://management.usgovcloudapi.net/", "https://login.microsoftonline.us/"),
        ("AzureUSGovernment", "https://management.usgovcloudapi.net/", "https://login.microsoftonline.us/"),
        ("AzureChinaCloud", "https://management.chinacloudapi.cn/", "https://login.chinacloudapi.cn/"),
        ("AzureGermanCloud", "https://management.microsoftazure.de/", "https://login.microsoftonline.de/"),
    ],
)
def test_known_clouds_in_any_letter_case(name: str, resource_manager: str, authority: str) -> None:
    cloud = load_azure_config(None, {"CLOUD": name, "USE_MSI": "true"}).cloud

    assert (cloud.resource_manager, cloud.authority) == (resource_manager, authority)
    assert cloud.audience == resource_manager
    assert not cloud.custom


ENDPOINTS = {
    "name": "MyStack",
    "resourceManagerEndpoint": "https://management.stack.example",
    "activeDirectoryEndpoint": "https://login.stack.example/",
    "graphEndpoint": "N/A",
}


def stack(tmp_path: Path, content: object) -> dict[str, str]:
    path = written(tmp_path / "stack.json", content)
    return {"CLOUD": "AzureStackCloud", "USE_MSI": "true", "AZURE_ENVIRONMENT_FILEPATH": str(path)}


@pytest.mark.parametrize(
    ("audience", "expected"),
    [
        ({"tokenAudience": "https://management.stack.example/guid"}, "https://management.stack.example/guid"),
        ({"tokenAudience": "N/A"}, "https://management.stack.example"),
        ({}, "https://management.stack.example"),
    ],
    ids=["named", "not available", "missing"],
)
def test_a_custom_cloud_has_its_own_endpoints_and_audience(
    tmp_path: Path, audience: dict[str, str], expected: str
) -> None:
    cloud = load_azure_config(None, stack(tmp_path, ENDPOINTS | audience)).cloud

    assert cloud.name == "MyStack"
    assert cloud.authority == "https://login.stack.example/"
    assert cloud.audience == expected
    assert cloud.custom


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param("", ["holds no keys"], id="empty"),
        pytest.param("[]", ["holds no keys"], id="a list"),
        pytest.param('{"cloud": "AzurePublicCloud", "aadClientSecret": "' + SECRET, ["line 1"], id="half-written"),
        pytest.param(PRINCIPAL | {"cloud": ""}, ["cloud is missing", "AzureChinaCloud"], id="no cloud"),
        pytest.param(PRINCIPAL | {"cloud": "Azur"}, ["'Azur'", "AzurePublicCloud", "AzureStackCloud"], id="bad cloud"),
        pytest.param(PRINCIPAL | {"tenantId": ""}, ["tenantId is missing", "managed identity"], id="no tenant"),
        pytest.param(PRINCIPAL | {"tenantId": "a b"}, ["tenantId is 'a b'", "domain name"], id="bad tenant"),
        pytest.param(PRINCIPAL | {"aadClientId": None}, ["aadClientId is missing"], id="no client"),
        pytest.param(PRINCIPAL | {"aadClientSecret": ""}, ["aadClientSecret is missing"], id="no secret"),
        pytest.param(PRINCIPAL | {"tenantId": 12}, ["tenantId", "quotes"], id="a number for a text"),
        pytest.param(
            PRINCIPAL | {"aadClientSecret": [SECRET]}, ["aadClientSecret", "quotes"], id="a list for a secret"
        ),
        pytest.param(AKS | {"useManagedIdentityExtension": "true"}, ["useManagedIdentityExtension"], id="quoted flag"),
    ],
)
def test_a_wrong_file_is_named_with_the_key_and_the_remedy(file: Path, content: object, words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_azure_config(written(file, content), {})

    told = str(caught.value)
    assert all(word in told for word in [str(file), *words]), told
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()], ids=["missing", "directory"])
def test_a_file_that_cannot_be_read_is_named(file: Path, make: object) -> None:
    assert callable(make)
    make(file)

    with pytest.raises(ConfigurationError, match=r"azure\.json cannot be read: .*; check path and rights"):
        load_azure_config(file, {})


def test_a_file_that_is_no_text_is_named(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(ConfigurationError, match="not UTF-8"):
        load_azure_config(file, {})


def test_an_incomplete_environment_names_the_variable() -> None:
    with pytest.raises(ConfigurationError, match=r"environment: CLIENT_SECRET is missing.*USE_MSI"):
        load_azure_config(None, {"CLOUD": "AzureCloud", "TENANT_ID": "t", "CLIENT_ID": "c"})
    with pytest.raises(ConfigurationError, match="environment: CLOUD is missing"):
        load_azure_config(None, {})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param("{}", ["resourceManagerEndpoint is missing"], id="an empty object"),
        pytest.param(ENDPOINTS | {"resourceManagerEndpoint": "N/A"}, ["resourceManagerEndpoint is missing"], id="N/A"),
        pytest.param(ENDPOINTS | {"activeDirectoryEndpoint": ""}, ["activeDirectoryEndpoint is missing"], id="no AD"),
        pytest.param(ENDPOINTS | {"activeDirectoryEndpoint": "http://x"}, ["'http://x'", "https"], id="no TLS"),
        pytest.param(ENDPOINTS | {"resourceManagerEndpoint": "stack"}, ["'stack'", "https"], id="no address"),
    ],
)
def test_a_wrong_cloud_file_is_named_with_the_key_and_the_remedy(
    tmp_path: Path, content: object, words: list[str]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_azure_config(None, stack(tmp_path, content))

    told = str(caught.value)
    assert all(word in told for word in ["stack.json", "AZURE_ENVIRONMENT_FILEPATH", *words]), told


def test_a_custom_cloud_without_a_file_names_the_variable() -> None:
    with pytest.raises(ConfigurationError, match="AZURE_ENVIRONMENT_FILEPATH"):
        load_azure_config(None, {"CLOUD": "AzureStackCloud", "USE_MSI": "true"})


def test_a_secret_is_in_no_representation(file: Path) -> None:
    config = load_azure_config(written(file, PRINCIPAL), {})

    assert SECRET not in repr(config)
    assert SECRET not in str(config)


def test_the_fingerprint_changes_with_every_way_to_change_a_file(tmp_path: Path) -> None:
    path, other = tmp_path / "azure.json", tmp_path / "new.json"
    seen = [fingerprint(path)]

    written(path, "{}")
    seen.append(fingerprint(path))
    written(path, "{} ")
    seen.append(fingerprint(path))
    written(other, "{} ").replace(path)
    seen.append(fingerprint(path))
    link = tmp_path / "link"
    link.symlink_to(path)

    assert seen[0] is None
    assert len(set(seen)) == 4
    assert fingerprint(link) == seen[-1] == fingerprint(path)
