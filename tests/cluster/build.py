"""The programs that the tier does not start from this project: etcd, a kube-apiserver and Helm, built from Go modules.

`python -m tests.cluster.build` builds (if need be) and prints their paths. Needs no root.
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

CACHE = Path(__file__).parents[2] / ".cache"
BUILD_ENVIRONMENT = {"CGO_ENABLED": "0"}  # so no C compiler is needed


@dataclass(frozen=True, slots=True)
class Recipe:
    """A program and the Go module that says of which versions it is built.

    The module's name is that of its folder. Only the linker sees *link_flags*, so they cost no rebuild of packages.
    """

    program: str
    folder: Path
    package: str
    versioned_module: str
    link_flags: str
    duration: str

    def version(self) -> str:
        """Return the program's version, such as `v1.34.4`, as go.mod names it."""
        found = re.search(rf"{re.escape(self.versioned_module)} (v\S+)", (self.folder / "go.mod").read_text())
        if found is None:
            raise MachineLacks(f"{self.folder.name}/go.mod names no version of {self.versioned_module}")
        return found[1]

    def key(self) -> str:
        """Return a name for what decides the binary: the module's files and the flags."""
        parts = [path.read_bytes() for path in sorted(self.folder.iterdir())] + [self.link_flags.encode()]
        return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


APISERVER = Recipe(
    "kube-apiserver",
    Path(__file__).parent / "apiserver",
    ".",
    "k8s.io/kubernetes",
    "-s -w -X k8s.io/component-base/version.gitVersion={version}",
    "3 to 10 minutes",
)
_HELM = "helm.sh/helm/v3"
HELM = Recipe(
    "helm",
    Path(__file__).parent / "helm",
    f"{_HELM}/cmd/helm",
    _HELM,
    # Which Kubernetes it takes charts to be for when it renders them without one.
    f"-s -w -X {_HELM}/internal/version.version={{version}}"
    f" -X {_HELM}/pkg/chartutil.k8sVersionMajor=1 -X {_HELM}/pkg/chartutil.k8sVersionMinor=34",
    "1 to 3 minutes",
)


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
    return Servers(cached(APISERVER), Path(etcd))


def find_helm() -> Path:
    """Return Helm, building it when it is not cached. Raises MachineLacks."""
    return cached(HELM)


def cached(recipe: Recipe) -> Path:
    """Return the program of *recipe*, built at most once for each version of it."""
    target = CACHE / f"{recipe.program}-{recipe.key()}"
    if not target.exists():
        build(recipe, target)
    return target


def build(recipe: Recipe, target: Path) -> None:
    """Build the program into *target*, and drop binaries of older recipes."""
    go = shutil.which("go")
    if go is None:
        raise MachineLacks(f"no 'go' on PATH to build {recipe.program}: install Go 1.24 or later")
    version = recipe.version()
    print(
        f"building {recipe.program} {version} from its Go module (once, {recipe.duration})", file=sys.stderr, flush=True
    )
    started_s = time.monotonic()
    CACHE.mkdir(exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}")
    flags = recipe.link_flags.format(version=version)
    built = subprocess.run(
        [go, "build", "-mod=readonly", "-ldflags", flags, "-o", str(partial), recipe.package],
        cwd=recipe.folder,
        env={**os.environ, **BUILD_ENVIRONMENT},
        check=False,
        capture_output=True,
        text=True,
    )
    if built.returncode != 0:
        partial.unlink(missing_ok=True)
        last_lines = "\n".join(built.stderr.splitlines()[-5:])
        raise MachineLacks(f"{recipe.program} does not build with {go} (Go 1.24 or later is needed):\n{last_lines}")
    for old in CACHE.glob(f"{recipe.program}-????????????????"):
        old.unlink()
    partial.replace(target)  # only a whole binary ever has the final name
    print(f"built in {time.monotonic() - started_s:.0f} s", file=sys.stderr, flush=True)


def main() -> int:
    """Build what is missing and print the paths; exit code 1 with one line if the machine cannot."""
    try:
        servers = find_servers()
        helm = find_helm()
    except MachineLacks as error:
        print(f"tests.cluster.build: {error}", file=sys.stderr)
        return 1
    print(servers.apiserver, servers.etcd, helm, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
