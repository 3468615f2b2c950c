"""From the cluster as it is to what must change: assignments to create, update, delete, and identities on hosts.

A plan compares what should be with what is, so carrying it out twice changes nothing. `plan` looks at everything;
`Planner` keeps a plan up to date pod by pod, and arrives at the same one.

    stored   wanted   same content   being deleted   what happens
    no       yes                                     create
    yes      no                                      delete (settling says when its identity may leave the host)
    yes      yes      yes            no              keep
    yes      yes      no             no              update
    yes      yes      any            yes             delete, then create: somebody ran `kubectl delete` on it

Source: aad-pod-identity pkg/mic/mic.go:574-853. There an edit of any annotation made assignments differ; here
content counts, so that it costs no write and no pod waits because of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from podidentity_core.matching import Match, matches, other_name
from podidentity_core.model import Assignment, Key, Pod
from podidentity_core.reasons import Explanation, Reason, because
from podidentity_core.resource_ids import Host, IdentityResource
from podidentity_core.view import ClusterView


@dataclass(frozen=True, slots=True)
class Rules:
    """How the operator wants it. *immutable* are client IDs and resource IDs, in lower case, that never
    leave a host.
    """

    namespaced: bool = False
    immutable: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Update:
    """*stored* is to get the content of *wanted*."""

    stored: Assignment
    wanted: Assignment


@dataclass(frozen=True, slots=True)
class PodPlan:
    """What must happen to the assignments of one pod; each part in a fixed order, so equal inputs give equal plans."""

    create: tuple[Assignment, ...] = ()
    update: tuple[Update, ...] = ()
    keep: tuple[Assignment, ...] = ()
    delete: tuple[Assignment, ...] = ()
    skipped: tuple[Explanation, ...] = ()


_NOTHING = PodPlan()


@dataclass(frozen=True, slots=True)
class HostNeeds:
    """What the assignments say about one host.

    *needed* must be on it, for stored assignments; *planned* will be, once their assignments are stored; *leaving* may
    go if nobody needs it. *kept* are never removed: somebody else put them there, or the operator declared them
    immutable.
    """

    host: Host
    needed: frozenset[IdentityResource] = frozenset()
    planned: frozenset[IdentityResource] = frozenset()
    leaving: frozenset[IdentityResource] = frozenset()
    kept: frozenset[IdentityResource] = frozenset()


@dataclass(frozen=True, slots=True)
class Plan:
    """What must change in the whole cluster, sorted."""

    create: tuple[Assignment, ...]
    update: tuple[Update, ...]
    delete: tuple[Assignment, ...]
    hosts: tuple[HostNeeds, ...]
    skipped: tuple[Explanation, ...]


def plan_pod(view: ClusterView, key: Key, *, namespaced: bool) -> PodPlan:
    """Plan the assignments of one pod, which need not exist any more."""
    pod = view.pods.get(key)
    found = matches(pod, view.bindings_by_selector, view.identities, namespaced=namespaced) if pod else None
    stored = {assignment.key: assignment for assignment in view.assignments_of(key)}
    if pod is None or found is None:
        return PodPlan(delete=tuple(sorted(stored.values(), key=_by_key)))
    steps = _Steps(skipped=list(found.skipped))
    for match in found.found:
        name = _name(view, pod, match.assignment, stored)
        _plan_match(view, pod, match, name, stored.pop(name, None), steps)
    steps.delete.extend(stored.values())
    return steps.freeze()


@dataclass(slots=True)
class _Steps:
    create: list[Assignment] = field(default_factory=list)
    update: list[Update] = field(default_factory=list)
    keep: list[Assignment] = field(default_factory=list)
    delete: list[Assignment] = field(default_factory=list)
    skipped: list[Explanation] = field(default_factory=list)

    def freeze(self) -> PodPlan:
        delete = tuple(sorted(self.delete, key=_by_key))
        return PodPlan(tuple(self.create), tuple(self.update), tuple(self.keep), delete, tuple(self.skipped))


def _name(view: ClusterView, pod: Pod, usual: Key, stored: Collection[Key]) -> Key:
    """The name under which an assignment is or will be stored: the original's, unless another pod's has it."""
    if usual in stored:
        return usual
    other = other_name(usual, pod.key) if stored or usual in view.assignments else usual
    return other if other in stored or usual in view.assignments else usual


def _plan_match(view: ClusterView, pod: Pod, match: Match, name: Key, stored: Assignment | None, steps: _Steps) -> None:
    if stored is not None and not stored.deleting and _says_the_same(view, stored, pod, match):
        steps.keep.append(stored)
        return
    if match.identity.host_resource is not None and view.host(pod.node) is None:
        steps.skipped.append(_host_unknown(view, pod))
        if stored is not None:
            still = stored.node == pod.node and stored.identity == match.identity
            (steps.keep if still else steps.delete).append(stored)
        return
    wanted = Assignment(name.namespace, name.name, pod.key, pod.node, match.identity, match.binding)
    if stored is None:
        steps.create.append(wanted)
        return
    same_place = view.host_of(stored) == view.host(pod.node) and _resource(stored) == _resource(wanted)
    wanted = replace(wanted, preexisting=stored.preexisting and same_place)
    if stored.deleting:
        steps.delete.append(stored)
        steps.create.append(wanted)
    else:
        steps.update.append(Update(stored, wanted))


def _resource(assignment: Assignment) -> IdentityResource | None:
    return assignment.identity.host_resource


def _says_the_same(view: ClusterView, stored: Assignment, pod: Pod, match: Match) -> bool:
    return (
        not view.is_doubted(stored)
        and stored.node == pod.node
        and stored.identity == match.identity
        and stored.binding == match.binding
        and (stored.host is None or stored.host == (view.host(pod.node) or stored.host))
    )


def _host_unknown(view: ClusterView, pod: Pod) -> Explanation:
    node = view.node(pod.node)
    problem = node.problem if node else "the node does not exist"
    return because(Reason.HOST_UNKNOWN, pod=str(pod.key), node=pod.node, problem=problem)


def _by_key(assignment: Assignment) -> Key:
    return assignment.key


@dataclass(frozen=True, slots=True)
class _Claim:
    """One assignment's say about one identity on one host."""

    host: Host
    resource: IdentityResource
    part: str
    kept: bool


class Planner:
    """A plan that is kept up to date: `refresh` the pods that a change concerns, at a cost that grows with them."""

    def __init__(self, view: ClusterView, rules: Rules = Rules()) -> None:
        self._view = view
        self._rules = rules
        self._plans: dict[Key, PodPlan] = {}
        self._claims: dict[Key, tuple[_Claim, ...]] = {}
        self._by_host: dict[Host, _HostClaims] = {}

    def refresh(self, pods: Iterable[Key]) -> set[Host]:
        """Plan *pods* again; returns the hosts whose needs may have changed."""
        touched: set[Host] = set()
        for key in pods:
            fresh = plan_pod(self._view, key, namespaced=self._rules.namespaced)
            claims = self._claims_of(fresh)
            if (former := self._claims.get(key, ())) != claims:
                touched.update(self._exchange(key, former, claims))
            if fresh == _NOTHING:
                self._plans.pop(key, None)
                self._claims.pop(key, None)
            else:
                self._plans[key] = fresh
                self._claims[key] = claims
        return touched

    def pod_plan(self, key: Key) -> PodPlan:
        """The plan of one pod as of the last refresh."""
        return self._plans.get(key, _NOTHING)

    def planned_pods(self) -> tuple[Key, ...]:
        """The pods for which there is anything to do, to keep or to explain."""
        return tuple(self._plans)

    def host_needs(self, host: Host) -> HostNeeds:
        """What the assignments say about one host as of the last refresh."""
        claims = self._by_host.get(host)
        return claims.needs(host) if claims else HostNeeds(host)

    def pods_on(self, host: Host) -> tuple[Key, ...]:
        """Pods whose assignments have a say about *host*."""
        claims = self._by_host.get(host)
        return tuple(claims.pods) if claims else ()

    def take_reconsidered(self, host: Host) -> tuple[Key, ...]:
        """Pods with an assignment that is to leave *host* and whose identity the others have come to see otherwise
        since the last call: needed, planned or kept there, or no longer.
        """
        claims = self._by_host.get(host)
        return claims.take_reconsidered() if claims else ()

    def hosts(self) -> tuple[Host, ...]:
        """Hosts that some assignment has a say about."""
        return tuple(self._by_host)

    def plan(self) -> Plan:
        """The whole plan, sorted."""
        plans = self._plans.values()
        return Plan(
            create=tuple(sorted((a for p in plans for a in p.create), key=_by_key)),
            update=tuple(sorted((u for p in plans for u in p.update), key=lambda u: u.stored.key)),
            delete=tuple(sorted((a for p in plans for a in p.delete), key=_by_key)),
            hosts=tuple(self.host_needs(host) for host in sorted(self._by_host, key=lambda host: host.key)),
            skipped=tuple(sorted((s for p in plans for s in p.skipped), key=lambda s: (s.code, s.facts))),
        )

    def _claims_of(self, pod: PodPlan) -> tuple[_Claim, ...]:
        claims: list[_Claim] = []
        for assignment in pod.keep:
            self._claim(assignment, "needed", claims)
        for assignment in pod.create:
            self._claim(assignment, "planned", claims)
        for update in pod.update:
            self._claim(update.wanted, "planned", claims)
            self._claim(update.stored, "leaving", claims)
        for assignment in pod.delete:
            self._claim(assignment, "leaving", claims)
        return tuple(claims)

    def _claim(self, assignment: Assignment, part: str, claims: list[_Claim]) -> None:
        host = self._view.host_of(assignment)
        resource = assignment.identity.host_resource
        if host is not None and resource is not None:
            immutable = self._rules.immutable
            kept = assignment.identity.client_id.lower() in immutable or resource.key in immutable
            claims.append(_Claim(host, resource, part, assignment.preexisting or kept))

    def _exchange(self, key: Key, former: Sequence[_Claim], claims: Sequence[_Claim]) -> set[Host]:
        for claim in former:
            self._by_host[claim.host].take_back(key, claim)
        for claim in claims:
            if claim.host not in self._by_host:
                self._by_host[claim.host] = _HostClaims()
            self._by_host[claim.host].make(key, claim)
        hosts = {claim.host for claim in (*former, *claims)}
        for host in hosts:
            if not self._by_host[host].pods:
                del self._by_host[host]
        return hosts


class _HostClaims:
    """All claims about one host, counted, so that one pod's change costs the same on a host with thousands."""

    def __init__(self) -> None:
        self.pods: Counter[Key] = Counter()
        self._leaving: dict[IdentityResource, Counter[Key]] = {}
        self._reconsidered: set[IdentityResource] = set()
        self._counts: dict[str, Counter[IdentityResource]] = {
            "needed": Counter(),
            "planned": Counter(),
            "leaving": Counter(),
            "kept": Counter(),
        }

    def make(self, pod: Key, claim: _Claim) -> None:
        self.pods[pod] += 1
        if claim.part == "leaving":
            self._leaving.setdefault(claim.resource, Counter())[pod] += 1
        for part in _parts(claim):
            count = self._counts[part]
            count[claim.resource] += 1
            if count[claim.resource] == 1:
                self._reconsider(part, claim.resource)

    def take_back(self, pod: Key, claim: _Claim) -> None:
        _decrement(self.pods, pod)
        if claim.part == "leaving":
            _decrement(self._leaving[claim.resource], pod)
            if not self._leaving[claim.resource]:
                del self._leaving[claim.resource]
        for part in _parts(claim):
            _decrement(self._counts[part], claim.resource)
            if claim.resource not in self._counts[part]:
                self._reconsider(part, claim.resource)

    def _reconsider(self, part: str, resource: IdentityResource) -> None:
        if part != "leaving":
            self._reconsidered.add(resource)

    def take_reconsidered(self) -> tuple[Key, ...]:
        resources, self._reconsidered = self._reconsidered, set()
        return tuple({pod for resource in resources for pod in self._leaving.get(resource, ())})

    def needs(self, host: Host) -> HostNeeds:
        return HostNeeds(host, **{part: frozenset(count) for part, count in self._counts.items()})


def _parts(claim: _Claim) -> tuple[str, ...]:
    return (claim.part, "kept") if claim.kept else (claim.part,)


T = TypeVar("T")


def _decrement(counter: Counter[T], item: T) -> None:
    counter[item] -= 1
    if not counter[item]:
        del counter[item]


def plan(view: ClusterView, rules: Rules = Rules()) -> Plan:
    """Plan the whole cluster."""
    planner = Planner(view, rules)
    planner.refresh(view.concerned_pods())
    return planner.plan()
