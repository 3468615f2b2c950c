"""The layers import each other in one direction only, and the core nothing but the standard library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.import_rules import RULES, violations

PROJECT = Path(__file__).parents[2]
PACKAGES = ("podidentity_core", "podidentity_k8s", "podidentity_azure", "apps")


def test_every_import_is_allowed() -> None:
    assert violations(PROJECT, PACKAGES) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_looked_at(package: str) -> None:
    assert list((PROJECT / package).rglob("*.py")) != []


FORBIDDEN = [
    ("podidentity_core/planning.py", "import time"),
    ("podidentity_core/planning.py", "import pydantic"),
    ("podidentity_core/planning.py", "def f():\n    import asyncio"),
    ("podidentity_core/planning.py", "from urllib import request"),
    ("podidentity_core/planning.py", "from . import services"),
    ("podidentity_core/planning.py", "from .services.hosts import HostWorker"),
    ("podidentity_core/planning.py", "from podidentity_core.testing import builders"),
    ("podidentity_core/services/hosts.py", "import random"),
    ("podidentity_core/services/hosts.py", "import podidentity_k8s.api"),
    ("podidentity_core/testing/builders.py", "import pytest"),
    ("podidentity_k8s/api.py", "from podidentity_azure import hosts"),
    ("podidentity_azure/hosts.py", "import podidentity_k8s"),
    ("podidentity_azure/hosts.py", "from podidentity_core.testing.fakes import FakeCluster"),
    ("apps/mic/loop.py", "from podidentity_k8s.cluster import KubeCluster"),
    ("apps/nmi/api.py", "import azure.identity"),
    ("apps/nmi/api.py", "from apps import mic"),
    ("apps/sandbox/store.py", "from podidentity_core.model import Pod"),
    ("elsewhere/thing.py", ""),
]


@pytest.mark.parametrize(("path", "source"), FORBIDDEN, ids=[f"{path}: {source}" for path, source in FORBIDDEN])
def test_a_forbidden_import_is_found(path: str, source: str, tmp_path: Path) -> None:
    _write(tmp_path / path, source)

    assert len(violations(tmp_path)) == 1


ALLOWED = [
    ("podidentity_core/planning.py", "from urllib.parse import unquote"),
    ("podidentity_core/planning.py", "from .model import Pod"),
    ("podidentity_core/services/hosts.py", "import asyncio, logging\nfrom podidentity_core import events"),
    ("podidentity_core/testing/contracts/hosts.py", "import pytest\nfrom podidentity_core.testing import builders"),
    ("apps/mic/bootstrap.py", "import podidentity_k8s.api, podidentity_azure.hosts"),
]


@pytest.mark.parametrize(("path", "source"), ALLOWED, ids=[f"{path}: {source}" for path, source in ALLOWED])
def test_an_allowed_import_is_not_reported(path: str, source: str, tmp_path: Path) -> None:
    _write(tmp_path / path, source)

    assert violations(tmp_path) == []


def test_no_package_has_two_rules() -> None:
    packages = [rule.package for rule in RULES]

    assert len(packages) == len(set(packages))


def test_the_core_imports_in_a_bare_python() -> None:
    modules = [
        ".".join(path.relative_to(PROJECT).with_suffix("").parts)
        for path in sorted((PROJECT / "podidentity_core").rglob("*.py"))
        if "contracts" not in path.parts and path.name != "__init__.py"
    ]
    program = f"import sys; sys.path.insert(0, {str(PROJECT)!r})\n" + "".join(f"import {name}\n" for name in modules)

    bare = subprocess.run(
        [sys.executable, "-I", "-S", "-W", "error", "-c", program], capture_output=True, text=True, check=False
    )

    assert (bare.returncode, bare.stderr) == (0, "")


def _write(path: Path, source: str) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(source)
