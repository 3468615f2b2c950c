"""A pod's program that is the Azure CLI: `az login --identity`, then a token for the logged-in identity.

    az_client FOLDER managed|once [client-id|resource-id|object-id VALUE]

FOLDER is where az was built, ARM_URL in the environment is where `az login` lists the subscriptions. Prints
one JSON line, as python_client.py does: `seconds` that `az login` took, and the token's `claims` or what az said.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jwt

CLOUD = """
[Pods]
endpoint_resource_manager = {arm_url}
endpoint_management = https://management.core.windows.net/
endpoint_active_directory = https://login.microsoftonline.com
endpoint_active_directory_resource_id = https://management.core.windows.net/
"""


def main() -> None:
    """Log in and ask, with a configuration of its own that goes at the end."""
    built, _, *selector = sys.argv[1:]
    option = [f"--{selector[0]}", selector[1]] if selector else []
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(Path(built, "configuration"), folder, dirs_exist_ok=True)
        Path(folder, "clouds.config").write_text(CLOUD.format(arm_url=os.environ["ARM_URL"]))
        Path(folder, "config").write_text("[cloud]\nname = Pods\n[core]\ncollect_telemetry = no\n")
        az = _Az(str(Path(built, "bin", "python")), folder)
        began_s = time.monotonic()
        answer: dict[str, object] = {}
        try:
            az.run("login", "--identity", *option)
            took_s = time.monotonic() - began_s
            token = json.loads(az.run("account", "get-access-token"))["accessToken"]
            answer["claims"] = jwt.decode(token, options={"verify_signature": False})
        except RuntimeError as error:
            took_s = time.monotonic() - began_s
            answer["error"] = str(error)
    json.dump({**answer, "seconds": took_s}, sys.stdout)


class _Az:
    def __init__(self, python: str, configuration: str) -> None:
        self._python = python
        self._environment = {**os.environ, "AZURE_CONFIG_DIR": configuration}

    def run(self, *arguments: str) -> str:
        """Run one command and return its output. Raises RuntimeError with what it said."""
        command = [self._python, "-m", "azure.cli", *arguments, "--output", "json"]
        done = subprocess.run(command, env=self._environment, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        return done.stdout


if __name__ == "__main__":
    main()
