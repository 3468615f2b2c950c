# Names that the tutorial's scripts use, and a few words they share. Sourced, never run.
# To choose another name, export it before you start a script:  LOCATION=northeurope ./01-cluster.sh
# shellcheck shell=bash

export LOCATION="${LOCATION:-westeurope}"
export RESOURCE_GROUP="${RESOURCE_GROUP:-podidentity-tutorial}"
export CLUSTER="${CLUSTER:-podidentity}"
export NODE_COUNT="${NODE_COUNT:-2}"

# true: a cluster with role-based access control, as nearly all are. false: one without.
export RBAC="${RBAC:-true}"

# The Azure identity that the demo pod gets. Its AzureIdentity is called demo-aad1, as in deploy/demo.
export IDENTITY="${IDENTITY:-demo-aad1}"

# Where the images are: the login server of a registry that the cluster may pull from, such as
# "myregistry.azurecr.io". Left empty, the scripts make an Azure Container Registry and build the images in it.
export REGISTRY="${REGISTRY:-}"
export VERSION="${VERSION:-0.1.0}"

# The kubeconfig context that kubectl uses; the scripts never touch another one. 01-cluster.sh makes it.
export KUBE_CONTEXT="${KUBE_CONTEXT:-$CLUSTER}"

TUTORIAL="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
export TUTORIAL
export PROJECT="${TUTORIAL%/*}"

# The tag by which cleanup.sh knows a resource group that 01-cluster.sh made.
export MADE_BY="made-by=podidentity-tutorial"

say() { printf '\n==> %s\n' "$*"; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

need() {
    local program
    for program in "$@"; do
        command -v "$program" >/dev/null || fail "'$program' is not on PATH: install it first"
    done
}

signed_in() {
    az account show --output none 2>/dev/null || fail "az is not signed in: run 'az login' first"
}

kube() { kubectl --context "$KUBE_CONTEXT" "$@"; }

# The name of the tutorial's own registry: names are unique in all of Azure, so the subscription is part of it.
registry_name() {
    local subscription
    subscription="$(az account show --query id --output tsv)"
    printf 'podidentity%s' "${subscription//-/}" | cut -c 1-30
}

# Values of the cluster, one per line as asked for: cluster_value nodeResourceGroup
cluster_value() {
    az aks show --resource-group "$RESOURCE_GROUP" --name "$CLUSTER" --query "$1" --output tsv
}

# The identity that the nodes' azure.json names, with which MIC signs in to Azure.
kubelet_identity() { cluster_value identityProfile.kubeletidentity.objectId; }

# Give a service principal a role; one that it has already is left as it is: grant OBJECT_ID ROLE SCOPE
grant() {
    az role assignment create --assignee-object-id "$1" --assignee-principal-type ServicePrincipal \
        --role "$2" --scope "$3" --output none
}
