"""Play lives: `python -m tests.simulation SEED` shows all that happens in one, `... FIRST END` names those that fail.

The core walks sets, whose order hangs on Python's hash seed: a life is the same each time only with the same one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections import Counter

from tests.simulation.cluster_life import STEPS, Life, loop_for, play
from tests.simulation.world import World


async def _show(seed: int) -> None:
    life = Life(seed)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger().handlers[0].setFormatter(_Timed(life.world))
    try:
        await life.begin()
        for _ in range(STEPS):
            await life.step()
        await life.converge()
    finally:
        await life.end()


class _Timed(logging.Formatter):
    """Each line with the time in the world that it is about; `==` marks what the world says, the rest says MIC."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def format(self, record: logging.LogRecord) -> str:
        return f"{self._world.now_s:9.2f} {super().format(record)}"


def _failing(first: int, end: int) -> int:
    """Play the lives from *first* to before *end*; returns how many fail, and prints a line to replay each."""
    logging.disable(logging.CRITICAL)
    failed = 0
    seen: Counter[str] = Counter()
    for seed in range(first, end):
        try:
            seen += play(seed).seen()
        except Exception as error:  # noqa: BLE001  # whatever it is, it is a failing seed
            failed += 1
            hash_seed = os.environ.get("PYTHONHASHSEED", "")
            print(f"{error!r}\nreplay: PYTHONHASHSEED={hash_seed} python -m tests.simulation {seed}", flush=True)
    print(f"{end - first} lives, {failed} failed, in them: {dict(seen)}")
    return failed


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.exit(min(_failing(int(sys.argv[1]), int(sys.argv[2])), 100))
    with asyncio.Runner(loop_factory=lambda: loop_for(int(sys.argv[1]))) as runner:
        runner.run(_show(int(sys.argv[1])))
