"""The clients with Azure's SDKs, each built once from pinned inputs: `python -m tests.cluster.sdks.build`.

    python   azure-identity, which the project's own environment has: nothing to build
    node     @azure/identity, and a Node.js that is new enough for it, by package-lock.json
    go       azidentity by go.sum
    java     azure-identity by pom.xml
    az       azure-cli by a requirements file with hashes, in an environment of its own

PODIDENTITY_SDKS=python,node narrows the choice; without it all are built, and one that cannot be is an error.
A built client needs no network. Needs no root.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.errors import MachineLacks

RECIPES = Path(__file__).parent
CACHE = Path(__file__).parents[3] / ".cache"
CHOICE = "PODIDENTITY_SDKS"
BUILT = ".built"

MAVEN_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a client is built. *tools* are programs and Debian's packages for them; *steps* run in its folder here."""

    inputs: Sequence[str]
    tools: Mapping[str, str]
    steps: Callable[[Path], Sequence[Sequence[str | Path]]]
    run: Callable[[Path], Sequence[str | Path]]


def _node_steps(target: Path) -> Sequence[Sequence[str | Path]]:
    install = ("npm", "ci", "--prefix", target, "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
    return (("cp", "client.mjs", "package.json", "package-lock.json", target), install)


def _node_of(target: Path) -> Path:
    """Return the Node.js that package-lock.json brings: that of a distribution may be too old for the SDK."""
    machine = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return target / "node_modules" / f"node-linux-{machine}" / "bin" / "node"


def _go_steps(target: Path) -> Sequence[Sequence[str | Path]]:
    return (("go", "build", "-mod=readonly", "-ldflags", "-s -w", "-o", target / "client", "."),)


def _java_steps(target: Path) -> Sequence[Sequence[str | Path]]:
    fetch = ("mvn", "--quiet", "--batch-mode", "--strict-checksums", MAVEN_COPY, f"-DoutputDirectory={target / 'lib'}")
    return (fetch, ("javac", "-classpath", target / "lib" / "*", "-d", target / "classes", "Client.java"))


def _az_steps(target: Path) -> Sequence[Sequence[str | Path]]:
    python = target / "bin" / "python"
    install = ("--python", python, "install", "--no-deps", "--no-compile", "--require-hashes", "-r", "requirements.txt")
    return (
        (sys.executable, "-m", "venv", "--without-pip", target),
        (*PIP, *install),
        (python, "-m", "compileall", "-q", *_packages(target, "azure/cli/core", "msal", "requests", "knack")),
        # Once, as its first run asks for its newest version.
        ("env", f"AZURE_CONFIG_DIR={target / 'configuration'}", python, "-m", "azure.cli", "version"),
    )


def _packages(target: Path, *names: str) -> list[Path]:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return [target / "lib" / version / "site-packages" / name for name in names]


PROGRAMS: Mapping[str, Recipe] = {
    "node": Recipe(
        ("client.mjs", "package.json", "package-lock.json"),
        {"npm": "npm"},
        _node_steps,
        lambda target: (_node_of(target), target / "client.mjs"),
    ),
    "go": Recipe(
        ("main.go", "go.mod", "go.sum"),
        {"go": "golang-go"},
        _go_steps,
        lambda target: (target / "client",),
    ),
    "java": Recipe(
        ("Client.java", "pom.xml"),
        {"java": "default-jre-headless", "javac": "default-jdk-headless", "mvn": "maven"},
        _java_steps,
        lambda target: (
            "java",
            "-XX:TieredStopAtLevel=1",
            "-classpath",
            f"{target / 'classes'}:{target / 'lib'}/*",
            "Client",
        ),
    ),
    "az": Recipe(
        ("requirements.txt",),
        {},
        _az_steps,
        lambda target: (sys.executable, RECIPES / "az_client.py", target),
    ),
}
NAMES = ("python", *PROGRAMS)


def chosen() -> tuple[str, ...]:
    """Return the names of the clients that are to be built and tested. Raises MachineLacks for an unknown one."""
    given = os.environ.get(CHOICE)
    names = tuple(given.split(",")) if given else NAMES
    if unknown := [name for name in names if name not in NAMES]:
        raise MachineLacks(f"{CHOICE} names {', '.join(unknown)}: there are {', '.join(NAMES)}")
    return names


def command(name: str) -> list[str]:
    """Return the command line of a client, to which its arguments are added. Raises MachineLacks if it is not built."""
    if name == "python":
        return [sys.executable, str(RECIPES / "python_client.py")]
    target = folder(name)
    if not (target / BUILT).exists():
        raise MachineLacks(f"the {name} client is not built: run `.venv/bin/python -m tests.cluster.sdks.build`")
    return [str(part) for part in PROGRAMS[name].run(target)]


def folder(name: str) -> Path:
    """Return where a client is built: another folder for each version of its inputs, of Python and of its steps."""
    recipe = PROGRAMS[name]
    parts = [(RECIPES / name / file).read_bytes() for file in recipe.inputs]
    parts += [str(recipe.steps(Path("target"))).encode(), sys.version.encode()]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    return CACHE / f"sdk-{name}-{key}"


def build(name: str) -> None:
    """Build a client if it is not built yet, and drop what was built of older inputs. Raises MachineLacks."""
    target = folder(name)
    if (target / BUILT).exists():
        return
    for tool, package in PROGRAMS[name].tools.items():
        if shutil.which(tool) is None:
            raise MachineLacks(_without(name, f"no '{tool}' on PATH: apt-get install {package}"))
    started_s = time.monotonic()
    for old in CACHE.glob(f"sdk-{name}-*"):
        shutil.rmtree(old)
    target.mkdir(parents=True)
    for step in PROGRAMS[name].steps(target):
        _run(name, step)
    (target / BUILT).touch()  # last: what is half built is built again
    print(f"built the {name} client in {time.monotonic() - started_s:.0f} s", file=sys.stderr, flush=True)


def _run(name: str, step: Sequence[str | Path]) -> None:
    argv = [str(part) for part in step]
    environment = {**os.environ, "CGO_ENABLED": "0"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # az without its bytecode takes seconds to start
    done = subprocess.run(
        argv, cwd=RECIPES / name, env=environment, check=False, text=True, capture_output=True, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-8:])
        raise MachineLacks(_without(name, f"{' '.join(argv[:3])} ... ended with exit code {done.returncode}:\n{said}"))


def _without(name: str, problem: str) -> str:
    others = ",".join(other for other in NAMES if other != name)
    return f"the {name} client cannot be built: {problem}\n(to do without it: {CHOICE}={others})"


def build_all(names: Iterable[str]) -> list[str]:
    """Build clients side by side, and return what went wrong."""

    def attempt(name: str) -> str | None:
        try:
            build(name)
        except MachineLacks as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:
        return [problem for problem in pool.map(attempt, names) if problem is not None]


def main() -> int:
    """Build the chosen clients; exit code 1 and what is missing if the machine cannot."""
    try:
        names = chosen()
    except MachineLacks as error:
        problems = [str(error)]
    else:
        problems = build_all(name for name in names if name in PROGRAMS)
    for problem in problems:
        print(f"tests.cluster.sdks.build: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
