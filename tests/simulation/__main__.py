"""Replay one run with all that happened in it: `python -m tests.simulation SEED`."""

from __future__ import annotations

import asyncio
import logging
import sys

from tests.simulation.cluster_life import World


async def _replay(seed: int) -> None:
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


if __name__ == "__main__":
    asyncio.run(_replay(int(sys.argv[1])))
