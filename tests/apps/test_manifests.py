"""What deploy/ and tutorial/ promise: the CRDs' shape, the least rights, flags that exist, scripts safe to rerun."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from apps.mic import flags as mic_flags
from apps.nmi import flags as nmi_flags
from podidentity_azure import cloud

PROJECT = Path(__file__).parents[2]
DEPLOY = PROJECT / "deploy"
CHART = DEPLOY / "chart"
CRDS = CHART / "crds"
INFRA = DEPLOY / "infra"
TUTORIAL = PROJECT / "tutorial"
VERSION = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]

Object = dict[str, Any]


def name_of(path: Path) -> str:
    return str(path.relative_to(DEPLOY))


def documents(path: Path) -> list[Object]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def only(path: Path, kind: str, name: str | None = None) -> Object:
    found = [d for d in documents(path) if d["kind"] == kind and name in (None, d["metadata"]["name"])]
    assert len(found) == 1, f"{path.name} has {len(found)} of {kind} {name}"
    return found[0]


def container(path: Path, kind: str) -> Object:
    (found,) = only(path, kind)["spec"]["template"]["spec"]["containers"]
    return dict(found)


MANIFESTS = sorted({*DEPLOY.rglob("*.yaml")} - {*CHART.rglob("*.yaml")} | {*CRDS.glob("*.yaml")})


@pytest.mark.parametrize("path", MANIFESTS, ids=name_of)
def test_every_document_names_an_object(path: Path) -> None:
    for document in documents(path):
        assert document["apiVersion"]
        assert document["kind"]
        assert document["metadata"]["name"]


# --- CRDs: the table of the original's fields ------------------------------------------------------------------

TEXT = {"type": "string"}
INTEGER = {"type": "integer"}
INT32 = {"type": "integer", "format": "int32"}
NULLABLE_INT32 = {**INT32, "nullable": True}
NULLABLE_TEXTS = {"type": "array", "items": TEXT, "nullable": True}
METADATA = {"type": "object"}
REPLICAS = {"availableReplicas": INT32}


def an_object(properties: Object) -> Object:
    return {"type": "object", "properties": properties}


def resource(spec: Object, status: Object) -> Object:
    """Return the schema of a kind; both halves have an empty metadata, which the original writes and nobody reads."""
    return an_object(
        {
            "apiVersion": TEXT,
            "kind": TEXT,
            "metadata": METADATA,
            "spec": an_object({"metadata": METADATA, **spec}),
            "status": an_object({"metadata": METADATA, **status}),
        }
    )


IDENTITY = resource(
    {
        "type": INTEGER,
        "resourceID": TEXT,
        "clientID": TEXT,
        "clientPassword": an_object({"name": TEXT, "namespace": TEXT}),
        "tenantID": TEXT,
        "auxiliaryTenantIDs": NULLABLE_TEXTS,
        "adResourceID": TEXT,
        "adEndpoint": TEXT,
        "replicas": NULLABLE_INT32,
    },
    REPLICAS,
)
BINDING = resource({"azureIdentity": TEXT, "selector": TEXT, "weight": INTEGER}, REPLICAS)
EMBEDDED = {"x-kubernetes-embedded-resource": True}
ASSIGNMENT = resource(
    {
        "azureIdentityRef": {**IDENTITY, **EMBEDDED},
        "azureBindingRef": {**BINDING, **EMBEDDED},
        "pod": TEXT,
        "podNamespace": TEXT,
        "nodename": TEXT,
        "replicas": NULLABLE_INT32,
    },
    {"status": TEXT, **REPLICAS},
)
EXCEPTION = resource({"podLabels": {"type": "object", "additionalProperties": TEXT}}, {"status": TEXT})

AGE = ("Age", ".metadata.creationTimestamp", "date")
KINDS: dict[str, tuple[str, str, Object, Sequence[tuple[str, str, str]]]] = {
    "AzureIdentity": (
        "azureidentities",
        "azureidentity",
        IDENTITY,
        [("Type", ".spec.type", "string"), ("ClientID", ".spec.clientID", "string"), AGE],
    ),
    "AzureIdentityBinding": (
        "azureidentitybindings",
        "azureidentitybinding",
        BINDING,
        [("AzureIdentity", ".spec.azureIdentity", "string"), ("Selector", ".spec.selector", "string"), AGE],
    ),
    "AzureAssignedIdentity": ("azureassignedidentities", "azureassignedidentity", ASSIGNMENT, []),
    "AzurePodIdentityException": ("azurepodidentityexceptions", "azurepodidentityexception", EXCEPTION, []),
}


def without_descriptions(schema: Any) -> Any:
    """Drop the descriptions; a property of that name would be a mapping and stay."""
    if not isinstance(schema, dict):
        return schema
    return {
        key: without_descriptions(value)
        for key, value in schema.items()
        if not (key == "description" and isinstance(value, str))
    }


def crd(kind: str) -> Object:
    (found,) = (d for path in CRDS.glob("*.yaml") for d in documents(path) if d["spec"]["names"]["kind"] == kind)
    return found


def test_there_is_one_file_for_each_kind() -> None:
    assert {path.stem for path in CRDS.iterdir()} == {kind.lower() for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_crd_is_named_served_and_annotated_as_the_originals(kind: str) -> None:
    plural, singular, _, _ = KINDS[kind]

    found = crd(kind)

    assert found["metadata"] == {
        "name": f"{plural}.aadpodidentity.k8s.io",
        "annotations": {
            "api-approved.kubernetes.io": "unapproved",
            "controller-gen.kubebuilder.io/version": "v0.5.0",
        },
        "labels": {
            "app.kubernetes.io/name": "aad-pod-identity",
            "app.kubernetes.io/instance": "aad-pod-identity",
            "app.kubernetes.io/managed-by": "Helm",
            "helm.sh/chart": "aad-pod-identity",
        },
    }
    names = {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": singular}
    spec = {key: value for key, value in found["spec"].items() if key != "versions"}
    assert spec == {"group": "aadpodidentity.k8s.io", "scope": "Namespaced", "names": names}


@pytest.mark.parametrize("kind", KINDS)
def test_a_crd_has_the_originals_columns_and_no_status_subresource(kind: str) -> None:
    _, _, _, columns = KINDS[kind]

    (version,) = crd(kind)["spec"]["versions"]

    assert (version["name"], version["served"], version["storage"]) == ("v1", True, True)
    shown = [(c["name"], c["jsonPath"], c["type"]) for c in version.get("additionalPrinterColumns", [])]
    assert shown == list(columns)
    assert version.get("subresources") == ({} if columns else None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_crds_schema_is_the_table_and_requires_nothing(kind: str) -> None:
    _, _, schema, _ = KINDS[kind]

    (version,) = crd(kind)["spec"]["versions"]

    assert without_descriptions(version["schema"]["openAPIV3Schema"]) == schema


# --- rights ----------------------------------------------------------------------------------------------------

READ = {"get", "list", "watch"}
CUSTOM = "aadpodidentity.k8s.io"
ANY: tuple[str, ...] = ()
LOCK = ("aad-pod-identity-mic",)
NOTE = ("aad-pod-identity-config",)

# (kind, name): (API group, resource, the only names it goes for): verbs
RIGHTS: dict[tuple[str, str], dict[tuple[str, str, tuple[str, ...]], set[str]]] = {
    ("ClusterRole", "aad-pod-id-mic-role"): {
        ("", "pods", ANY): READ,
        ("", "nodes", ANY): READ,
        (CUSTOM, "azureidentities", ANY): READ,
        (CUSTOM, "azureidentitybindings", ANY): READ,
        (CUSTOM, "azureassignedidentities", ANY): READ | {"create", "update", "patch", "delete"},
        ("", "events", ANY): {"create", "patch"},
    },
    ("Role", "aad-pod-id-mic-role"): {
        ("coordination.k8s.io", "leases", ANY): {"create"},
        ("coordination.k8s.io", "leases", LOCK): {"get", "update"},
        ("", "endpoints", LOCK): {"get"},
        ("", "configmaps", ANY): {"create"},
        ("", "configmaps", NOTE): {"get", "update"},
    },
    ("ClusterRole", "aad-pod-id-nmi-role"): {
        ("", "pods", ANY): READ,
        (CUSTOM, "azurepodidentityexceptions", ANY): READ,
        (CUSTOM, "azureassignedidentities", ANY): READ,
        ("", "secrets", ANY): {"get"},
    },
}
MANAGED_RIGHTS = {
    ("ClusterRole", "aad-pod-id-nmi-role"): {
        ("", "pods", ANY): READ,
        (CUSTOM, "azurepodidentityexceptions", ANY): READ,
        (CUSTOM, "azureidentities", ANY): READ,
        (CUSTOM, "azureidentitybindings", ANY): READ,
        ("", "secrets", ANY): {"get"},
    },
}
ROLES = [
    (INFRA / name, role, granted)
    for name, table in (
        ("deployment-rbac.yaml", RIGHTS),
        ("noazurejson/deployment-rbac.yaml", RIGHTS),
        ("managed-mode-deployment.yaml", MANAGED_RIGHTS),
    )
    for role, granted in table.items()
]
WITH_ROLES = list(dict.fromkeys(path for path, _, _ in ROLES))


def rights(role: Object) -> Iterator[tuple[tuple[str, str, tuple[str, ...]], set[str]]]:
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for name in rule["resources"]:
                yield (group, name, tuple(rule.get("resourceNames", ANY))), set(rule["verbs"])


@pytest.mark.parametrize("path", WITH_ROLES, ids=name_of)
def test_there_are_no_other_roles(path: Path) -> None:
    roles = {(d["kind"], d["metadata"]["name"]) for d in documents(path) if "rules" in d}

    assert roles == {role for other, role, _ in ROLES if other == path}


@pytest.mark.parametrize(
    ("path", "role", "granted"), ROLES, ids=[f"{name_of(path)}-{'-'.join(r)}" for path, r, _ in ROLES]
)
def test_a_role_allows_what_the_table_says_and_nothing_else(
    path: Path, role: tuple[str, str], granted: dict[tuple[str, str, tuple[str, ...]], set[str]]
) -> None:
    found = list(rights(only(path, *role)))

    assert len(found) == len(dict(found)), "two rules for the same resource"
    assert dict(found) == granted


@pytest.mark.parametrize("path", WITH_ROLES, ids=name_of)
def test_no_role_has_a_wildcard_or_anything_but_verbs_of_the_api(path: Path) -> None:
    verbs = {"get", "list", "watch", "create", "update", "patch", "delete"}
    for document in documents(path):
        for (group, name, _), allowed in rights(document) if "rules" in document else ():
            assert "*" not in (group, name)
            assert allowed <= verbs


@pytest.mark.parametrize(
    ("path", "program"),
    [
        (path, program)
        for path in WITH_ROLES
        for program in ("mic", "nmi")
        if any(program in r[1] for p, r, _ in ROLES if p == path)
    ],
    ids=lambda value: name_of(value) if isinstance(value, Path) else value,
)
def test_the_programs_accounts_hold_the_roles(path: Path, program: str) -> None:
    account = f"aad-pod-id-{program}-service-account"
    bindings = [d for d in documents(path) if d["kind"].endswith("Binding") and program in d["metadata"]["name"]]
    workload = only(path, {"mic": "Deployment", "nmi": "DaemonSet"}[program])

    held = {(b["roleRef"]["kind"], b["roleRef"]["name"]) for b in bindings}

    assert held == {role for other, role, _ in ROLES if other == path and program in role[1]}
    namespace = workload["metadata"]["namespace"]
    for binding in bindings:
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": namespace}]
    assert workload["spec"]["template"]["spec"]["serviceAccountName"] == account


# --- MIC, NMI and the demo -------------------------------------------------------------------------------------

INFRAS = [INFRA / "deployment-rbac.yaml", INFRA / "deployment.yaml"]
FROM_SECRET = [INFRA / "noazurejson" / path.name for path in INFRAS]
MANAGED = INFRA / "managed-mode-deployment.yaml"

WORKLOADS = [
    *((path, kind) for path in (*INFRAS, *FROM_SECRET) for kind in ("Deployment", "DaemonSet")),
    (MANAGED, "DaemonSet"),
]
FOR_PODS = [*WORKLOADS, (DEPLOY / "demo" / "deployment.yaml", "Deployment")]


def by_file(*paths: Path) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=name_of)


def test_every_manifest_is_looked_at() -> None:
    looked_at = {path for path, _ in WORKLOADS} | {INFRA / "mic-exception.yaml"}

    assert set(INFRA.rglob("*.yaml")) == looked_at


@by_file(*INFRAS, *FROM_SECRET)
def test_mic_understands_its_arguments_and_its_ports_and_probe_agree_with_them(path: Path) -> None:
    mic = container(path, "Deployment")

    config = mic_flags.parse(mic["args"], {"MIC_POD_NAMESPACE": "default"})

    assert {p["name"]: p["containerPort"] for p in mic["ports"]} == {
        "probes": config.probe_port,
        "metrics": config.metrics_port,
    }
    assert mic["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "probes"}
    assert (config.lease_name, config.config_map_name) == (*LOCK, *NOTE)
    lock = only(INFRA / "deployment-rbac.yaml", "Role")["metadata"]["namespace"]
    assert lock == config.lease_namespace == only(path, "Deployment")["metadata"]["namespace"]


@by_file(*INFRAS)
def test_mic_reads_the_nodes_azure_json_as_its_owner(path: Path) -> None:
    mic = container(path, "Deployment")

    config = mic_flags.parse(mic["args"], {"MIC_POD_NAMESPACE": "default"})

    assert config.cloudconfig == mic["volumeMounts"][0]["mountPath"] == "/etc/kubernetes/azure.json"
    assert mic["securityContext"]["runAsUser"] == 0


@by_file(*FROM_SECRET)
def test_without_azure_json_mic_takes_all_that_it_knows_from_a_secret_that_no_file_holds(path: Path) -> None:
    mic = container(path, "Deployment")
    config = mic_flags.parse(mic["args"], {"MIC_POD_NAMESPACE": "default"})
    references = {v["name"]: v["valueFrom"]["secretKeyRef"] for v in mic["env"] if "secretKeyRef" in v["valueFrom"]}

    assert config.cloudconfig == ""
    assert "volumeMounts" not in mic
    assert mic["securityContext"]["runAsNonRoot"] is True
    assert references.keys() == {*cloud._VARIABLES.values(), "USE_MSI"}
    assert {reference["name"] for reference in references.values()} == {"aadpodidentity-admin-secret"}
    assert [name for name, reference in references.items() if not reference["optional"]] == ["CLOUD"]
    assert [d for d in documents(path) if d["kind"] == "Secret"] == []


@by_file(*INFRAS, *FROM_SECRET, MANAGED)
def test_nmi_understands_its_arguments_and_its_probe_agrees_with_them(path: Path) -> None:
    nmi = container(path, "DaemonSet")
    arguments = [argument.replace("$(NODE_NAME)", "node-0") for argument in nmi["args"]]

    config = nmi_flags.parse(arguments, {})

    assert config.node == "node-0"
    assert config.managed == config.namespaced == (path == MANAGED)
    assert "NODE_NAME" in {variable["name"] for variable in nmi["env"]}
    assert nmi["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": config.probe_port}
    assert nmi["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": config.probe_port}
    assert config.kubelet_config in {mount["mountPath"] for mount in nmi["volumeMounts"]}


@pytest.mark.parametrize(("path", "kind"), WORKLOADS)
def test_every_flag_has_an_effect_or_is_one_of_the_originals_manifests(path: Path, kind: str) -> None:
    """Their command lines are the original's, which has two flags that mean nothing (any more)."""
    table = {"Deployment": mic_flags.FLAGS, "DaemonSet": nmi_flags.FLAGS}[kind]
    known = {flag.name: flag for flag in table}

    for argument in container(path, kind)["args"]:
        name = argument.removeprefix("--").partition("=")[0]
        assert known[name].effect or name == "logtostderr"


SELECTORS = [
    (INFRAS[0], {"component": "mic", "app": "mic"}),
    (INFRAS[1], {"component": "mic"}),
    *((path, {"component": "mic"}) for path in FROM_SECRET),
]


@pytest.mark.parametrize(("path", "selector"), SELECTORS)
def test_mics_selector_is_that_of_the_originals_file(path: Path, selector: Object) -> None:
    """A Deployment's selector cannot be changed, and the original's files differ in it."""
    mic = only(path, "Deployment")["spec"]

    assert mic["selector"] == {"matchLabels": selector}
    assert selector.items() <= mic["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize("paths", [INFRAS, FROM_SECRET], ids=["azure.json", "noazurejson"])
def test_a_cluster_without_rbac_gets_the_same_but_for_roles_and_the_selector(paths: Sequence[Path]) -> None:
    with_rbac, without = (
        {(d["kind"], d["metadata"]["name"]): d for d in documents(path) if "ole" not in d["kind"]} for path in paths
    )
    for found in (with_rbac, without):
        del found["Deployment", "mic"]["spec"]["selector"]

    assert with_rbac == without
    assert len(without) == len(documents(paths[1]))


def test_nmi_in_managed_mode_is_alone_in_kube_system() -> None:
    assert {(d["kind"], d["metadata"].get("namespace")) for d in documents(MANAGED)} == {
        ("ServiceAccount", "kube-system"),
        ("ClusterRole", None),
        ("ClusterRoleBinding", None),
        ("DaemonSet", "kube-system"),
    }


@pytest.mark.parametrize(("path", "kind"), FOR_PODS)
def test_a_containers_rights_are_no_more_than_it_needs(path: Path, kind: str) -> None:
    pod = only(path, kind)["spec"]["template"]["spec"]
    context = container(path, kind)["securityContext"]

    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"]["drop"] == ["ALL"]
    wanted = ["NET_ADMIN", "NET_RAW"] if kind == "DaemonSet" else []
    assert context["capabilities"].get("add", []) == wanted
    assert pod.get("hostNetwork", False) == (kind == "DaemonSet")


@pytest.mark.parametrize(("path", "kind"), FOR_PODS)
def test_the_dockerfile_makes_the_image_that_a_manifest_names(path: Path, kind: str) -> None:
    targets = re.findall(r"^FROM \S+ AS (\w+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)

    image = container(path, kind)["image"]

    assert image in {f"podidentity-{target}:{VERSION}" for target in targets}
    assert image.split(":")[0].removeprefix("podidentity-") == container(path, kind)["name"]


def test_the_dockerfile_copies_only_what_is_there_and_what_its_ignore_file_lets_through() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()

    sources = {source for line in copied for source in line.split()}

    assert sources == {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert [source for source in sorted(sources) if not (PROJECT / source).exists()] == []


def test_the_demos_binding_leads_from_its_pod_to_its_identity() -> None:
    demo = DEPLOY / "demo"
    (pod,), (binding,), (identity,) = (
        documents(demo / f"{name}.yaml") for name in ("deployment", "aadpodidentitybinding", "aadpodidentity")
    )

    assert pod["spec"]["template"]["metadata"]["labels"]["aadpodidbinding"] == binding["spec"]["selector"]
    assert binding["spec"]["azureIdentity"] == identity["metadata"]["name"]
    assert pod["spec"]["selector"]["matchLabels"].items() <= pod["spec"]["template"]["metadata"]["labels"].items()


def test_the_demo_program_understands_the_arguments_of_its_pod() -> None:
    arguments = container(DEPLOY / "demo" / "deployment.yaml", "Deployment")["args"]
    command = [sys.executable, "-m", "apps.demo", *arguments, "--help"]

    done = subprocess.run(command, cwd=PROJECT, check=False, capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stderr) == (0, "")
    assert {argument.partition("=")[0] for argument in arguments} <= set(re.findall(r"--[a-z-]+", done.stdout))


def test_mics_pods_are_excepted() -> None:
    mic = only(INFRA / "deployment-rbac.yaml", "Deployment")
    exception = only(INFRA / "mic-exception.yaml", "AzurePodIdentityException", "mic-exception")

    assert exception["metadata"]["namespace"] == mic["metadata"]["namespace"]
    assert exception["spec"]["podLabels"] == mic["spec"]["template"]["metadata"]["labels"]


# --- the tutorial's scripts ------------------------------------------------------------------------------------

SCRIPTS = sorted(TUTORIAL.glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_bash_and_stops_at_the_first_error(script: Path) -> None:
    checked = subprocess.run(["bash", "-n", script], check=False, capture_output=True, text=True)

    assert (checked.returncode, checked.stderr) == (0, "")
    if script.name == "env.sh":  # sourced
        return
    assert script.stat().st_mode & stat.S_IXUSR
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in script.read_text()


def test_the_tutorial_uses_the_programs_version() -> None:
    assert f'VERSION="${{VERSION:-{VERSION}}}"' in (TUTORIAL / "env.sh").read_text()


# An Azure that remembers what was made, refuses to make it twice, and writes down every command.
FAKE_AZ = """
import json, pathlib, sys

given = sys.argv[1:]
options = {k: v for k, v in zip(given, given[1:]) if k.startswith("--")}
command = " ".join(given[: next((i for i, a in enumerate(given) if a.startswith("--")), len(given))])
here = pathlib.Path(__file__).parent
with (here / "az.log").open("a") as log:
    print(json.dumps(given), file=log)
made = json.loads((here / "made.json").read_text())
noun, _, verb = command.rpartition(" ")
key = f"{noun} {options.get('--name') or options.get('--image')}"
if verb in ("create", "build") and noun in ("group", "acr", "aks"):
    if key in made:
        sys.exit(f"{key} exists")
    made[key] = options.get("--tags", "")
    (here / "made.json").write_text(json.dumps(made))
elif command == "group exists":
    print(str(key in made).lower())
elif command == "acr repository show":
    sys.exit(0 if f"acr {options['--image']}" in made else 3)
elif verb == "show" and noun in ("acr", "aks") and key not in made:
    sys.exit(3)
elif verb == "show" and options.get("--query", "").startswith("tags."):
    print(made[key].partition("=")[2])
elif options.get("--output") == "tsv":
    print(options["--query"])
elif command == "group delete":
    del made[key]
    (here / "made.json").write_text(json.dumps(made))
"""

# A cluster in which everything has worked; writes down every command and every manifest.
FAKE_KUBECTL = """
import json, pathlib, sys

given = sys.argv[1:]
here = pathlib.Path(__file__).parent
with (here / "kubectl.log").open("a") as log:
    print(json.dumps(given), file=log)
if given[-2:] == ["--filename", "-"]:
    with (here / "applied.yaml").open("a") as applied:
        applied.write("---\\n" + sys.stdin.read())
line = " ".join(given)
if "get events" in line:
    print("1s  Normal  binding applied  azureidentitybinding/demo-azure-id-binding  Binding applied")
elif "custom-columns" in line:
    print("demo-1-default-demo-aad1   demo-1   node-0   Assigned")
elif "component=nmi" in line:
    print("I0101 00:00:00.000000       1 server.py:1] status (200) took 4615244 ns for req.method=GET")
elif "logs" in line:
    print("virtual machines: 1 in group: vm-0")
"""


class Machine:
    """A folder with the two programs, and what they were asked to do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, source in (("az", FAKE_AZ), ("kubectl", FAKE_KUBECTL)):
            program = folder / name
            program.write_text(f"#!{sys.executable} -IS\n{source}")
            program.chmod(0o755)
        (folder / "made.json").write_text("{}")

    def run(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": f"{self.folder}{os.pathsep}{os.environ['PATH']}", **variables}
        command = [TUTORIAL / script, *arguments]
        return subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=60)

    def asked(self, program: str) -> list[str]:
        log = self.folder / f"{program}.log"
        return [" ".join(json.loads(line)) for line in log.read_text().splitlines()] if log.exists() else []

    def made(self) -> Object:
        return dict(json.loads((self.folder / "made.json").read_text()))

    def applied(self) -> list[Object]:
        return documents(self.folder / "applied.yaml")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


STEPS = ("01-cluster.sh", "02-infra.sh", "03-demo.sh")


def test_a_second_walk_makes_nothing_again_and_ends_as_well(machine: Machine) -> None:
    first = [machine.run(step) for step in STEPS]
    made = machine.made()

    second = [machine.run(step) for step in STEPS]

    assert [(done.returncode, done.stderr) for done in (*first, *second)] == [(0, "")] * 6
    assert len(made) == 6  # group, registry, cluster and three images
    assert machine.made() == made


def test_the_walk_leaves_no_placeholder_and_uses_the_registry_that_it_is_told(machine: Machine) -> None:
    for step in STEPS:
        machine.run(step, REGISTRY="registry.example").check_returncode()

    images = {
        c["image"]
        for d in machine.applied()
        if "template" in d.get("spec", {})
        for c in d["spec"]["template"]["spec"]["containers"]
    }
    assert images == {f"registry.example/podidentity-{target}:{VERSION}" for target in ("mic", "nmi", "demo")}
    assert "<" not in (machine.folder / "applied.yaml").read_text().replace("#", "")
    assert not [command for command in machine.asked("az") if command.startswith("acr")]


@pytest.mark.parametrize(("rbac", "roles"), [("true", 3), ("false", 0)])
def test_roles_are_made_where_the_cluster_has_them(machine: Machine, rbac: str, roles: int) -> None:
    for step in STEPS[:2]:
        machine.run(step, RBAC=rbac).check_returncode()

    assert len([d for d in machine.applied() if d["kind"] in ("Role", "ClusterRole")]) == roles
    (create,) = (command for command in machine.asked("az") if command.startswith("aks create"))
    assert ("--disable-rbac" in create) == (rbac == "false")


def test_kubectl_is_never_used_but_on_the_tutorials_cluster(machine: Machine) -> None:
    for step in (*STEPS, "cleanup.sh"):
        machine.run(step, KUBE_CONTEXT="mine").check_returncode()

    assert [command for command in machine.asked("kubectl") if not command.startswith("--context mine ")] == []


def test_cleaning_up_deletes_the_resource_group_only_when_asked(machine: Machine) -> None:
    machine.run(STEPS[0]).check_returncode()

    machine.run("cleanup.sh").check_returncode()
    kept = machine.made()
    machine.run("cleanup.sh", "--azure").check_returncode()

    assert "group podidentity-tutorial" in kept
    assert "group podidentity-tutorial" not in machine.made()


def test_cleaning_up_spares_a_resource_group_that_was_there_before(machine: Machine) -> None:
    (machine.folder / "made.json").write_text('{"group podidentity-tutorial": "owner=someone"}')
    machine.run(STEPS[0]).check_returncode()

    done = machine.run("cleanup.sh", "--azure")

    assert done.returncode == 1
    assert "podidentity-tutorial" in done.stderr
    assert "group podidentity-tutorial" in machine.made()


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="the walk by hand is for people who have kubectl")
def test_the_walk_on_the_sandbox_succeeds_and_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}

    done = subprocess.run(
        [TUTORIAL / "sandbox.sh"], env=environment, check=False, capture_output=True, text=True, timeout=120
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "All of it happened" in done.stdout
    assert [path for path in tmp_path.iterdir() if path.name.startswith("tmp.")] == []
