"""`nmi`: the daemon on each node that answers pods' token requests."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from apps.nmi import daemon, flags
from apps.running import run_daemon


def main(argv: Sequence[str] | None = None) -> int:
    """Run NMI; returns the exit code."""
    return run_daemon(flags.parse, daemon.run, argv)


if __name__ == "__main__":
    sys.exit(main())
