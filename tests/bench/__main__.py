"""`python -m tests.bench`: measure the hot paths, and print what they cost next to what they may cost."""

from __future__ import annotations

import os
import platform

from tests.bench import mic, nmi, planning
from tests.bench.figures import table


def main() -> None:
    """Run every benchmark and print one table. Nothing is asserted: machines are noisy."""
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print(table([*planning.run(), *nmi.run(), *mic.run()]), flush=True)


if __name__ == "__main__":
    main()
