"""What the Helm chart renders, and what our programs make of that; values that tests use."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml

from apps.mic import flags as mic_flags
from apps.mic.flags import MicConfig
from apps.nmi import flags as nmi_flags
from apps.nmi.flags import NmiConfig
from tests.cluster.build import find_helm
from tests.cluster.cluster import Object
from tests.cluster.manifests import template

Values = Mapping[str, Any]
Objects = Mapping[tuple[str, str], Object]

MIC, NMI = "aad-pod-identity-mic", "aad-pod-identity-nmi"
MIC_OBJECTS = {
    (kind, MIC) for kind in ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "Deployment")
} | {("AzurePodIdentityException", "mic")}
NMI_OBJECTS = {(kind, NMI) for kind in ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "DaemonSet")} | {
    ("AzurePodIdentityException", "aks-addon-exception")
}


def documents(values: Values, namespace: str = "default") -> list[Object]:
    """Return the objects that the chart renders."""
    return [d for d in yaml.safe_load_all(template(find_helm(), values, namespace=namespace)) if d]


def rendered(values: Values) -> Objects:
    """Return the objects that the chart renders, by kind and name; of those in several namespaces, one."""
    return {(document["kind"], document["metadata"]["name"]): document for document in documents(values)}


@cache
def defaults() -> Objects:
    """Return what the chart renders without any values."""
    return rendered({})


def nested(name: str, value: object) -> dict[str, Any]:
    """Return the values in which *name*, such as `mic.tag`, is *value*."""
    for key in reversed(name.split(".")):
        value = {key: value}
    assert isinstance(value, dict)
    return value


def pod_of(objects: Objects, program: str) -> Object:
    """Return the pod template of a program."""
    workload = objects[("Deployment", MIC) if program == "mic" else ("DaemonSet", NMI)]
    return dict(workload["spec"]["template"])


def container_of(objects: Objects, program: str) -> Object:
    """Return the container of a program."""
    (container,) = pod_of(objects, program)["spec"]["containers"]
    return dict(container)


def environment_of(container: Object) -> dict[str, str]:
    """Return the variables with fixed values, and those that Kubernetes fills in, as it would."""
    filled = {"MIC_POD_NAMESPACE": "default", "NODE_NAME": "node-0"}
    return {v["name"]: v["value"] if "value" in v else filled.get(v["name"], "") for v in container["env"]}


def mic_config(objects: Objects) -> MicConfig:
    """Return what MIC reads from its command line and variables."""
    container = container_of(objects, "mic")
    return mic_flags.parse(container["args"], environment_of(container))


def nmi_config(objects: Objects) -> NmiConfig:
    """Return what NMI reads from its command line and variables."""
    container = container_of(objects, "nmi")
    variables = environment_of(container)
    arguments = [arg.replace("$(NODE_NAME)", variables["NODE_NAME"]) for arg in container["args"]]
    return nmi_flags.parse(arguments, variables)


def secret(**changed: object) -> dict[str, Any]:
    """Return values of a service principal for MIC; None leaves a key out."""
    given = {"cloud": "AzurePublicCloud", "tenantID": "t.example", "clientID": "c", "clientSecret": "s'\"é", **changed}
    return {"adminsecret": {key: value for key, value in given.items() if value is not None}}


USER_ASSIGNED = {"resourceID": "/subscriptions/s/r", "clientID": "c", "binding": {"selector": "app"}}
PRINCIPAL = {
    "type": 1,
    "namespace": "team",
    "tenantID": "t",
    "clientID": "1234",
    "clientPassword": {"name": "password"},
    "auxiliaryTenantIDs": ["t2"],
    "binding": {"name": "bound", "selector": "yes"},
}


EVERYTHING: Values = {
    "forceNamespaced": "true",
    "imagePullSecrets": [{"name": "registry"}],
    "rbac": {"createUserFacingClusterRoles": True},
    "azureIdentities": {"a": USER_ASSIGNED, "b": {**PRINCIPAL, "namespace": "default"}},
    "mic": {
        "priorityClassName": "system-cluster-critical",
        "prometheusPort": 9888,
        "podAnnotations": {"a": "b"},
        "podDisruptionBudget": {"maxUnavailable": "50%"},
        "leaderElection": {"namespace": "kube-system"},
        "customCloud": {"enabled": True},
    },
    "nmi": {"priorityClassName": "system-node-critical", "prometheusPort": 9091, "podLabels": {"team": "a"}},
    **secret(),
}
