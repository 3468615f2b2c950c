#!/usr/bin/env bash
# The tutorial without Azure, step by step and with kubectl: a sandbox, MIC and NMI as three processes of this machine,
# and the demo as the process of a pod. No root, no account. Everything is stopped at the end.
# (`make demo` does the same without kubectl, and tells more about each step.)
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"
need kubectl curl
programs="$PROJECT/.venv/bin"
[[ -x "$programs/podidentity" ]] || fail "$programs is not there yet: run 'make demo' once, which makes it"

work="$(mktemp -d)"
started=()
# Called by the trap. What was started is ended by its process ID, last first; what does not end in 10 s is killed.
# shellcheck disable=SC2317,SC2329
stop_all() {
    local index process deadline
    for ((index = ${#started[@]} - 1; index >= 0; index--)); do
        process="${started[index]}"
        kill "$process" 2>/dev/null || continue
        deadline=$((SECONDS + 10))
        while kill -0 "$process" 2>/dev/null; do
            ((SECONDS < deadline)) || kill -KILL "$process"
            sleep 0.1
        done
    done
    rm -rf -- "$work"
}
trap stop_all EXIT
trap 'exit 130' INT TERM

# Run a program in the background, with its output in a file of that name: start NAME COMMAND...
start() {
    local name="$1"
    shift
    : >"$work/$name.log"
    "$@" >"$work/$name.log" 2>&1 &
    started+=("$!")
}

# Show the first line of a program's output that has TEXT, once it is there: shows NAME TEXT
shows() {
    local deadline=$((SECONDS + 30))
    until grep --max-count 1 --fixed-strings -- "$2" "$work/$1.log"; do
        if ((SECONDS >= deadline)) || ! kill -0 "${started[-1]}" 2>/dev/null; then
            tail -n 20 "$work/$1.log" >&2
            fail "$1 did not print '$2'"
        fi
        sleep 0.1
    done
}

# A value of a JSON file: value FILE KEY...
value() {
    "$programs/python" -c 'import json, sys
found = json.load(open(sys.argv[1]))
for key in sys.argv[2:]:
    found = found[key]
print(found)' "$@"
}

say "A cluster and an Azure"
start sandbox "$programs/podidentity" sandbox --state-dir "$work/state"
shows sandbox "The sandbox is up"
grep '^export ' "$work/sandbox.log" | tee "$work/exports"
# shellcheck source=/dev/null
source "$work/exports"
export KUBE_CONTEXT=sandbox
azure="$work/state/azure.json"
resource_manager="$(value "$AZURE_ENVIRONMENT_FILEPATH" resourceManagerEndpoint)"
resource_manager="${resource_manager%/}"
subscription="$(value "$azure" subscriptionId)"
group="$(value "$azure" resourceGroup)"

say "Custom resource definitions"
kube apply --filename "$PROJECT/deploy/chart/crds"
node="$(kube get nodes --output 'jsonpath={.items[0].metadata.name}')"
metadata="$(grep --only-matching "$node: http://.*" "$work/sandbox.log")"
metadata="${metadata##*http://}"

say "MIC"
start mic env MIC_POD_NAMESPACE=default "$programs/mic" --kubeconfig="$KUBECONFIG" --cloudconfig="$azure" \
    --http-probe-port=0 --prometheus-port=0 --identity-grace-period=2s  # else the end of this walk takes a minute
shows mic "sync thread started"

say "NMI for node $node"
# Nothing is intercepted here: that needs root. So the pod is told NMI's address, in the variable that SDKs heed.
start nmi "$programs/nmi" --node="$node" --interception=false --allow-network-plugin-kubenet --nmi-port=0 \
    --metadata-ip="${metadata%:*}" --metadata-port="${metadata##*:}" --http-probe-port=0 --prometheus-port=0
shows nmi "listening on"
nmi="$(sed --quiet 's/.*listening on //p' "$work/nmi.log")"

say "An identity in Azure (az identity create)"
token_request() {
    printf 'grant_type=client_credentials&client_id=%s&client_secret=%s&scope=%s/.default' \
        "$(value "$azure" aadClientId)" "$(value "$azure" aadClientSecret)" "$resource_manager"
}
token_request | curl --silent --show-error --fail --cacert "$SSL_CERT_FILE" --data @- --output "$work/token.json" \
    "$AZURE_AUTHORITY_HOST/$(value "$azure" tenantId)/oauth2/v2.0/token"
identity="/subscriptions/$subscription/resourceGroups/$group/providers/Microsoft.ManagedIdentity/userAssignedIdentities/demo-aad1"
printf 'header = "Authorization: Bearer %s"' "$(value "$work/token.json" access_token)" |
    curl --silent --show-error --fail --cacert "$SSL_CERT_FILE" --config - --request PUT --header 'Content-Type: application/json' \
        --data '{"location": "westeurope"}' --output "$work/identity.json" \
        "$resource_manager$identity?api-version=2023-01-31"
client_id="$(value "$work/identity.json" properties clientId)"
echo "$identity has the client ID $client_id"

say "AzureIdentity, AzureIdentityBinding and the demo pod"
for manifest in aadpodidentity aadpodidentitybinding deployment; do
    sed -e "s|<RESOURCE_ID>|$identity|" -e "s|<CLIENT_ID>|$client_id|" \
        -e "s|<SUBSCRIPTION_ID>|$subscription|" -e "s|<RESOURCE_GROUP>|$group|" \
        "$PROJECT/deploy/demo/$manifest.yaml" | kube apply --filename -
done
kube rollout status deployment/demo --timeout 30s
pod_address="$(kube get pods --selector app=demo --output 'jsonpath={.items[0].status.podIP}')"

say "The pod's process, with the pod's address $pod_address"
start demo env POD_IP="$pod_address" RESOURCE_MANAGER="$resource_manager" \
    AZURE_POD_IDENTITY_AUTHORITY_HOST="http://$nmi" \
    "$programs/python" -m apps.demo --subscription-id "$subscription" --resource-group "$group" \
    --identity-client-id "$client_id"
shows demo "virtual machines:" >"$work/last"

say "Did it work? 1. The event 'binding applied'"
kube get events --field-selector involvedObject.name=demo-azure-id-binding | grep 'binding applied'
say "2. The assignment"
kube get azureassignedidentities --output \
    'custom-columns=NAME:.metadata.name,POD:.spec.pod,NODE:.spec.nodename,STATUS:.status.status'
say "3. NMI's answers"
shows nmi "status (200) took"
say "4. What the demo pod printed"
cat "$work/demo.log"
if grep --quiet FAILED "$work/demo.log"; then
    fail "the demo pod could not do all of its steps"
fi

say "The pod goes, and MIC takes the identity off the node"
kube delete deployment/demo
kube wait --for delete azureassignedidentities --all --timeout 60s
say "All of it happened"
