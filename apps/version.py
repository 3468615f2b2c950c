"""What `--version`, the first log line and the user agents say about the program."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import Distribution, distribution
from pathlib import Path

_UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Build:
    """The installed distribution: *version* as `v1.2.3`, short *commit*, *date* as `YYYY-MM-DD-HH:MM` in UTC."""

    version: str
    commit: str
    date: str

    def line(self) -> str:
        """Return what `--version` prints. Source: aad-pod-identity version/version.go."""
        return f"MIC Version: {self.version} - NMI Version: {self.version} - Commit: {self.commit} - Date: {self.date}"

    def start_line(self, program: str) -> str:
        """Return the first log line of *program*, `mic` or `nmi`."""
        return f"starting {program} process. Version: {self.version}. Build date: {self.date}"

    def user_agent(self, component: str, custom: str = "") -> str:
        """Return the user agent of *component*, `MIC` or `NMI`, with what the operator adds."""
        own = f"aad-pod-identity/{component}/{self.version}/{self.commit}/{self.date}"
        return f"{own} {custom}".rstrip()


def installed() -> Build:
    """Read the metadata of the installed distribution.

    The commit is known after an installation from a Git URL (PEP 610); the date is that of the installation, which
    in an image is the build.
    """
    found = distribution("podidentity")
    return Build(f"v{found.version}", _commit(found), _date(found))


def _commit(found: Distribution) -> str:
    origin = json.loads(found.read_text("direct_url.json") or "{}")
    return str(origin.get("vcs_info", {}).get("commit_id", _UNKNOWN))[:8]


def _date(found: Distribution) -> str:
    for file in found.files or ():
        if file.name == "METADATA":
            made_s = Path(str(file.locate())).stat().st_mtime
            return datetime.fromtimestamp(made_s, UTC).strftime("%Y-%m-%d-%H:%M")
    return _UNKNOWN
