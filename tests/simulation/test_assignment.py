"""MIC in a world of faults: whatever happens, no pod loses what it needs, and in the end everything is right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
RUNS = 150


@pytest.mark.parametrize("part", range(4))
def test_nothing_is_lost_and_nothing_is_left_behind(part: int) -> None:
    """Runs in a Python with a hash seed of its own, so that a failing run can be played again."""
    seeds = (str(part * RUNS), str((part + 1) * RUNS))
    runs = subprocess.run(
        [sys.executable, "-m", "tests.simulation", *seeds],
        cwd=PROJECT,
        env={**os.environ, "PYTHONHASHSEED": str(part)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    if runs.returncode or runs.stderr:
        pytest.fail(runs.stdout + runs.stderr, pytrace=False)
