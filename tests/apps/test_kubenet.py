"""The check of the node's network plugin, from the kubelet's settings."""

from pathlib import Path

import pytest

from apps.nmi.kubenet import kubenet_fault


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    return tmp_path / "kubelet"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"KUBELET_CONFIG=\nKUBELET_FLAGS=--network-plugin=cni --node-ip=10.240.0.4\n",
        b"KUBELET_FLAGS=--network-plugin=azure\n",
        b"\xff\xfe is not text\n",
    ],
    ids=["empty, as the manifests create it", "cni", "azure", "not UTF-8"],
)
def test_without_kubenet_nothing_is_wrong(settings: Path, text: bytes) -> None:
    settings.write_bytes(text)

    assert kubenet_fault(str(settings)) == ""


@pytest.mark.parametrize(
    "text",
    ["--network-plugin=kubenet", "KUBELET_FLAGS=--v=2 --network-plugin=kubenet --node-ip=10.240.0.4\n"],
    ids=["alone", "among others"],
)
def test_kubenet_is_a_fault_with_its_remedy(settings: Path, text: str) -> None:
    settings.write_text(text)

    fault = kubenet_fault(str(settings))

    assert fault.startswith(f"{settings} has --network-plugin=kubenet")
    assert "pass --allow-network-plugin-kubenet" in fault


def test_settings_that_cannot_be_read_are_a_fault_with_its_remedy(settings: Path) -> None:
    fault = kubenet_fault(str(settings))

    assert fault.startswith(f"--kubelet-config: cannot read {settings}: No such file or directory; mount ")
    assert "--allow-network-plugin-kubenet" in fault


def test_a_folder_in_the_files_place_is_a_fault(tmp_path: Path) -> None:
    assert "Is a directory" in kubenet_fault(str(tmp_path))
