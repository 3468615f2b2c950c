"""docs/embedding.md: its programs are short, are the ones that are shown, and run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from podidentity_core.testing import builders as build

PROJECT = Path(__file__).parents[2]
EXAMPLES = PROJECT / "docs/examples"
NAMES = ("controller.py", "test_controller.py")
LONGEST = 40

INVENTORY = {
    "nodes": [
        {
            "name": "node-1",
            "providerID": f"azure://{build.vm('node-1').resource_id}",
        }
    ],
    "teams": [{"name": "shop", "resourceID": build.resource("shop").text, "clientID": build.client_id("shop")}],
    "pods": [{"team": "shop", "name": "web-0", "uid": "1", "node": "node-1"}],
}


@pytest.mark.parametrize("name", NAMES)
def test_the_page_shows_the_program_as_it_is(name: str) -> None:
    page = (PROJECT / "docs/embedding.md").read_text()
    program = (EXAMPLES / name).read_text()

    assert f"```python\n{program}```" in page
    assert len(program.splitlines()) <= LONGEST


def test_the_controller_runs_in_a_bare_python() -> None:
    program = str(EXAMPLES / NAMES[0])
    start = f"import sys, runpy; sys.path.insert(0, {str(PROJECT)!r}); runpy.run_path({program!r}, run_name='__main__')"
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", start],
        input=json.dumps(INVENTORY),
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert (ran.returncode, ran.stderr, ran.stdout) == (0, "", "node-1 needs shop\n")


def test_its_test_passes() -> None:
    options = ("-q", "-p", "no:cacheprovider", "--rootdir", str(EXAMPLES), "-o", "asyncio_mode=auto")
    argv = [sys.executable, "-m", "pytest", *options, "-o", "addopts=--import-mode=prepend", str(EXAMPLES / NAMES[1])]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=60)

    assert ran.returncode == 0, ran.stdout
    assert "3 passed" in ran.stdout
