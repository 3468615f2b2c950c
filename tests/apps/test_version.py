"""What the program says about itself."""

import re
from importlib.metadata import version

from apps.version import Build, installed

BUILD = Build("v1.2.3", "0a1b2c3d", "2026-03-04-05:06")


def test_the_version_line_is_the_originals() -> None:
    assert BUILD.line() == "MIC Version: v1.2.3 - NMI Version: v1.2.3 - Commit: 0a1b2c3d - Date: 2026-03-04-05:06"


def test_the_start_line_is_the_originals() -> None:
    assert BUILD.start_line("nmi") == "starting nmi process. Version: v1.2.3. Build date: 2026-03-04-05:06"


def test_the_user_agent_ends_with_the_operators_text() -> None:
    assert BUILD.user_agent("MIC") == "aad-pod-identity/MIC/v1.2.3/0a1b2c3d/2026-03-04-05:06"
    assert BUILD.user_agent("NMI", "me/1") == "aad-pod-identity/NMI/v1.2.3/0a1b2c3d/2026-03-04-05:06 me/1"


def test_the_installed_build_is_the_distributions() -> None:
    build = installed()

    assert build.version == f"v{version('podidentity')}"
    assert re.fullmatch(r"[0-9a-f]{8}|unknown", build.commit)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-\d\d:\d\d", build.date)
