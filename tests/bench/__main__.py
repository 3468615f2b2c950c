"""`python -m tests.bench`: measure the hot paths, and print what they cost next to what they may cost."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import sys
import time

from tests.bench.figures import Figure, table

MODULES = ("planning", "nmi")
