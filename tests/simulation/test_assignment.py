"""MIC in a world of faults: whatever happens, no pod loses what it needs, and in the end everything is right."""

from __future__ import annotations

import pytest

from tests.simulation.cluster_life import play


@pytest.mark.parametrize("seed", range(150))
async def test_nothing_is_lost_and_nothing_is_left_behind(seed: int) -> None:
    try:
        await play(seed)
    except AssertionError as error:
        pytest.fail(f"{error}\nreplay: python -m tests.simulation {seed}", pytrace=False)
