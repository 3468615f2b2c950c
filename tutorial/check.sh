#!/usr/bin/env bash
# "Did it work?": shows the four places to look at, in the order in which things happen. Changes nothing.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"
need kubectl

# Run a check again until it succeeds, for at most five minutes, which new roles in Azure may need:
# eventually WHAT COMMAND...
eventually() {
    local what="$1" deadline=$((SECONDS + 300))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || fail "$what is missing: see 'If it did not work' in tutorial/README.md"
        sleep 2
    done
}

binding_applied() {
    kube get events --namespace default --field-selector involvedObject.name=demo-azure-id-binding |
        grep 'binding applied'
}

assigned() {
    kube get azureassignedidentities --namespace default \
        --output 'custom-columns=NAME:.metadata.name,POD:.spec.pod,NODE:.spec.nodename,STATUS:.status.status' |
        grep -E '^demo-.* Assigned *$'
}

token_served() {
    kube logs --namespace default --selector component=nmi --since 1h --tail -1 | grep 'status (200) took' | tail -n 5
}

demo_output() {
    local last
    last="$(kube logs --namespace default deployment/demo --tail 4)"
    [[ "$last" == *'virtual machines:'* && "$last" != *FAILED* ]] && printf '%s\n' "$last"
}

say "1. MIC has put the identity on the node: event 'binding applied'"
eventually "the event 'binding applied'" binding_applied

say "2. The assignment: an AzureAssignedIdentity whose status is Assigned"
eventually "an assignment in state Assigned" assigned

say "3. NMI has answered the pod: a line 'status (200) took ...'"
eventually "NMI's line 'status (200) took ...'" token_served

say "4. What the demo pod printed"
eventually "output of the demo pod without FAILED" demo_output
