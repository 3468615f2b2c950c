"""MIC in a world of faults: whatever happens, no pod loses what it needs, and in the end everything is right.

More lives, each in 0.1 s: `PYTHONHASHSEED=1 python -m tests.simulation 1000 9000`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
LIVES = 50


@pytest.mark.parametrize("part", range(4))
def test_nothing_is_lost_and_nothing_is_left_behind(part: int) -> None:
    """Runs in a Python with a hash seed of its own, so that a failing life can be played again."""
    seeds = (str(part * LIVES), str((part + 1) * LIVES))
    lives = subprocess.run(
        [sys.executable, "-m", "tests.simulation", *seeds],
        cwd=PROJECT,
        env={**os.environ, "PYTHONHASHSEED": str(part)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    if lives.returncode or lives.stderr:
        pytest.fail(lives.stdout + lives.stderr, pytrace=False)
