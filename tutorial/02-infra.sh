#!/usr/bin/env bash
# Section 2: the images, MIC's rights in Azure, the four CRDs, MIC and NMI.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"
need az kubectl
signed_in

if [[ -z "$REGISTRY" ]]; then
    registry="$(registry_name)"
    REGISTRY="$(az acr show --name "$registry" --query loginServer --output tsv)"
    cd -- "$PROJECT"
    for program in mic nmi demo; do
        image="podidentity-$program:$VERSION"
        if az acr repository show --name "$registry" --image "$image" --output none 2>/dev/null; then
            say "Image $image is in $registry already"
        else
            say "Building image $image in $registry"
            az acr build --registry "$registry" --image "$image" --file deploy/Dockerfile --target "$program" .
        fi
    done
fi

say "MIC may change the identities of the nodes' scale sets and VMs"
node_group="$(cluster_value nodeResourceGroup)"
grant "$(kubelet_identity)" "Virtual Machine Contributor" \
    "$(az group show --name "$node_group" --query id --output tsv)"

say "Custom resource definitions"
kube apply --filename "$PROJECT/deploy/chart/crds"
kube wait --for condition=Established --timeout 60s --filename "$PROJECT/deploy/chart/crds"

if [[ "$RBAC" == true ]]; then
    infra=deployment-rbac.yaml
else
    infra=deployment.yaml
fi
say "MIC and NMI, from deploy/infra/$infra"
kube apply --filename "$PROJECT/deploy/infra/mic-exception.yaml"
sed "s|image: podidentity-\([a-z]*\):.*|image: $REGISTRY/podidentity-\1:$VERSION|" "$PROJECT/deploy/infra/$infra" |
    kube apply --filename -
kube rollout status --namespace default deployment/mic --timeout 5m
kube rollout status --namespace default daemonset/nmi --timeout 5m
kube get pods --namespace default --selector 'component in (mic, nmi)' --output wide
