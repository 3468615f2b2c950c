"""The two servers that the tier runs: etcd, and a kube-apiserver built once from its Go module.

`python -m tests.cluster.build` builds (if need be) and prints both paths. Needs no root.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.errors import MachineLacks

RECIPE = Path(__file__).parent / "apiserver"
CACHE = Path(__file__).parents[2] / ".cache"

# Without cgo no C compiler is needed. Only the linker sees these flags, so they cost no rebuild of packages.
BUILD_ENVIRONMENT = {"CGO_ENABLED": "0"}
LINK_FLAGS = "-s -w -X k8s.io/component-base/version.gitVersion={version}"


@dataclass(frozen=True, slots=True)
class Servers:
    """The programs of the control plane."""

    apiserver: Path
    etcd: Path


def find_servers() -> Servers:
    """Return both servers, building kube-apiserver when it is neither given nor cached. Raises MachineLacks."""
    if assets := os.environ.get("KUBEBUILDER_ASSETS"):
        given = Servers(Path(assets, "kube-apiserver"), Path(assets, "etcd"))
        for server in (given.apiserver, given.etcd):
            if not os.access(server, os.X_OK):
                raise MachineLacks(f"KUBEBUILDER_ASSETS names {assets}, which has no program {server.name}")
        return given
    etcd = shutil.which("etcd")
    if etcd is None:
        raise MachineLacks("no 'etcd' on PATH: apt-get install etcd-server, or set KUBEBUILDER_ASSETS")
    return Servers(cached_apiserver(), Path(etcd))


def cached_apiserver() -> Path:
    """Return the kube-apiserver of the recipe, built at most once for each version of the recipe."""
    target = CACHE / f"kube-apiserver-{recipe_key()}"
    if not target.exists():
        build_apiserver(target)
    return target


def recipe_key() -> str:
    """Return a name for what decides the binary: the recipe's files and the flags."""
    files = ("go.mod", "go.sum", "main.go")
    parts = [(RECIPE / name).read_bytes() for name in files] + [LINK_FLAGS.encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def kubernetes_version() -> str:
    """Return the version of Kubernetes that the recipe names, as `v1.34.4`."""
    found = re.search(r"k8s\.io/kubernetes (v\S+)", (RECIPE / "go.mod").read_text())
    if found is None:
        raise MachineLacks("tests/cluster/apiserver/go.mod names no version of k8s.io/kubernetes")
    return found[1]


def build_apiserver(target: Path) -> None:
    """Build kube-apiserver into *target*, and drop binaries of older recipes."""
    go = shutil.which("go")
    if go is None:
        raise MachineLacks(
            "no 'go' on PATH to build kube-apiserver: install Go 1.24 or later, or set KUBEBUILDER_ASSETS"
        )
    version = kubernetes_version()
    print(f"building kube-apiserver {version} from its Go module (once, 3 to 10 minutes)", file=sys.stderr, flush=True)
    started_s = time.monotonic()
    CACHE.mkdir(exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}")
    command = [go, "build", "-ldflags", LINK_FLAGS.format(version=version), "-o", str(partial), "."]
    built = subprocess.run(
        command, cwd=RECIPE, env={**os.environ, **BUILD_ENVIRONMENT}, check=False, capture_output=True, text=True
    )
    if built.returncode != 0:
        partial.unlink(missing_ok=True)
        last_lines = "\n".join(built.stderr.splitlines()[-5:])
        raise MachineLacks(f"kube-apiserver does not build with {go} (Go 1.24 or later is needed):\n{last_lines}")
    for old in CACHE.glob("kube-apiserver-????????????????"):
        old.unlink()
    partial.replace(target)  # only a whole binary ever has the final name
    print(f"built in {time.monotonic() - started_s:.0f} s", file=sys.stderr, flush=True)


def main() -> int:
    """Build what is missing and print the paths; exit code 1 with one line if the machine cannot."""
    try:
        servers = find_servers()
    except MachineLacks as error:
        print(f"tests.cluster.build: {error}", file=sys.stderr)
        return 1
    print(servers.apiserver, servers.etcd, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
