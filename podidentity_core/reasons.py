"""Every reason why a pod has not got an identity: a stable code, a sentence, and what to do.

The same code appears in NMI's JSON error, in Events, log lines and metric labels, and on the troubleshooting page,
which is generated from this table. A decision carries its reason as data: an `Explanation`.

Codes: PI1xx a pod or its objects do not match; PI2xx not yet; PI3xx a token request is wrong or refused;
PI4xx an object cannot be used; PI5xx Azure refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Reason(Enum):
    """A reason: its code, its sentence (with the names of the objects left open), and its remedy."""

    NOT_SCHEDULED = (
        "PI101",
        "pod {pod} has no assigned node yet",
        "wait for the scheduler; `kubectl describe pod` says what it waits for",
    )
    NO_BINDING = (
        "PI102",
        "no AzureIdentityBinding selects pod {pod} (label aadpodidbinding={label})",
        "create an AzureIdentityBinding whose spec.selector is the pod's label value",
    )
    IDENTITY_MISSING = (
        "PI103",
        "AzureIdentityBinding {binding} names the AzureIdentity {identity}, which does not exist",
        "create the AzureIdentity in the binding's namespace, or correct spec.azureIdentity",
    )
    OTHER_NAMESPACE = (
        "PI104",
        "AzureIdentityBinding {binding} and AzureIdentity {identity} do not serve pod {pod} of another namespace",
        "put pod, binding and identity into one namespace, or drop the namespaced behaviour",
    )
    NAME_TAKEN = (
        "PI105",
        "AzureIdentity {identity} does not reach pod {pod}: AzureIdentity {holder} has the same name and comes first",
        "give the two AzureIdentities different names, or use the namespaced mode",
    )
    POD_FINISHED = (
        "PI106",
        "pod {pod} has finished ({phase})",
        "nothing: a finished pod needs no identity",
    )
    EMPTY_LABEL = (
        "PI107",
        "pod {pod} has an empty label aadpodidbinding",
        "set the label to the spec.selector of an AzureIdentityBinding",
    )
    HOST_UNKNOWN = (
        "PI108",
        "node {node} of pod {pod} stands for no VM or scale set: {problem}",
        "the cloud provider sets spec.providerID; check its logs on that node",
    )

    NOT_ASSIGNED_YET = (
        "PI201",
        "the identity of pod {pod} was not assigned within {waited_s} s; MIC notes: {noted}",
        "look at the events of the binding and at MIC's log; Azure may still be at work",
    )

    NOT_READ_YET = (
        "PI202",
        "node {node} has not yet read from the API server which pods it has",
        "retry; if it lasts, NMI's /readyz and log say why",
    )
    ENDING = (
        "PI203",
        "this NMI is ending, another one takes over",
        "retry",
    )
    TOO_MANY_WAIT = (
        "PI204",
        "too many requests {whose} wait for an answer",
        "ask for a token once and keep it until it expires, as Azure SDKs do",
    )

    HEADER_MISSING = (
        "PI301",
        "Required metadata header not specified",
        "send the header `Metadata: true`",
    )
    RESOURCE_MISSING = (
        "PI302",
        "Required query variable 'resource' is missing",
        "name the resource that the token is for, e.g. resource=https://management.azure.com/",
    )
    BAD_QUERY = (
        "PI303",
        "the query is malformed: {problem}",
        "percent-encode the query, and name each parameter once",
    )
    TWO_SELECTORS = (
        "PI304",
        "more than one of client_id, object_id, msi_res_id and mi_res_id is given",
        "name the identity in one way",
    )
    UNKNOWN_POD = (
        "PI305",
        "no running pod with address {address} is known on node {node}",
        "retry; a pod with hostNetwork has no identity of its own",
    )
    AMBIGUOUS_POD = (
        "PI306",
        "several running pods on node {node} claim address {address}",
        "retry once the former pod has ended",
    )
    NO_IDENTITY = (
        "PI307",
        "no azure identity is assigned to pod {pod}",
        "check the pod's label aadpodidbinding, its AzureIdentityBinding and MIC's events",
    )
    NO_SUCH_IDENTITY = (
        "PI308",
        "no azure identity found for request {selector} of pod {pod}",
        "ask for an identity that is bound to the pod, or bind it",
    )
    NO_CLIENT_ID = (
        "PI309",
        "AzureIdentity {identity} has no clientID",
        "set spec.clientID: without it the node's own identity would answer",
    )
    PATH_REFUSED = (
        "PI310",
        "Invalid request",
        "ask for /metadata/identity/oauth2/token exactly",
    )
    INSTANCE_BLOCKED = (
        "PI311",
        "Request blocked by AAD Pod Identity NMI",
        "the operator blocks instance metadata (--block-instance-metadata)",
    )
    UNSUPPORTED_KIND = (
        "PI312",
        "AzureIdentity {identity} is of type {kind}, for which there is no token source",
        "use a user-assigned identity (type 0)",
    )
    UPSTREAM_AWAY = (
        "PI313",
        "the token service did not answer: {problem}",
        "retry; the instance metadata service of the node may be restarting",
    )
    FORWARDED = (
        "PI314",
        "Header contains 'X-Forwarded-For' are not supported.",
        "ask without a proxy",
    )
    NO_SUCH_PATH = (
        "PI316",
        "path {path} is not served",
        "ask for a documented path of the metadata service",
    )
    CREDENTIAL_UNUSABLE = (
        "PI317",
        "no token can be had: {problem}",
        "correct the AzureIdentity, or the Secret that it names",
    )
    NOT_FROM_HOST = (
        "PI318",
        "request remote address is not from a host",
        "ask for /metadata/identity/oauth2/token; /host/token is for programs of the node",
    )
    POD_NOT_NAMED = (
        "PI319",
        "missing 'podname' and 'podns' from request header",
        "name the pod with the headers podname and podns",
    )
    UPSTREAM_REFUSED = (
        "PI320",
        "the token service refuses: {problem}",
        "its own words say what is wrong with the identity or the resource",
    )
    UPSTREAM_BUSY = (
        "PI321",
        "the token service asks for patience: {problem}",
        "ask again after the time that Retry-After names",
    )
    METHOD_REFUSED = (
        "PI315",
        "method {method} is not allowed here",
        "use GET",
    )

    BAD_RESOURCE_ID = (
        "PI401",
        "AzureIdentity {identity} is ignored: {problem}",
        "correct spec.resourceID",
    )
    BAD_OBJECT = (
        "PI402",
        "{kind} {name} is ignored: {problem}",
        "correct the field that is named",
    )

    HOST_REFUSES = (
        "PI501",
        "Azure refuses to put AzureIdentity {identity} on {host}: {problem}",
        "check that the identity exists and that MIC has the role Managed Identity Operator on it",
    )
    HOST_FAILS = (
        "PI502",
        "the identities of {host} could not be changed: {problem}",
        "MIC tries again by itself; the error says what Azure wants",
    )

    def __init__(self, code: str, sentence: str, remedy: str) -> None:
        self.code = code
        self.sentence = sentence
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Explanation:
    """A reason together with the objects it is about; equal explanations are equal values."""

    reason: Reason
    facts: tuple[tuple[str, str], ...] = ()

    @property
    def code(self) -> str:
        """The stable code, e.g. `PI102`."""
        return self.reason.code

    @property
    def message(self) -> str:
        """The sentence with the objects' names filled in."""
        return self.reason.sentence.format_map(dict(self.facts))

    def __str__(self) -> str:
        return f"{self.message} ({self.code}: {self.reason.remedy})"


def because(reason: Reason, **facts: str) -> Explanation:
    """Give *reason* for the objects named in *facts*, which fill the sentence's open places."""
    return Explanation(reason, tuple(sorted(facts.items())))
