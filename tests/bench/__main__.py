"""`python -m tests.bench [PART ...]`: measure the hot paths, and print what they cost next to what they may cost."""

from __future__ import annotations

import os
import platform
import sys

from tests.bench import mic, nmi, planning
from tests.bench.figures import table

PARTS = {"planning": planning.run, "nmi": nmi.run, "mic": mic.run}


def main(names: list[str]) -> None:
    """Run the benchmarks called *names*, or all, and print a table of each. Nothing is asserted: machines are noisy."""
    if unknown := set(names) - set(PARTS):
        sys.exit(f"no benchmark is called {', '.join(sorted(unknown))}: choose of {', '.join(PARTS)}")
    for name in names or PARTS:
        print(f"{name}: Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
        print(table(PARTS[name]()), flush=True)
        print()


if __name__ == "__main__":
    main(sys.argv[1:])
