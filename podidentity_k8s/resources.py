"""What is watched: the path, the selection, and how an object is read, for MIC and for NMI."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from podidentity_core.errors import TransientError
from podidentity_core.model import (
    BINDING_LABEL,
    Assignment,
    Binding,
    ExceptionRule,
    Identity,
    Key,
    Node,
    Pod,
    Seen,
    Thing,
    Unusable,
)
from podidentity_k8s import convert
from podidentity_k8s.bodies import node_label
from podidentity_k8s.wire import (
    GROUP_VERSION,
    NODE_LABEL,
    Bare,
    Meta,
    Page,
    WatchEvent,
    WireAssignment,
    WireExceptionRule,
    WireNode,
    WirePod,
)

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Read:
    """An object that exists: what identifies this version of it, and what it means."""

    key: Key
    uid: str
    version: str
    change: Seen | Unusable


@dataclass(frozen=True, slots=True)
class Removed:
    """The object no longer exists, or no longer fits the selection; *read* is its last version."""

    read: Read


@dataclass(frozen=True, slots=True)
class Bookmark:
    """Nothing has changed up to *version*."""

    version: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The server ends the watch, and says why."""

    said: str


@dataclass(frozen=True, slots=True)
class ReadPage:
    """One page of a list. *next_token* is empty on the last one."""

    objects: tuple[Read, ...]
    version: str
    next_token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One kind of objects to watch.

    *page* and *event* are the wire models by which all is read at once; *item* reads a single object out of a page
    in which some object is odd.
    """

    kind: type[Thing]
    path: str
    page: type[Page[Any]]
    event: type[WatchEvent[Any]]
    item: Callable[[Any], Any]
    convert: Callable[[Any], Thing | Unusable]
    selection: Mapping[str, str] = field(default_factory=dict)

    def read_page(self, raw: bytes) -> ReadPage:
        """Read a page. One object of a wrong form makes the page cost more, and hides none of the others.

        Raises:
            TransientError: when it is no list at all.
        """
        try:
            page = self.page.model_validate_json(raw)
            objects = tuple(self._read(item) for item in page.items or ())
        except ValidationError:
            page = _loosely(Page[Any], self.path, raw)
            objects = tuple(self._read_odd(item) for item in page.items or ())
        return ReadPage(objects, page.metadata.resource_version, page.metadata.continue_token or "")

    def read_event(self, line: bytes) -> Read | Removed | Bookmark | Refused:
        """Read a line of a watch.

        Raises:
            TransientError: when it is no watch event: a proxy's page, or a line that was cut.
        """
        try:
            event = self.event.model_validate_json(line)
            read: Callable[[Any], Read] = self._read
        except ValidationError:
            event = _loosely(WatchEvent[Any], self.path, line)
            read = self._read_odd
        match event.type:
            case "ADDED" | "MODIFIED":
                return read(event.object)
            case "DELETED":
                return Removed(read(event.object))
            case "BOOKMARK":
                return Bookmark(_meta(event.object).resource_version)
            case _:
                status = _loosely(WatchEvent[Any], self.path, line).object
                said = status if isinstance(status, dict) else {}
                return Refused(f"{said.get('message', event.type)} ({said.get('code', 'no code')})")

    def _read(self, item: Any) -> Read:
        meta = _meta(item)
        try:
            made = self.convert(item)
        except ValidationError as error:  # of an object that is kept whole, so that only now its fields are looked at
            made = convert.unusable_of(self.kind, item, error)
        change = made if isinstance(made, Unusable) else Seen(made)
        return Read(Key(meta.namespace, meta.name), meta.uid, meta.resource_version, change)

    def _read_odd(self, raw: Any) -> Read:
        try:
            return self._read(self.item(raw))
        except ValidationError as error:
            meta = _meta(raw)
            unusable = convert.unusable_of(self.kind, raw, error)
            return Read(Key(meta.namespace, meta.name), meta.uid, meta.resource_version, unusable)


def _meta(item: Any) -> Meta:
    return item.metadata if isinstance(item, Bare) else convert.bare_of(item).metadata


def _loosely(model: type[Model], path: str, raw: bytes) -> Model:
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise TransientError(f"GET {path}: the answer is not what an API server sends") from error


def _whole(raw: Any) -> Any:
    return raw


def _pods(selection: Mapping[str, str], read: Callable[[WirePod], Pod]) -> Resource:
    return Resource(
        kind=Pod,
        path="/api/v1/pods",
        page=Page[WirePod],
        event=WatchEvent[WirePod],
        item=WirePod.model_validate,
        convert=read,
        selection=selection,
    )


def _nodes() -> Resource:
    return Resource(
        kind=Node,
        path="/api/v1/nodes",
        page=Page[WireNode],
        event=WatchEvent[WireNode],
        item=WireNode.model_validate,
        convert=convert.node_of,
    )


def _assignments(selection: Mapping[str, str]) -> Resource:
    return Resource(
        kind=Assignment,
        path=f"/apis/{GROUP_VERSION}/azureassignedidentities",
        page=Page[WireAssignment],
        event=WatchEvent[WireAssignment],
        item=WireAssignment.model_validate,
        convert=convert.assignment_of,
        selection=selection,
    )


def _kept_whole(kind: type[Thing], plural: str, read: Callable[[dict[str, Any]], Thing | Unusable]) -> Resource:
    """A resource whose objects assignments embed, so that nothing of them may be lost."""
    return Resource(
        kind=kind,
        path=f"/apis/{GROUP_VERSION}/{plural}",
        page=Page[dict[str, Any]],
        event=WatchEvent[dict[str, Any]],
        item=_whole,
        convert=read,
    )


def _exception_rules() -> Resource:
    return Resource(
        kind=ExceptionRule,
        path=f"/apis/{GROUP_VERSION}/azurepodidentityexceptions",
        page=Page[WireExceptionRule],
        event=WatchEvent[WireExceptionRule],
        item=WireExceptionRule.model_validate,
        convert=convert.exception_rule_of,
    )


def _identities() -> Resource:
    return _kept_whole(Identity, "azureidentities", convert.identity_of)


def _bindings() -> Resource:
    return _kept_whole(Binding, "azureidentitybindings", convert.binding_of)


def mic_resources() -> tuple[Resource, ...]:
    """What MIC decides from.

    The original caches every pod of the cluster. Those with the label suffice: one that loses it is reported as gone.
    """
    return (
        _nodes(),
        _identities(),
        _bindings(),
        _pods({"labelSelector": BINDING_LABEL}, convert.labelled_pod_of),
        _assignments({}),
    )


def pods_of_node(node: str) -> Resource:
    """The pods on *node*, with their addresses."""
    return _pods({"fieldSelector": f"spec.nodeName={node}"}, convert.pod_of)


def nmi_resources(node: str, *, scale_features: bool = True) -> tuple[Resource, ...]:
    """What NMI on *node* decides from in standard mode; without *scale_features* the assignments of all nodes."""
    return (
        pods_of_node(node),
        _assignments({"labelSelector": f"{NODE_LABEL}={node_label(node)}"} if scale_features else {}),
        _exception_rules(),
    )


def managed_nmi_resources(node: str) -> tuple[Resource, ...]:
    """What NMI on *node* decides from in managed mode."""
    return (pods_of_node(node), _identities(), _bindings(), _exception_rules())
