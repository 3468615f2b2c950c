#!/usr/bin/env bash
# Section 1: a resource group, a container registry and an AKS cluster, and kubectl's way to it.
# What exists already is kept. Takes five to ten minutes the first time.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"
need az kubectl
signed_in

say "Subscription: $(az account show --query name --output tsv)"

say "Registering the resource providers that the tutorial uses"
for provider in Compute ContainerRegistry ContainerService ManagedIdentity Network Storage; do
    az provider register --namespace "Microsoft.$provider" --wait
done

say "Resource group $RESOURCE_GROUP"
if [[ "$(az group exists --name "$RESOURCE_GROUP")" != true ]]; then
    az group create --name "$RESOURCE_GROUP" --location "$LOCATION" --tags "$MADE_BY" --output none
fi

attach=()
if [[ -z "$REGISTRY" ]]; then
    registry="$(registry_name)"
    say "Container registry $registry"
    az acr show --resource-group "$RESOURCE_GROUP" --name "$registry" --output none 2>/dev/null ||
        az acr create --resource-group "$RESOURCE_GROUP" --name "$registry" --sku Basic --output none
    attach=(--attach-acr "$registry")
fi

say "AKS cluster $CLUSTER"
if az aks show --resource-group "$RESOURCE_GROUP" --name "$CLUSTER" --output none 2>/dev/null; then
    az aks wait --resource-group "$RESOURCE_GROUP" --name "$CLUSTER" --created
else
    access=()
    [[ "$RBAC" == true ]] || access=(--disable-rbac)
    # Azure CNI, since NMI refuses kubenet: there a pod could take another pod's address.
    az aks create --resource-group "$RESOURCE_GROUP" --name "$CLUSTER" --location "$LOCATION" \
        --node-count "$NODE_COUNT" --network-plugin azure --enable-managed-identity \
        --generate-ssh-keys "${attach[@]}" "${access[@]}" --output none
fi

say "Credentials for kubectl, as context $KUBE_CONTEXT"
az aks get-credentials --resource-group "$RESOURCE_GROUP" --name "$CLUSTER" --context "$KUBE_CONTEXT" \
    --overwrite-existing
kube get nodes --output wide
