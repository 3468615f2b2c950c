"""Which Azure to talk to, and as whom: azure.json or the environment, and the endpoints of each cloud.

A configuration is parsed whole and checked before anybody sees it: a half-written file is an error that names what is
missing, never a configuration with empty fields.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, StrictBool, ValidationError

from podidentity_core.errors import ConfigurationError

ENVIRONMENT_FILE_VARIABLE = "AZURE_ENVIRONMENT_FILEPATH"
"""Names the file that describes a custom cloud."""

_ETAG_API_VERSION = "2024-03-01"
"""The first Compute version whose answers carry etags for VMs and scale sets alike, so the one that the most clouds
know. The contract has them since 2023-09-01, but ARM did not send them then (azure-rest-api-specs issue 27527)."""

_OLDEST_API_VERSION = "2019-12-01"
"""The original's version, without etags: a custom cloud may know nothing newer."""


@dataclass(frozen=True, slots=True)
class Cloud:
    """One Azure: its Resource Manager, its Entra ID (*authority*), and the audience of tokens for Resource Manager.

    *custom*: nobody but its own endpoints knows this cloud, so clients must not look it up in the public one.
    """

    name: str
    resource_manager: str
    authority: str
    audience: str
    compute_api_version: str = _ETAG_API_VERSION
    custom: bool = False


def _known(name: str, resource_manager: str, authority: str) -> Cloud:
    # The audience is the endpoint, slash included, as go-autorest has it. Source: autorest/azure/environments.go
    return Cloud(name, resource_manager, authority, audience=resource_manager)


_PUBLIC = _known("AzurePublicCloud", "https://management.azure.com/", "https://login.microsoftonline.com/")
_US = _known("AzureUSGovernmentCloud", "https://management.usgovcloudapi.net/", "https://login.microsoftonline.us/")
_CHINA = _known("AzureChinaCloud", "https://management.chinacloudapi.cn/", "https://login.chinacloudapi.cn/")
_GERMANY = _known("AzureGermanCloud", "https://management.microsoftazure.de/", "https://login.microsoftonline.de/")

CLOUDS: Mapping[str, Cloud] = {
    "azurepubliccloud": _PUBLIC,
    "azurecloud": _PUBLIC,
    "azureusgovernmentcloud": _US,
    "azureusgovernment": _US,
    "azurechinacloud": _CHINA,
    "azuregermancloud": _GERMANY,
}
"""The clouds whose endpoints are fixed, by name in lower case."""

_CUSTOM_CLOUD = "azurestackcloud"


@dataclass(frozen=True, slots=True)
class AzureConfig:
    """The cloud, and the identity that the program uses there. The secret is never shown.

    *managed_identity* is None for a service principal; the empty text means the system-assigned identity, anything
    else is the client ID (or the resource ID) of a user-assigned one.
    """

    cloud: Cloud
    tenant_id: str = ""
    client_id: str = ""
    client_secret: str = field(default="", repr=False)
    managed_identity: str | None = None


class Fingerprint(NamedTuple):
    """What changes when a file is written, or replaced by another one under its name."""

    inode: int
    modified_ns: int
    size_bytes: int


def fingerprint(path: str | Path) -> Fingerprint | None:
    """Return the fingerprint of the file at *path*, or None while there is none.

    Links are followed, so that a mounted Secret counts as changed when Kubernetes swaps its directory.
    """
    try:
        stat = Path(path).stat()
    except OSError:
        return None
    return Fingerprint(stat.st_ino, stat.st_mtime_ns, stat.st_size)


def load_azure_config(path: str | Path | None, environ: Mapping[str, str]) -> AzureConfig:
    """Read azure.json at *path*, or without a path the variables that stand for it. The two are never mixed.

    Source: aad-pod-identity pkg/config/azureconfig.go, pkg/cloudprovider/cloudprovider.go:68. Its subscriptionId,
    resourceGroup and vmType are not needed: each host's own resource ID says where it is.

    Raises:
        ConfigurationError: naming the file or variable, the key, and the remedy. No secret is in it.
    """
    if path:
        settings = _parse(_AzureJson, f"cloud configuration {path}", _mapping(path, "cloud configuration"))
        return _config(settings, f"cloud configuration {path}", {key: key for key in _VARIABLES}, environ)
    values: dict[str, object] = {key: environ.get(variable, "") for key, variable in _VARIABLES.items()}
    values["useManagedIdentityExtension"] = environ.get("USE_MSI", "").lower() == "true"
    return _config(_parse(_AzureJson, "environment", values), "environment", _VARIABLES, environ)


_VARIABLES = {
    "cloud": "CLOUD",
    "tenantId": "TENANT_ID",
    "aadClientId": "CLIENT_ID",
    "aadClientSecret": "CLIENT_SECRET",
    "userAssignedIdentityID": "USER_ASSIGNED_MSI_CLIENT_ID",
}
"""Source: aad-pod-identity pkg/cloudprovider/cloudprovider.go:76."""

# A key that stands there without a value counts as absent, as in Go's decoder.
_Text = Annotated[str, BeforeValidator(lambda value: "" if value is None else value)]
_Secret = Annotated[SecretStr, BeforeValidator(lambda value: "" if value is None else value)]
_Flag = Annotated[StrictBool, BeforeValidator(lambda value: False if value is None else value)]


class _File(BaseModel):
    """Keys are case-sensitive, unknown ones are ignored. Errors hide their input: it may be a secret."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)


class _AzureJson(_File):
    cloud: _Text = ""
    tenant_id: _Text = Field("", alias="tenantId")
    client_id: _Text = Field("", alias="aadClientId")
    client_secret: _Secret = Field(SecretStr(""), alias="aadClientSecret")
    use_managed_identity: _Flag = Field(False, alias="useManagedIdentityExtension")
    managed_identity: _Text = Field("", alias="userAssignedIdentityID")


class _CloudFile(_File):
    name: _Text = ""
    resource_manager: _Text = Field("", alias="resourceManagerEndpoint")
    authority: _Text = Field("", alias="activeDirectoryEndpoint")
    audience: _Text = Field("", alias="tokenAudience")


_Model = TypeVar("_Model", bound=_File)


def _mapping(path: str | Path, what: str) -> dict[str, object]:
    """Read a file of keys and values, as YAML, of which JSON is a part."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{what} {path} cannot be read: {error.strerror}; check path and rights") from error
    except UnicodeDecodeError:
        raise ConfigurationError(f"{what} {path} is not UTF-8 text; write it as JSON or YAML") from None
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        # Neither the cause nor its text may be kept: both quote the line, which may hold the secret.
        raise ConfigurationError(f"{what} {path} is neither JSON nor YAML{_place(error)}; correct the syntax") from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"{what} {path} holds no keys; it may be half-written, or the wrong file")
    return {str(key): value for key, value in content.items()}


def _place(error: yaml.YAMLError) -> str:
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    return f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""


def _parse(model: type[_Model], source: str, values: dict[str, object]) -> _Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        key = ".".join(str(part) for part in fault["loc"])
        # `from None`: the cause holds the values that were read.
        raise ConfigurationError(
            f"{source}: {key}: {fault['msg']}; write texts in quotes, true and false without"
        ) from None


def _config(settings: _AzureJson, source: str, names: Mapping[str, str], environ: Mapping[str, str]) -> AzureConfig:
    cloud = _cloud(settings.cloud, f"{source}: {names['cloud']}", environ)
    if settings.use_managed_identity:
        return AzureConfig(cloud, tenant_id=settings.tenant_id, managed_identity=settings.managed_identity)
    secret = settings.client_secret.get_secret_value()
    needed = {"tenantId": settings.tenant_id, "aadClientId": settings.client_id, "aadClientSecret": secret}
    for key, value in needed.items():
        if not value:
            raise ConfigurationError(
                f"{source}: {names[key]} is missing, and a service principal needs it; set it, or use a managed "
                "identity (useManagedIdentityExtension: true in the file, USE_MSI=true in the environment)"
            )
    if not _TENANT.fullmatch(settings.tenant_id):
        raise ConfigurationError(
            f"{source}: {names['tenantId']} is {settings.tenant_id!r}; use the tenant's ID or one of its domain names"
        )
    return AzureConfig(cloud, settings.tenant_id, settings.client_id, secret)


_TENANT = re.compile(r"[0-9A-Za-z.-]+")


def _cloud(name: str, setting: str, environ: Mapping[str, str]) -> Cloud:
    if name.lower() == _CUSTOM_CLOUD:
        return _custom_cloud(name, setting, environ)
    known = CLOUDS.get(name.lower())
    if known is None:
        choices = ", ".join(sorted({cloud.name for cloud in CLOUDS.values()} | {"AzureStackCloud"}))
        fault = f"{name!r} is no cloud that is known" if name else "is missing"
        raise ConfigurationError(f"{setting} {fault}; use one of {choices}")
    return known


def _custom_cloud(name: str, setting: str, environ: Mapping[str, str]) -> Cloud:
    """Read the file of a custom cloud. Unlike the original, its token audience counts."""
    path = environ.get(ENVIRONMENT_FILE_VARIABLE, "")
    if not path:
        raise ConfigurationError(
            f"{setting} is {name}; name the file with its endpoints in {ENVIRONMENT_FILE_VARIABLE}"
        )
    source = f"cloud file {path} ({ENVIRONMENT_FILE_VARIABLE})"
    file = _parse(_CloudFile, source, _mapping(path, "cloud file"))
    resource_manager = _endpoint(file.resource_manager, f"{source}: resourceManagerEndpoint")
    return Cloud(
        name=file.name or name,
        resource_manager=resource_manager,
        authority=_endpoint(file.authority, f"{source}: activeDirectoryEndpoint"),
        audience=resource_manager if file.audience in _NOTHING else file.audience,
        compute_api_version=_OLDEST_API_VERSION,
        custom=True,
    )


_NOTHING = ("", "N/A")
"""How these files say that a value does not exist. Source: go-autorest autorest/azure/environments.go"""


def _endpoint(value: str, setting: str) -> str:
    if value in _NOTHING:
        raise ConfigurationError(f"{setting} is missing; set it to the cloud's https address")
    parts = urlsplit(value)
    if parts.scheme != "https" or not parts.hostname:
        raise ConfigurationError(f"{setting} is {value!r}; tokens go over TLS only, so it must be an https address")
    return value
