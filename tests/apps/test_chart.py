"""The Helm chart, as far as one sees without Helm: values, schema, templates and flags agree with each other.

What it renders, and what an API server says to that, is in tests/cluster/test_chart*.py.
"""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from apps import klog
from apps.goflags import Flag
from apps.mic.flags import FLAGS as MIC_FLAGS
from apps.nmi.flags import FLAGS as NMI_FLAGS

PROJECT = Path(__file__).parents[2]
CHART = PROJECT / "deploy" / "chart"
TEMPLATES = {path.name: path.read_text() for path in (CHART / "templates").iterdir()}
VALUES: Mapping[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: Mapping[str, Any] = json.loads((CHART / "values.schema.json").read_text())
VERSION = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]

LINUX = {"kubernetes.io/os": "linux"}
ON_OTHER_NODES = {
    "podAntiAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [
            {
                "weight": 1,
                "podAffinityTerm": {
                    "topologyKey": "kubernetes.io/hostname",
                    "labelSelector": {"matchLabels": {"app.kubernetes.io/component": "mic"}},
                },
            }
        ]
    }
}

# Values of aad-pod-identity's chart 4.1.18 and what they are if nobody sets them.
ORIGINAL: Mapping[str, Any] = {
    "nameOverride": "",
    "fullnameOverride": "",
    "image.repository": "mcr.microsoft.com/oss/azure/aad-pod-identity",
    "image.imagePullPolicy": "IfNotPresent",
    "imagePullSecrets": None,
    "forceNamespaced": "false",
    "installMICException": "true",
    "adminsecret": {},
    "operationMode": "standard",
    "customUserAgent": "",
    "mic.image": "mic",
    "mic.tag": "v1.8.17",
    "mic.priorityClassName": "",
    "mic.logVerbosity": 0,
    "mic.loggingFormat": "",
    "mic.replicas": 2,
    "mic.resources": {"limits": {"cpu": "200m", "memory": "1024Mi"}, "requests": {"cpu": "100m", "memory": "256Mi"}},
    "mic.podAnnotations": {},
    "mic.podLabels": {},
    "mic.nodeSelector": LINUX,
    "mic.tolerations": [],
    "mic.affinity": ON_OTHER_NODES,
    "mic.topologySpreadConstraints": [],
    "mic.podDisruptionBudget": {},
    "mic.leaderElection.instance": "",
    "mic.leaderElection.namespace": "",
    "mic.leaderElection.name": "",
    "mic.leaderElection.duration": "",
    "mic.probePort": "",
    "mic.syncRetryDuration": "",
    "mic.immutableUserMSIs": [],
    "mic.createDeleteBatch": "",
    "mic.clientQps": "",
    "mic.prometheusPort": "",
    "mic.cloudConfig": "/etc/kubernetes/azure.json",
    "mic.customCloud.enabled": False,
    "mic.customCloud.configPath": "/etc/kubernetes/akscustom.json",
    "mic.updateUserMSIMaxRetry": "",
    "mic.updateUserMSIRetryInterval": "",
    "mic.identityAssignmentReconcileInterval": "",
    "nmi.image": "nmi",
    "nmi.tag": "v1.8.17",
    "nmi.priorityClassName": "",
    "nmi.logVerbosity": 0,
    "nmi.loggingFormat": "",
    "nmi.resources": {"limits": {"cpu": "200m", "memory": "512Mi"}, "requests": {"cpu": "100m", "memory": "256Mi"}},
    "nmi.updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
    "nmi.podAnnotations": {},
    "nmi.podLabels": {},
    "nmi.nodeSelector": LINUX,
    "nmi.tolerations": [{"operator": "Exists"}],
    "nmi.affinity": {},
    "nmi.ipTableUpdateTimeIntervalInSeconds": "",
    "nmi.micNamespace": "",
    "nmi.probePort": "8085",
    "nmi.retryAttemptsForCreated": "",
    "nmi.retryAttemptsForAssigned": "",
    "nmi.findIdentityRetryIntervalInSeconds": "",
    "nmi.enableScaleFeatures": True,
    "nmi.prometheusPort": "",
    "nmi.blockInstanceMetadata": "",
    "nmi.metadataHeaderRequired": True,
    "nmi.allowNetworkPluginKubenet": False,
    "nmi.kubeletConfig": "/etc/default/kubelet",
    "nmi.setRetryAfterHeader": False,
    "nmi.enableConntrackDeletion": False,
    "rbac.enabled": True,
    "rbac.allowAccessToSecrets": True,
    "rbac.pspEnabled": False,
    "rbac.createUserFacingClusterRoles": False,
    "azureIdentities": None,
}

# Where ours differ on purpose; values.yaml says why.
CHANGED: Mapping[str, Any] = {
    "image.repository": "",
    "imagePullSecrets": [],
    "mic.image": "podidentity-mic",
    "mic.tag": "",
    "mic.resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m", "memory": "256Mi"}},
    "nmi.image": "podidentity-nmi",
    "nmi.tag": "",
    "nmi.resources": {"limits": {"cpu": "1", "memory": "512Mi"}, "requests": {"cpu": "100m", "memory": "128Mi"}},
    "nmi.enableConntrackDeletion": True,
    "azureIdentities": {},
}

NEW: Mapping[str, Any] = {
    "existingAdminSecret": "",
    "mic.identityGracePeriod": "",
    "mic.dryRun": False,
    "nmi.removeRulesOnExit": False,
    "nmi.tokenCacheMaxAge": "",
    "nmi.allowForeignSecrets": False,
    "nmi.allowAdEndpoints": False,
    "nmi.hostTokenEndpoint": True,
    "plainManifests": False,
}

WHOLE = {name for name, default in {**ORIGINAL, **CHANGED}.items() if isinstance(default, dict)}
"""Values that are mappings, and of which the chart knows no single keys."""


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value with its name, such as `mic.tag`."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in WHOLE:
            yield from leaves(value, f"{name}.")
        else:
            yield name, value


def test_the_chart_has_the_programs_version_and_the_originals_name() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())

    assert chart["name"] == "aad-pod-identity"  # names and selectors of the objects that an upgrade replaces
    assert chart["version"] == chart["appVersion"] == VERSION


def test_the_values_are_the_originals_but_for_what_is_changed_or_new() -> None:
    assert dict(leaves(VALUES)) == {**ORIGINAL, **CHANGED, **NEW}


@pytest.mark.parametrize(
    "name", [name for name in {**CHANGED, **NEW} if name not in ("imagePullSecrets", "azureIdentities")]
)
def test_what_is_changed_or_new_says_so_in_the_values(name: str) -> None:
    """`changed` or `new` stands in the comment before the value, or beside it."""
    lines = (CHART / "values.yaml").read_text().splitlines()
    key = name.rpartition(".")[2]
    places = [number for number, line in enumerate(lines) if re.match(rf" *{key}:", line)]

    assert places
    assert all(
        re.search(r"\b([Cc]hanged|[Nn]ew)\b", comment_of(lines, place)) for place in places_in(lines, name, places)
    )


def places_in(lines: Sequence[str], name: str, places: Sequence[int]) -> list[int]:
    """Keep those of *places* that are in the section of *name*."""
    section = name.partition(".")[0] if "." in name else None
    return [place for place in places if section in (None, section_of(lines, place))]


def section_of(lines: Sequence[str], place: int) -> str:
    return next(line.partition(":")[0] for line in reversed(lines[: place + 1]) if re.match(r"\w", line))


def comment_of(lines: Sequence[str], place: int) -> str:
    """Return the line, and the comment lines directly above it."""
    first = place
    while lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return "\n".join(lines[first : place + 1])


# --- schema ----------------------------------------------------------------------------------------------------


def described(schema: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, part in schema["properties"].items():
        name = f"{prefix}{key}"
        if "properties" in part and name not in WHOLE:
            yield from described(part, f"{name}.")
        else:
            yield name


def test_the_schema_describes_every_value_and_no_other() -> None:
    by_helm = {"global", "enabled"}  # of charts that contain this one

    assert set(described(SCHEMA)) == {name for name, _ in leaves(VALUES)} | by_helm


def sections(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield *schema* and everything in it that lists names."""
    if "properties" in schema:
        yield schema
    for part in schema.values():
        if isinstance(part, dict):
            yield from sections(part)


def test_a_name_that_is_not_listed_is_an_error_everywhere() -> None:
    assert len(list(sections(SCHEMA))) > 10
    for section in sections(SCHEMA):
        is_part = set(section) == {"required", "properties"}  # added to another that lists all names
        assert is_part or section["additionalProperties"] is False


# --- templates -------------------------------------------------------------------------------------------------

USE = re.compile(r"(?:\.Values|\$(?P<program>mic|nmi))\.(?P<name>[\w.]+)")


def used() -> set[str]:
    """Return the values that templates name, whole or in part."""
    found = {
        f"{use['program']}.{use['name']}" if use["program"] else use["name"]
        for text in TEMPLATES.values()
        for use in USE.finditer(text)
    }
    # The templates of names and images have the program as a parameter.
    return found | {f"{program}.{key}" for program in ("mic", "nmi") for key in ("image", "tag", "podLabels")}


def test_every_value_is_used_and_templates_use_no_other() -> None:
    names = {name for name, _ in leaves(VALUES)}

    assert names - used() == set()
    assert {use for use in used() - names if not any(name.startswith(f"{use}.") for name in names)} == set()


# --- flags -----------------------------------------------------------------------------------------------------

PASSED = re.compile(r'^    \(list "([\w-]+)" (.+) "([^"]*)"\)$', re.MULTILINE)

PROGRAMS: Mapping[str, Sequence[Flag]] = {"mic-deployment.yaml": MIC_FLAGS, "nmi-daemonset.yaml": NMI_FLAGS}

# Why a flag has no value.
WITHOUT_VALUE = {
    "version": "prints and ends",
    "kubeconfig": "in the cluster there is none",
    "config-map-name": "the original has none either, and the roles name the ConfigMap",
    "type-upgrade-status-key": "as config-map-name",
    "enable-type-upgrade": "as config-map-name",
    "nmi-listen-address": "the original has none either",
    "nmi-port": "as nmi-listen-address",
    "metadata-ip": "as nmi-listen-address",
    "metadata-port": "as nmi-listen-address",
    "interception": "false is for the sandbox",
}
BY_ENVIRONMENT = {"forceNamespaced"}  # FORCENAMESPACED, in MIC and in NMI's standard mode
LOG = {flag.name for flag in klog.FLAGS} - {"v", "log-format", "logtostderr"}


@pytest.mark.parametrize("template", PROGRAMS)
def test_each_flag_is_passed_or_there_is_a_reason(template: str) -> None:
    passed = [found[1] for found in PASSED.finditer(TEMPLATES[template])]
    flags = {flag.name for flag in PROGRAMS[template] if flag.effect} | {"logtostderr"}
    left_out = set(WITHOUT_VALUE) | LOG | BY_ENVIRONMENT

    assert len(passed) == len(set(passed))
    assert set(passed) <= {flag.name for flag in PROGRAMS[template]}
    assert flags - set(passed) - left_out <= ({"logtostderr"} if "nmi" in template else set())


@pytest.mark.parametrize("template", PROGRAMS)
def test_a_flag_is_left_out_only_where_it_says_what_the_program_does_anyway(template: str) -> None:
    defaults = {flag.name: str(flag.default).lower() for flag in PROGRAMS[template]}

    for found in PASSED.finditer(TEMPLATES[template]):
        name, _, left_out = found.groups()
        assert left_out in ("", defaults[name])


def test_a_flag_of_no_program_has_no_reason() -> None:
    names = {flag.name for flags in PROGRAMS.values() for flag in flags}

    assert names >= set(WITHOUT_VALUE)
