"""`python -m tests.bench`: measure the hot paths, and print what they cost next to what they may cost."""

from __future__ import annotations

MODULES = ("planning", "nmi")
