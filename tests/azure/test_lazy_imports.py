"""What a program pays for before it needs Azure's SDK: nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("podidentity_azure.imds", ("azure", "aiohttp", "pydantic", "yaml")),
        ("podidentity_azure.hosts", ("azure", "aiohttp", "httpx")),
    ],
)
def test_importing_an_adapter_imports_no_more_than_it_needs_at_once(module: str, absent: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"

    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()

    assert not set(absent) & set(loaded)
