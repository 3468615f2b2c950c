"""NMI that takes a metadata service for silent after a second, so that tests of silence are short: a program."""

from __future__ import annotations

import sys
from functools import partial

from apps.nmi import __main__, bootstrap
from podidentity_azure.imds import ImdsTokens

ANSWER_LIMIT_S = 1.0

if __name__ == "__main__":
    bootstrap.ImdsTokens = partial(ImdsTokens, answer_limit_s=ANSWER_LIMIT_S)  # type: ignore[attr-defined,assignment]
    sys.exit(__main__.main())
