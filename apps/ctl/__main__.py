"""`podidentity`: the demo and the sandbox."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

USAGE = """usage: podidentity COMMAND [OPTION...]

  demo       walk through the tutorial on an embedded cluster and Azure
  sandbox    run that cluster and Azure alone, for kubectl, MIC, NMI and Azure SDKs; --help lists its options
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    command = COMMANDS.get(words[0]) if words else None
    if command is None:
        what = f"unknown command {words[0]!r}" if words else "which command?"
        print(f"podidentity: {what}\n\n{USAGE}", end="", file=sys.stderr)
        return 2
    return command(words[1:])


def _demo(argv: Sequence[str]) -> int:
    from apps.ctl.demo import main as demo

    return demo(argv)


def _sandbox(argv: Sequence[str]) -> int:
    from apps.sandbox.cli import main as sandbox

    return sandbox(argv)


COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {"demo": _demo, "sandbox": _sandbox}

if __name__ == "__main__":
    sys.exit(main())
