"""The chart in the hands of Helm itself and of a real API server: lint, dry runs, installations, upgrades, the end."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from tests.cluster.build import find_helm
from tests.cluster.charts import EVERYTHING, MIC, MIC_OBJECTS, NMI, NMI_OBJECTS, USER_ASSIGNED, Values, documents
from tests.cluster.cluster import Cluster, documents_of
from tests.cluster.control_plane import ControlPlane
from tests.cluster.manifests import CHART, INFRA, MANIFESTS
from tests.cluster.waiting import until

APPLIED: Mapping[str, Values] = {
    "defaults": {},
    "everything": EVERYTHING,
    "managed": {"operationMode": "managed"},
    "no azure.json": {"existingAdminSecret": "mine"},
    "plain": {"plainManifests": True},
}


class Helm:
    """Helm, as the cluster's administrator uses it, with files of its own."""

    def __init__(self, control_plane: ControlPlane, folder: Path) -> None:
        homes = {f"HELM_{kind}_HOME": str(folder / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        self._environment = {**os.environ, **homes, "KUBECONFIG": str(control_plane.admin_kubeconfig())}

    def run(self, *arguments: str | Path, values: Values | None = None) -> str:
        """Run a command, with *values* if there are any, and return what it prints."""
        done = subprocess.run(
            [find_helm(), *arguments, *([] if values is None else ["--values", "-"])],
            input=json.dumps(values),
            env=self._environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def helm(control_plane: ControlPlane, tmp_path: Path) -> Helm:
    return Helm(control_plane, tmp_path)


@pytest.fixture
def release(helm: Helm, cluster: Cluster) -> Iterator[str]:
    """Give the name of a release, which is uninstalled if the test leaves it."""
    yield "pod-identity"
    helm.run("uninstall", "pod-identity", "--ignore-not-found")


@pytest.mark.parametrize("values", APPLIED.values(), ids=list(APPLIED))
def test_helm_finds_no_fault_in_the_chart(helm: Helm, values: Values) -> None:
    assert "0 chart(s) failed" in helm.run("lint", CHART, "--strict", values=values)


@pytest.mark.parametrize("values", APPLIED.values(), ids=list(APPLIED))
def test_a_real_api_server_takes_every_object_as_it_is_written(admin: Cluster, values: Values) -> None:
    for document in documents(values):
        name = document["metadata"]["name"]
        path = admin.resource(document["kind"]).path(document["metadata"].get("namespace"), name)
        query = "?fieldManager=test&force=true&dryRun=All&fieldValidation=Strict"

        taken = admin.request("PATCH", path + query, document, "application/apply-patch+yaml")

        assert taken["metadata"]["name"] == name


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_plain_manifests_are_what_the_chart_renders(name: str) -> None:
    assert (INFRA / name).read_text() == MANIFESTS[name].render(find_helm()), (
        "write them anew: python -m tests.cluster.manifests"
    )


def of_helm(cluster: Cluster) -> set[tuple[str, str]]:
    kinds = {kind for kind, _ in MIC_OBJECTS | NMI_OBJECTS} | {"PodDisruptionBudget", "Secret", "AzureIdentity"}
    return {
        (kind, item["metadata"]["name"])
        for kind in kinds
        for item in cluster.list(kind)
        if item["metadata"].get("labels", {}).get("app.kubernetes.io/managed-by") == "Helm"
    }


def test_a_release_is_installed_upgraded_and_uninstalled(helm: Helm, cluster: Cluster, release: str) -> None:
    notes = helm.run("install", release, CHART, values={})
    installed = of_helm(cluster)
    helm.run("upgrade", release, CHART, "--reuse-values", "--set", "nmi.removeRulesOnExit=true")
    upgraded = cluster.get("DaemonSet", NMI)
    helm.run("uninstall", release, "--wait")

    assert installed == MIC_OBJECTS | NMI_OBJECTS
    assert f"helm upgrade {release} CHART --namespace default --reuse-values --set nmi.removeRulesOnExit=true" in notes
    (container,) = upgraded["spec"]["template"]["spec"]["containers"]
    assert "--remove-rules-on-exit=true" in container["args"]
    assert of_helm(cluster) == set()


def test_an_upgrade_may_change_the_mode_and_everything(helm: Helm, cluster: Cluster, release: str) -> None:
    helm.run("install", release, CHART, values={"operationMode": "managed"})
    managed = of_helm(cluster)
    helm.run("upgrade", release, CHART, values=EVERYTHING)

    assert managed == NMI_OBJECTS
    assert of_helm(cluster) > MIC_OBJECTS | NMI_OBJECTS


def test_the_accounts_of_a_release_may_do_their_work_wherever_the_lock_is(
    helm: Helm, cluster: Cluster, release: str
) -> None:
    locks = "kube-node-lease"
    helm.run("install", release, CHART, values={"mic": {"leaderElection": {"namespace": locks, "name": "lock"}}})

    def may(account: str, verb: str, group: str, resource: str, namespace: str = "", name: str = "") -> bool:
        asked = {"verb": verb, "group": group, "resource": resource, "namespace": namespace, "name": name}
        user = f"system:serviceaccount:default:{account}"
        spec = {"user": user, "resourceAttributes": asked}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
        answer = cluster.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
        return bool(answer["status"]["allowed"])

    assert may(MIC, "create", "coordination.k8s.io", "leases", locks)
    assert may(MIC, "update", "coordination.k8s.io", "leases", locks, "lock")
    assert not may(MIC, "update", "coordination.k8s.io", "leases", "default", "lock")
    assert not may(MIC, "update", "coordination.k8s.io", "leases", locks, "other")
    assert may(MIC, "update", "", "configmaps", "default", "aad-pod-identity-config")
    assert not may(MIC, "update", "", "configmaps", locks, "aad-pod-identity-config")
    assert may(NMI, "get", "", "secrets", "any", "any")
    assert not may(MIC, "get", "", "secrets", "any", "any")
    assert not may(NMI, "list", "aadpodidentity.k8s.io", "azureidentities")


def test_a_first_installation_brings_the_kinds_and_an_uninstallation_leaves_them(
    helm: Helm, control_plane: ControlPlane, cluster: Cluster, release: str
) -> None:
    crds = [document["metadata"]["name"] for document in documents_of(CHART / "crds")]
    for name in crds:
        cluster.delete("CustomResourceDefinition", name)
    until(lambda: not present(cluster, crds), "the API server has forgotten the kinds", within_s=30)

    helm.run("install", release, CHART, values={"azureIdentities": {"a": USER_ASSIGNED}})
    with closing(Cluster(control_plane)) as fresh:
        installed = fresh.get("AzureIdentity", "a")
    helm.run("uninstall", release)

    assert installed["spec"]["clientID"] == "c"
    assert present(cluster, crds) == crds


def present(cluster: Cluster, crds: Sequence[str]) -> list[str]:
    """Return those of *crds* that exist."""
    found = {crd["metadata"]["name"] for crd in cluster.list("CustomResourceDefinition")}
    return [name for name in crds if name in found]
