"""How to reach the API server: a kubeconfig file, or the service account of the pod that this process runs in."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import yaml
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from podidentity_core.errors import ConfigurationError


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """An address, and what is needed to be let in there. The representation shows no secret."""

    configuration: Configuration
    tls: ssl.SSLContext

    def __repr__(self) -> str:
        return f"Credentials(host={self.configuration.host!r})"

    @property
    def host(self) -> str:
        """The server's URL, without a slash at the end."""
        return str(self.configuration.host).rstrip("/")

    async def authorization(self) -> str | None:
        """The header's value, or None for client certificates. A service account's token is read again each minute."""
        value: str | None = await self.configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        return value


async def load_credentials(kubeconfig: str, *, setting: str = "--kubeconfig") -> Credentials:
    """Read the file *kubeconfig*, which *setting* (a flag or variable) names; when empty, the pod's service account.

    Raises:
        ConfigurationError: naming the file, the setting and the remedy.
    """
    configuration = Configuration()
    # Go's clients do not insist on RFC 5280's extensions either, and CAs of managed clusters lack some of them.
    configuration.disable_strict_ssl_verification = True
    if kubeconfig:
        await _load_file(kubeconfig, setting, configuration)
    else:
        _load_service_account(setting, configuration)
    return Credentials(configuration, _tls_context(configuration, kubeconfig, setting))


async def _load_file(path: str, setting: str, configuration: Configuration) -> None:
    try:
        _check_readable(path)  # the loader only warns about a missing file
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the kubeconfig {path}: {error.strerror}; correct {setting} or the file's permissions"
        ) from error
    try:
        await load_kube_config(  # type: ignore[no-untyped-call]  # the library's own loader has no types
            config_file=path, client_configuration=configuration, persist_config=False
        )
    except yaml.YAMLError as error:
        # The parser's message quotes the file, which may hold a token.
        raise ConfigurationError(f"the kubeconfig {path} is no YAML; correct it, or {setting}") from error
    except ConfigException as error:
        raise ConfigurationError(f"the kubeconfig {path} is incomplete: {error}; correct it, or {setting}") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        # The loader checks little: a list where a map should be surfaces as any of these.
        raise ConfigurationError(
            f"the kubeconfig {path} is not understood ({type(error).__name__}); correct it, or {setting}"
        ) from error


def _check_readable(path: str) -> None:
    with Path(path).open("rb"):
        pass


def _load_service_account(setting: str, configuration: Configuration) -> None:
    try:
        load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]  # as above
    except (ConfigException, OSError) as error:
        raise ConfigurationError(
            f"no API server is configured: {setting} is empty, and this is no pod with a service account ({error});"
            f" name a kubeconfig with {setting}"
        ) from error


def _tls_context(configuration: Configuration, path: str, setting: str) -> ssl.SSLContext:
    source = f"the kubeconfig {path}" if path else "the service account"
    try:
        context: ssl.SSLContext = RESTClientObject(configuration).ssl_context
    except (OSError, ValueError) as error:
        wrong = error.reason if isinstance(error, ssl.SSLError) and error.reason else type(error).__name__
        raise ConfigurationError(
            f"a certificate or key of {source} cannot be used ({wrong}); correct it, or {setting}"
        ) from error
    return context
