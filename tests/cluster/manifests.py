"""The plain manifests of deploy/infra, written from the chart: `python -m tests.cluster.manifests`.

A test compares the files with what the chart renders now.
"""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.build import find_helm
from tests.cluster.errors import MachineLacks

DEPLOY = Path(__file__).parents[2] / "deploy"
CHART = DEPLOY / "chart"
INFRA = DEPLOY / "infra"

IMAGES = """\
# Images: build them with deploy/Dockerfile, push them to your registry, and put its name before
# "podidentity-mic" and "podidentity-nmi" below (tutorial/02-infra.sh does all three)."""

MADE = "# Made from deploy/chart by `python -m tests.cluster.manifests`: change it there."

SPREAD = {
    "podAntiAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [
            {
                "weight": 1,
                "podAffinityTerm": {
                    "topologyKey": "kubernetes.io/hostname",
                    "labelSelector": {"matchLabels": {"component": "mic"}},
                },
            }
        ]
    }
}
PLAIN: Mapping[str, Any] = {"plainManifests": True, "mic": {"affinity": SPREAD}}


@dataclass(frozen=True, slots=True)
class Manifest:
    """One file: what stands at its head, and what of the chart it is."""

    head: str
    values: Mapping[str, Any]
    namespace: str = "default"
    only: str | None = None
    """A single template; else everything but the exceptions."""

    def render(self, helm: Path) -> str:
        """Return the file's text."""
        values = {"installMICException": "true" if self.only else "false", **PLAIN, **self.values}
        rendered = template(helm, values, namespace=self.namespace, only=self.only)
        documents = re.split(
            r"^---\n", re.sub(r"^# Source: .*\n", "", rendered, flags=re.MULTILINE), flags=re.MULTILINE
        )
        return f"{self.head.strip()}\n{MADE}\n" + "---\n".join(document for document in documents if document.strip())


def template(
    helm: Path,
    values: Mapping[str, Any],
    *,
    namespace: str = "default",
    release: str = "pod-identity",
    only: str | None = None,
) -> str:
    """Return what `helm template` prints. Raises RuntimeError with what it says."""
    command = [str(helm), "template", release, str(CHART), "--namespace", namespace, "--values", "-"]
    command += ["--show-only", f"templates/{only}"] if only else []
    done = subprocess.run(command, input=json.dumps(values), check=False, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip())
    return done.stdout


MANIFESTS: Mapping[str, Manifest] = {
    "deployment-rbac.yaml": Manifest(
        f"""
# MIC and NMI on a cluster with role-based access control (nearly every cluster).
#   kubectl apply -f deploy/chart/crds -f deploy/infra/deployment-rbac.yaml
{IMAGES}
# Source of names and numbers: aad-pod-identity 1.8.17, deploy/infra/deployment-rbac.yaml.
""",
        {},
    ),
    "deployment.yaml": Manifest(
        f"""
# MIC and NMI on a cluster WITHOUT role-based access control.
#   kubectl apply -f deploy/chart/crds -f deploy/infra/deployment.yaml
{IMAGES}
# The same as deployment-rbac.yaml without its roles and bindings: such a cluster allows every ServiceAccount all.
# MIC uses its ServiceAccount here too. The original's file handed it the kubelet's kubeconfig, and with that every
# secret under /var/lib/kubelet; MIC has no need of it. (--kubeconfig is still there for MICs outside a cluster.)
""",
        {"rbac": {"enabled": False}},
    ),
    "noazurejson/deployment-rbac.yaml": Manifest(
        f"""
# MIC and NMI where the nodes' azure.json is absent or not for MIC: MIC signs in with what a Secret says.
#   kubectl create secret generic aadpodidentity-admin-secret --namespace default \\
#     --from-literal=Cloud=AzurePublicCloud --from-literal=TenantID=... \\
#     --from-literal=ClientID=... --from-literal=ClientSecret=...
# or, with a managed identity: Cloud, UseMSI=true and, for a user-assigned one, UserAssignedMSIClientID.
# The Secret of the original's file of this name does as it is. It is not in this file, so that applying the file
# again does not overwrite it.
#   kubectl apply -f deploy/chart/crds -f deploy/infra/noazurejson/deployment-rbac.yaml
{IMAGES}
# Source of names and numbers: aad-pod-identity 1.8.17, deploy/infra/noazurejson/deployment-rbac.yaml.
""",
        {"existingAdminSecret": "aadpodidentity-admin-secret"},
    ),
    "noazurejson/deployment.yaml": Manifest(
        """
# The same as deployment-rbac.yaml beside it, which see, for a cluster WITHOUT role-based access control.
""",
        {"existingAdminSecret": "aadpodidentity-admin-secret", "rbac": {"enabled": False}},
    ),
    "managed-mode-deployment.yaml": Manifest(
        f"""
# NMI in managed mode: somebody else has put the identities on the nodes' hosts, and there is no MIC.
# Pods use identities of their own namespace only.
#   kubectl apply -f deploy/chart/crds -f deploy/infra/managed-mode-deployment.yaml
{IMAGES}
# Source of names and numbers: aad-pod-identity 1.8.17, deploy/infra/managed-mode-deployment.yaml.
""",
        {"operationMode": "managed"},
        namespace="kube-system",
    ),
    "mic-exception.yaml": Manifest(
        """
# Pods whose metadata requests NMI answers with the node's own identity, without a binding. Needed where MIC or
# AKS's own add-ons sign in with a managed identity and their requests pass an NMI on the way.
""",
        {},
        only="exceptions.yaml",
    ),
}


def main() -> int:
    """Write all files anew; exit code 1 with one line if the machine cannot."""
    try:
        helm = find_helm()
    except MachineLacks as error:
        print(f"tests.cluster.manifests: {error}", file=sys.stderr)
        return 1
    for name, manifest in MANIFESTS.items():
        path = INFRA / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(manifest.render(helm))
    return 0


if __name__ == "__main__":
    sys.exit(main())
