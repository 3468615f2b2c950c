"""How the API server is found, and what is said when it cannot be."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.aio.config import incluster_config

from apps.sandbox.sandbox import Sandbox
from podidentity_core.errors import ConfigurationError, PermissionRefused
from podidentity_k8s.api import Connection, KubeApi
from podidentity_k8s.config import load_credentials
from tests.k8s.helpers import SteppedClock


def kubeconfig(**changes: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://127.0.0.1:6443"}}],
        "users": [{"name": "u", "user": {"token": "sesame"}}],
        **changes,
    }


CLUSTER = {"server": "https://127.0.0.1:6443"}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="empty"),
        pytest.param("token: sesame: {", id="no YAML"),
        pytest.param("- sesame", id="a list"),
        pytest.param("sesame", id="a text"),
        pytest.param(yaml.dump(kubeconfig(contexts=[])), id="no context"),
        pytest.param(yaml.dump(kubeconfig(clusters={"name": "k"})), id="clusters is a map"),
        pytest.param(yaml.dump(kubeconfig(clusters=[{"name": "k"}])), id="a cluster without content"),
        pytest.param(
            yaml.dump(kubeconfig(clusters=[{"name": "k", "cluster": {**CLUSTER, "certificate-authority": "/no/ca"}}])),
            id="no CA file",
        ),
        pytest.param(
            yaml.dump(
                kubeconfig(clusters=[{"name": "k", "cluster": {**CLUSTER, "certificate-authority-data": "c2VzYW1l"}}])
            ),
            id="a CA that is none",
        ),
        pytest.param(
            yaml.dump(kubeconfig(users=[{"name": "u", "user": {"client-certificate-data": "c2VzYW1l"}}])),
            id="a client certificate that is none",
        ),
    ],
)
async def test_a_broken_kubeconfig_is_named_with_the_setting_and_never_quoted(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config"
    path.write_text(content)

    with pytest.raises(ConfigurationError) as told:
        await load_credentials(str(path))

    message = str(told.value)
    assert str(path) in message
    assert "--kubeconfig" in message
    assert "correct" in message
    assert "sesame" not in message


async def test_a_kubeconfig_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"cannot read the kubeconfig .*/missing: No such file.*correct KUBECONFIG"
    ):
        await load_credentials(str(tmp_path / "missing"), setting="KUBECONFIG")
    with pytest.raises(ConfigurationError, match="Is a directory"):
        await load_credentials(str(tmp_path))


async def test_no_kubeconfig_and_no_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    with pytest.raises(ConfigurationError, match=r"--kubeconfig is empty, and this is no pod.*name a kubeconfig with"):
        await load_credentials("")


async def test_the_service_accounts_token_is_read_again_when_it_has_changed(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, port = sandbox.kube_tls_url.removeprefix("https://").split(":")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    token = tmp_path / "token"
    token.write_text("first")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(sandbox.ca_file))
    monkeypatch.setattr(incluster_config.InClusterConfigLoader, "_read_token_file", read_with_no_age, raising=True)
    credentials = await load_credentials("")
    async with Connection(credentials, user_agent="test") as connection:
        api = KubeApi(connection, clock=SteppedClock(), random=lambda: 0.5)
        with pytest.raises(PermissionRefused):
            await api.get("/api/v1/nodes")
        assert await credentials.authorization() == "bearer first"

        token.write_text("second")

        assert await credentials.authorization() == "bearer second"


def read_with_no_age(loader: Any) -> None:
    """As the library reads it, but for how long it trusts what it has read: not at all, instead of a minute."""
    loader.token = "bearer " + Path(loader._token_filename).read_text()
    loader.token_expires_at = datetime.datetime.now()  # noqa: DTZ005  # as the library does


async def test_the_servers_certificate_is_checked(sandbox: Sandbox, tmp_path: Path) -> None:
    config = yaml.safe_load(sandbox.kubeconfig.read_text())
    config["clusters"][0]["cluster"] = {"server": sandbox.kube_tls_url}  # the system's CAs, then
    path = tmp_path / "config"
    path.write_text(yaml.dump(config))

    async with Connection(await load_credentials(str(path)), user_agent="test") as connection:
        api = KubeApi(connection, clock=SteppedClock(), random=lambda: 0.5)
        with pytest.raises(ConfigurationError, match="correct `certificate-authority`"):
            await api.get("/api/v1/nodes")


async def test_the_kubeconfigs_ca_and_token_are_used(sandbox: Sandbox) -> None:
    async with Connection(await load_credentials(str(sandbox.kubeconfig)), user_agent="test") as connection:
        api = KubeApi(connection, clock=SteppedClock(), random=lambda: 0.5)
        assert b'"NodeList"' in await api.get("/api/v1/nodes")


async def test_a_connection_says_when_it_is_used_outside_of_its_time(sandbox: Sandbox) -> None:
    connection = Connection(await load_credentials(str(sandbox.kubeconfig)), user_agent="test")

    with pytest.raises(RuntimeError, match="async with"):
        await KubeApi(connection, clock=SteppedClock(), random=lambda: 0.5).get("/api/v1/nodes")
