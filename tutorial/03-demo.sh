#!/usr/bin/env bash
# Section 3: an Azure identity, its AzureIdentity and AzureIdentityBinding, and a pod that uses it.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"
need az kubectl
signed_in

say "Azure identity $IDENTITY"
az identity create --resource-group "$RESOURCE_GROUP" --name "$IDENTITY" --output none
identity_value() {
    az identity show --resource-group "$RESOURCE_GROUP" --name "$IDENTITY" --query "$1" --output tsv
}
resource_id="$(identity_value id)"
client_id="$(identity_value clientId)"
principal_id="$(identity_value principalId)"
node_group="$(cluster_value nodeResourceGroup)"
subscription="$(az account show --query id --output tsv)"

say "MIC may assign the identity to nodes"
grant "$(kubelet_identity)" "Managed Identity Operator" "$resource_id"

say "The identity may read the nodes' resource group, $node_group, for the demo's list"
grant "$principal_id" Reader "$(az group show --name "$node_group" --query id --output tsv)"

registry="$REGISTRY"
if [[ -z "$registry" ]]; then
    registry="$(az acr show --name "$(registry_name)" --query loginServer --output tsv)"
fi
# Put the real values into one of the demo's manifests, and apply it to the namespace "default".
apply_demo() {
    sed -e "s|<RESOURCE_ID>|$resource_id|" \
        -e "s|<CLIENT_ID>|$client_id|" \
        -e "s|<SUBSCRIPTION_ID>|$subscription|" \
        -e "s|<RESOURCE_GROUP>|$node_group|" \
        -e "s|image: podidentity-demo:.*|image: $registry/podidentity-demo:$VERSION|" \
        "$PROJECT/deploy/demo/$1" | kube apply --namespace default --filename -
}

say "AzureIdentity, AzureIdentityBinding and the demo pod"
apply_demo aadpodidentity.yaml
apply_demo aadpodidentitybinding.yaml
apply_demo deployment.yaml
kube rollout status --namespace default deployment/demo --timeout 5m

exec "$TUTORIAL/check.sh"
