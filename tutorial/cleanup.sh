#!/usr/bin/env bash
# Takes back what the tutorial made, in the order in which it can: the demo first, while MIC is there to take the
# identity off the nodes; then MIC and NMI; and with --azure also the cluster, the registry and the identity.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"
need kubectl

[[ $# -eq 0 || "$*" == --azure ]] || fail "usage: cleanup.sh [--azure]"

say "The demo pod, its binding and its identity"
kube delete --namespace default --ignore-not-found deployment/demo
if kube get crd azureassignedidentities.aadpodidentity.k8s.io --output name >/dev/null 2>&1; then
    kube delete --namespace default --ignore-not-found azureidentitybinding/demo-azure-id-binding azureidentity/demo-aad1
    # MIC deletes an assignment when its identity has left the node. Without MIC nobody would: they have finalizers.
    demo_assignments() { kube get azureassignedidentities --namespace default --output name | grep '/demo-' || true; }
    deadline=$((SECONDS + 300))
    while [[ -n "$(demo_assignments)" ]]; do
        ((SECONDS < deadline)) || fail "MIC has not removed these assignments, so it is left running:
$(demo_assignments)"
        sleep 2
    done
fi

say "MIC and NMI"
kube delete --ignore-not-found --filename "$PROJECT/deploy/infra/deployment-rbac.yaml"
if kube get crd azurepodidentityexceptions.aadpodidentity.k8s.io --output name >/dev/null 2>&1; then
    kube delete --ignore-not-found --filename "$PROJECT/deploy/infra/mic-exception.yaml"
fi
# The CRDs stay: with them would go every identity and binding of the cluster, the tutorial's and others.
echo "The CRDs are kept. If nothing else uses them: kubectl delete --filename deploy/chart/crds"

[[ $# -gt 0 ]] || exit 0
need az
signed_in
say "Resource group $RESOURCE_GROUP"
[[ "$(az group exists --name "$RESOURCE_GROUP")" == true ]] || exit 0
made_by="$(az group show --name "$RESOURCE_GROUP" --query 'tags."made-by"' --output tsv)"
[[ "made-by=$made_by" == "$MADE_BY" ]] ||
    fail "01-cluster.sh did not make the resource group $RESOURCE_GROUP: delete in it what is no longer needed"
az group delete --name "$RESOURCE_GROUP"
