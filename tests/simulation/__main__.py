"""Play runs: `python -m tests.simulation SEED` shows all that happens in one, `... FIRST END` names those that fail.

The core walks sets, whose order hangs on Python's hash seed: a run is the same each time only with the same one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from tests.simulation.cluster_life import World, play


async def _show(seed: int) -> None:
    world = World(seed)
    logging.basicConfig(level=logging.INFO, format="      %(message)s", stream=sys.stdout)
    shown = 0
    try:
        await world.begin()
        for step in range(31):
            await (world.step() if step < 30 else world.converge())
            for line in world.trace[shown:]:
                print(f"{world.clock.monotonic_s():10.2f}  {line}")
            shown = len(world.trace)
    finally:
        await world.end()


def _failing(first: int, end: int) -> int:
    """Play the runs from *first* to before *end*; returns how many fail, and prints a line to replay each."""
    logging.disable(logging.CRITICAL)
    failed = 0
    for seed in range(first, end):
        try:
            asyncio.run(play(seed))
        except Exception as error:  # noqa: BLE001  # whatever it is, it is a failing seed
            failed += 1
            hash_seed = os.environ.get("PYTHONHASHSEED", "")
            print(f"{error!r}\nreplay: PYTHONHASHSEED={hash_seed} python -m tests.simulation {seed}")
    return failed


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.exit(min(_failing(int(sys.argv[1]), int(sys.argv[2])), 100))
    asyncio.run(_show(int(sys.argv[1])))
