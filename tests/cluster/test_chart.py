"""The objects that Helm renders from the chart, and what it says to wrong values."""

import base64
import re
from collections.abc import Sequence
from typing import Any

import pytest

from podidentity_azure.cloud import load_azure_config
from tests.cluster.charts import (
    EVERYTHING,
    MIC,
    MIC_OBJECTS,
    NMI,
    NMI_OBJECTS,
    PRINCIPAL,
    USER_ASSIGNED,
    Objects,
    Values,
    container_of,
    defaults,
    documents,
    environment_of,
    mic_config,
    pod_of,
    rendered,
    secret,
)
from tests.cluster.cluster import Object


def test_without_values_there_are_these_objects() -> None:
    assert set(defaults()) == MIC_OBJECTS | NMI_OBJECTS


def test_values_that_the_originals_chart_had_not_may_be_absent() -> None:
    """So they are after `helm upgrade --reuse-values` of a release of it, which takes no defaults of the new chart."""
    absent = {
        "existingAdminSecret": None,
        "plainManifests": None,
        "mic": {"identityGracePeriod": None, "dryRun": None},
        "nmi": dict.fromkeys(
            ("removeRulesOnExit", "tokenCacheMaxAge", "allowForeignSecrets", "allowAdEndpoints", "hostTokenEndpoint")
        ),
    }

    assert rendered(absent) == defaults()


def test_managed_mode_has_no_mic() -> None:
    values = {"operationMode": "managed", "mic": {"podDisruptionBudget": {"minAvailable": 1}}, **secret()}

    assert set(rendered(values)) == NMI_OBJECTS


def test_without_rbac_there_are_no_accounts_either() -> None:
    objects = rendered({"rbac": {"enabled": False, "createUserFacingClusterRoles": True}})

    assert {kind for kind, _ in objects} == {"Deployment", "DaemonSet", "AzurePodIdentityException"}
    assert "serviceAccountName" not in pod_of(objects, "mic")["spec"] | pod_of(objects, "nmi")["spec"]


@pytest.mark.parametrize("off", ["", "false", False])
def test_exceptions_can_be_left_out(off: object) -> None:
    assert {kind for kind, _ in rendered({"installMICException": off})}.isdisjoint({"AzurePodIdentityException"})


def test_selectors_and_roles_are_the_originals_since_an_upgrade_cannot_change_them() -> None:
    for (kind, name), program in ((("Deployment", MIC), "mic"), (("DaemonSet", NMI), "nmi")):
        selector = {
            "app.kubernetes.io/name": "aad-pod-identity",
            "app.kubernetes.io/instance": "pod-identity",
            "app.kubernetes.io/component": program,
        }
        assert defaults()[kind, name]["spec"]["selector"] == {"matchLabels": selector}
        assert selector.items() <= pod_of(defaults(), program)["metadata"]["labels"].items()
        role = defaults()["ClusterRoleBinding", name]["roleRef"]
        assert role == {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}


def test_every_object_names_its_namespace_or_has_none() -> None:
    cluster_wide = {"ClusterRole", "ClusterRoleBinding"}
    placed = {
        (document["kind"], document["metadata"].get("namespace"))
        for document in documents({**EVERYTHING, "azureIdentities": {"a": USER_ASSIGNED}}, namespace="identity")
    }

    assert {kind for kind, namespace in placed if namespace is None} == cluster_wide
    assert {entry for entry in placed if entry[1] not in (None, "identity")} == {
        ("AzurePodIdentityException", "kube-system"),  # AKS's add-ons
        ("Role", "kube-system"),  # the lock
        ("RoleBinding", "kube-system"),
    }


def test_names_follow_name_override() -> None:
    names = {name for _, name in rendered({"nameOverride": "x" * 70})}

    assert names == {"x" * 59 + "-mic", "x" * 59 + "-nmi", "mic", "aks-addon-exception"}


def test_mic_is_excepted_by_a_label_of_its_pods() -> None:
    labels = defaults()["AzurePodIdentityException", "mic"]["spec"]["podLabels"]

    assert labels.items() <= pod_of(defaults(), "mic")["metadata"]["labels"].items()


def test_the_image_is_made_of_repository_name_and_tag() -> None:
    values = {"image": {"repository": "reg.example/a/"}, "mic": {"image": "m", "tag": 1.5}}
    objects = rendered(values)

    assert container_of(defaults(), "mic")["image"] == "podidentity-mic:0.1.0"
    assert container_of(objects, "mic")["image"] == "reg.example/a/m:1.5"
    assert container_of(objects, "nmi")["image"] == "reg.example/a/podidentity-nmi:0.1.0"


POD_VALUES: Sequence[tuple[str, object, str, object]] = [
    ("priorityClassName", "system-node-critical", "spec.priorityClassName", "system-node-critical"),
    ("nodeSelector", {"pool": "a"}, "spec.nodeSelector", {"kubernetes.io/os": "linux", "pool": "a"}),
    ("tolerations", [{"key": "a", "operator": "Exists"}], "spec.tolerations", [{"key": "a", "operator": "Exists"}]),
    ("affinity", {"podAffinity": {}}, "spec.affinity.podAffinity", {}),
    ("podAnnotations", {"a/b": "true"}, "metadata.annotations", {"a/b": "true"}),
    ("podLabels", {"team": "a"}, "metadata.labels.team", "a"),
    ("resources", {"limits": {"cpu": 2}}, "spec.containers.resources.limits.cpu", 2),
    ("image", "other", "spec.containers.image", "other:0.1.0"),
]


@pytest.mark.parametrize("program", ["mic", "nmi"])
@pytest.mark.parametrize(("key", "value", "place", "expected"), POD_VALUES)
def test_a_value_of_the_pod_is_in_the_pod(program: str, key: str, value: object, place: str, expected: object) -> None:
    found: Any = pod_of(rendered({program: {key: value}}), program)

    for part in place.split("."):
        found = found[part][0] if part == "containers" else found[part]

    assert found == expected


def test_values_of_the_workloads_are_in_the_workloads() -> None:
    spread = [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}]
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "100%"}}
    values = {
        "imagePullSecrets": [{"name": "registry"}],
        "image": {"imagePullPolicy": "Always"},
        "mic": {"replicas": 3, "topologySpreadConstraints": spread, "podDisruptionBudget": {"minAvailable": 1}},
        "nmi": {"updateStrategy": strategy},
    }
    objects = rendered(values)
    budget = objects["PodDisruptionBudget", "mic-pdb"]["spec"]

    assert objects["Deployment", MIC]["spec"]["replicas"] == 3
    assert pod_of(objects, "mic")["spec"]["topologySpreadConstraints"] == spread
    assert objects["DaemonSet", NMI]["spec"]["updateStrategy"] == strategy
    for program in ("mic", "nmi"):
        assert pod_of(objects, program)["spec"]["imagePullSecrets"] == [{"name": "registry"}]
        assert container_of(objects, program)["imagePullPolicy"] == "Always"
    assert budget == {"minAvailable": 1, "selector": objects["Deployment", MIC]["spec"]["selector"]}


def test_a_custom_clouds_file_is_mounted_and_named() -> None:
    objects = rendered({"mic": {"customCloud": {"enabled": True, "configPath": "/etc/cloud.json"}}})
    container = container_of(objects, "mic")
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {v["name"]: v["hostPath"]["path"] for v in pod_of(objects, "mic")["spec"]["volumes"]}

    assert environment_of(container)["AZURE_ENVIRONMENT_FILEPATH"] == "/etc/cloud.json"
    assert mounts == volumes == {"k8s-azure-file": "/etc/kubernetes/azure.json", "custom-env-file": "/etc/cloud.json"}


# --- MIC's own credentials -------------------------------------------------------------------------------------


def seen_by_mic(objects: Objects) -> dict[str, str]:
    """Return the variables that a kubelet would fill from the Secret; an optional key that is missing is left out."""
    data = objects["Secret", MIC]["data"]
    seen = {}
    for variable in container_of(objects, "mic")["env"]:
        reference = variable.get("valueFrom", {}).get("secretKeyRef")
        if reference and not (reference["optional"] and reference["key"] not in data):
            assert reference["name"] == MIC
            seen[variable["name"]] = base64.b64decode(data[reference["key"]]).decode()
    return seen


def test_a_service_principal_of_the_values_is_what_mic_signs_in_with() -> None:
    objects = rendered(secret(subscriptionID="sub", resourceGroup="group", vmType="vmss"))

    config = load_azure_config(None, seen_by_mic(objects))

    assert (config.tenant_id, config.client_id, config.client_secret) == ("t.example", "c", "s'\"é")
    assert mic_config(objects).cloudconfig == ""
    assert "volumes" not in pod_of(objects, "mic")["spec"]
    assert container_of(objects, "mic")["securityContext"]["runAsNonRoot"] is True


@pytest.mark.parametrize("on", [True, "true", "True"])
def test_a_managed_identity_of_the_values_is_what_mic_signs_in_with(on: object) -> None:
    values = secret(tenantID=None, clientID="msi", clientSecret=None, useMSI=on, userAssignedMSIClientID="m")

    config = load_azure_config(None, seen_by_mic(rendered(values)))

    assert config.managed_identity == "m"


def test_new_credentials_start_new_pods() -> None:
    annotations = [
        pod_of(rendered(secret(clientSecret=value)), "mic")["metadata"]["annotations"]["checksum/config"]
        for value in ("one", "two")
    ]

    assert annotations[0] != annotations[1]


def test_a_secret_that_exists_takes_the_place_of_the_values() -> None:
    objects = rendered({"existingAdminSecret": "mine"})
    references = [v["valueFrom"].get("secretKeyRef", {}) for v in container_of(objects, "mic")["env"]]

    assert {reference["name"] for reference in references if reference} == {"mine"}
    assert ("Secret", MIC) not in objects


# --- identities ------------------------------------------------------------------------------------------------


def test_identities_of_the_values_become_an_identity_and_a_binding_each() -> None:
    objects = rendered({"azureIdentities": {"a": USER_ASSIGNED, "b": {**PRINCIPAL, "name": "other"}}})
    custom = {key: found for key, found in objects.items() if key[0] in ("AzureIdentity", "AzureIdentityBinding")}

    assert {(*key, found["metadata"]["namespace"]): found["spec"] for key, found in custom.items()} == {
        ("AzureIdentity", "a", "default"): {"type": 0, "clientID": "c", "resourceID": "/subscriptions/s/r"},
        ("AzureIdentityBinding", "a-binding", "default"): {"azureIdentity": "a", "selector": "app"},
        ("AzureIdentity", "other", "team"): {
            "type": 1,
            "tenantID": "t",
            "clientID": "1234",
            "clientPassword": {"name": "password", "namespace": "team"},
            "auxiliaryTenantIDs": ["t2"],
        },
        ("AzureIdentityBinding", "bound", "team"): {"azureIdentity": "other", "selector": "yes"},
    }


def test_identities_may_be_a_list_and_the_secret_a_text_as_in_the_original() -> None:
    text = '{"name":"password","namespace":"vault"}'
    listed = [{**PRINCIPAL, "type": 2, "name": "a", "clientPassword": text}]

    identity = rendered({"azureIdentities": listed})["AzureIdentity", "a"]

    assert identity["spec"]["clientPassword"] == {"name": "password", "namespace": "vault"}


# --- roles -----------------------------------------------------------------------------------------------------


def granted(role: Object) -> set[tuple[str, str]]:
    return {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}


def test_secrets_can_be_kept_from_nmi() -> None:
    without = rendered({"rbac": {"allowAccessToSecrets": False}})["ClusterRole", NMI]

    assert granted(defaults()["ClusterRole", NMI]) - granted(without) == {("secrets", "get")}


def test_users_roles_become_part_of_the_clusters_own() -> None:
    objects = rendered({"rbac": {"createUserFacingClusterRoles": True}})
    view, edit = (objects["ClusterRole", f"pod-identity-aad-pod-identity-{name}"] for name in ("view", "edit"))
    kinds = {"azureidentities", "azureidentitybindings", "azurepodidentityexceptions"}

    for role, parents in ((view, {"view", "edit", "admin"}), (edit, {"edit", "admin"})):
        labels = {label.removeprefix("rbac.authorization.k8s.io/aggregate-to-") for label in role["metadata"]["labels"]}
        assert parents == labels & {"view", "edit", "admin"}
    assert granted(view) == {
        (kind, verb) for kind in {*kinds, "azureassignedidentities"} for verb in ("get", "list", "watch")
    }
    assert granted(edit) == {
        (kind, verb) for kind in kinds for verb in ("create", "delete", "deletecollection", "patch", "update")
    }


# --- errors ----------------------------------------------------------------------------------------------------

WRONG: Sequence[tuple[Values, str]] = [
    ({"nmi": {"removeRuleOnExit": True}}, "at '/nmi': additional properties 'removeRuleOnExit' not allowed"),
    ({"forceNameSpaced": "true"}, "additional properties 'forceNameSpaced' not allowed"),
    ({"forceNamespaced": "True"}, "at '/forceNamespaced': value must be one of true, false, 'true', 'false'"),
    ({"operationMode": "Managed"}, "at '/operationMode': value must be one of 'standard', 'managed'"),
    ({"mic": {"probePort": 70000}}, "at '/mic/probePort': maximum: got 70,000, want 65,535"),
    ({"nmi": {"probePort": "http"}}, "at '/nmi/probePort': 'http' does not match"),
    ({"mic": {"syncRetryDuration": 60}}, "at '/mic/syncRetryDuration': got number, want string"),
    ({"mic": {"identityGracePeriod": "60"}}, "at '/mic/identityGracePeriod': '60' does not match"),
    ({"mic": {"replicas": "two"}}, "at '/mic/replicas': got string, want integer"),
    ({"mic": {"createDeleteBatch": 0}}, "at '/mic/createDeleteBatch': minimum: got 0, want 1"),
    ({"mic": {"loggingFormat": "yaml"}}, "at '/mic/loggingFormat': value must be one of '', 'text', 'json'"),
    ({"mic": {"podDisruptionBudget": {"minAvailable": 1, "maxUnavailable": 1}}}, "at '/mic/podDisruptionBudget'"),
    ({"nmi": {"podAnnotations": {"a": True}}}, "at '/nmi/podAnnotations/a': got boolean, want string"),
    ({"azureIdentities": {"a": {**USER_ASSIGNED, "type": 3}}}, "at '/azureIdentities/a/type': value must be one of 0"),
    ({"azureIdentities": {"a": {"clientID": "c"}}}, "at '/azureIdentities/a': missing property 'binding'"),
    ({"azureIdentities": [USER_ASSIGNED]}, "missing property 'name'"),
    ({"azureIdentities": {"a": {**USER_ASSIGNED, "resourceID": ""}}}, "azureIdentities.a.resourceID is empty"),
    (
        {"azureIdentities": {"a": {**PRINCIPAL, "clientPassword": "password"}}},
        "azureIdentities.a.clientPassword names no Secret: write {name: ..., namespace: ...}",
    ),
    (secret(clientSecret=None), "adminsecret.clientSecret is empty"),
    (secret(cloud=None, useMSI="true"), "adminsecret.cloud is empty"),
    ({**secret(), "existingAdminSecret": "mine"}, "adminsecret and existingAdminSecret are both set: choose one"),
    (
        {"image": {"repository": "mcr.microsoft.com/oss/azure/aad-pod-identity"}},
        "set image.repository to the registry with the successor's images",
    ),
    ({"nmi": {"tag": "v1.8.17"}}, "podidentity-nmi:v1.8.17 is an image of aad-pod-identity"),
]


@pytest.mark.parametrize(("values", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_value_is_named(values: Values, message: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(message)):
        rendered(values)
