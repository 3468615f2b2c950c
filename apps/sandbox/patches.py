"""The three patch formats of the Kubernetes API: JSON merge patch, JSON patch, strategic merge patch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from apps.sandbox.status import bad_request, patch_failed

Body = dict[str, Any]
_MERGE_KEYS: Mapping[str, tuple[str, ...]] = {
    "addresses": ("type",),
    "conditions": ("type",),
    "containers": ("name",),
    "env": ("name",),
    "hostAliases": ("ip",),
    "imagePullSecrets": ("name",),
    "initContainers": ("name",),
    "ownerReferences": ("uid",),
    "ports": ("containerPort", "port"),
    "secrets": ("name",),
    "taints": ("key",),
    "volumeMounts": ("mountPath",),
    "volumes": ("name",),
}
"""Lists of objects that a strategic merge joins by a key of their items; all other lists are replaced."""


def merge_patch(target: Any, patch: Any) -> Any:
    """Return *target* with an RFC 7386 patch applied; neither argument is changed."""
    if not isinstance(patch, Mapping):
        return patch
    merged: Body = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def strategic_merge(target: Any, patch: Any) -> Any:
    """Return *target* with a strategic merge patch applied, as far as `kubectl apply` makes use of it."""
    if not isinstance(patch, Mapping):
        return patch
    if patch.get("$patch") == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    merged: Body = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        _merge_key(merged, key, value)
    return merged


def _merge_key(merged: Body, key: str, value: Any) -> None:
    if key.startswith("$deleteFromPrimitiveList/"):
        name = key.partition("/")[2]
        merged[name] = [item for item in merged.get(name, ()) if item not in value]
    elif key == "$retainKeys":
        for stale in set(merged) - set(value):
            del merged[stale]
    elif key.startswith("$"):
        return  # $setElementOrder, $patch: the order of items is not kept here
    elif value is None:
        merged.pop(key, None)
    elif isinstance(value, list):
        merged[key] = _merge_list(key, merged.get(key) or [], value)
    else:
        merged[key] = strategic_merge(merged.get(key), value)


def _merge_list(name: str, target: Sequence[Any], patch: Sequence[Any]) -> list[Any]:
    if name == "finalizers":
        return [*target, *(item for item in patch if item not in target)]
    if name not in _MERGE_KEYS or not all(isinstance(item, Mapping) for item in [*target, *patch]):
        return list(patch)
    merged = list(target)
    for item in patch:
        key = next((key for key in _MERGE_KEYS[name] if key in item), None)
        at = next((i for i, old in enumerate(merged) if key and old.get(key) == item[key]), None)
        if item.get("$patch") == "delete":
            merged = [old for i, old in enumerate(merged) if i != at]
        elif at is None:
            merged.append(strategic_merge({}, item))
        else:
            merged[at] = strategic_merge(merged[at], item)
    return merged


def json_patch(target: Any, operations: Any) -> Any:
    """Return *target* with RFC 6902 operations applied. Raises StatusError: 400 if malformed, 422 if one fails."""
    if not isinstance(operations, list):
        raise bad_request("json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    document = copy.deepcopy(target)
    for operation in operations:
        apply = _OPERATIONS.get(operation.get("op"))
        if apply is None or not isinstance(operation.get("path"), str):
            raise bad_request(f"Unexpected kind: {operation.get('op')}")
        document = apply(document, operation)
    return document


def _steps(path: str) -> list[str]:
    return [step.replace("~1", "/").replace("~0", "~") for step in path.split("/")[1:]]


def _container(document: Any, path: str, op: str) -> tuple[Any, str]:
    *way, last = _steps(path) or [""]
    for step in way:
        try:
            document = document[int(step)] if isinstance(document, list) else document[step]
        except (KeyError, IndexError, ValueError, TypeError):
            raise _missing(op, "path", path) from None
    if not isinstance(document, dict | list):
        raise _missing(op, "path", path)
    return document, last


def _missing(op: str, what: str, path: str) -> Exception:
    return patch_failed(f"{op} operation does not apply: doc is missing {what}: {path}: missing value")


def _look_up(document: Any, path: str, op: str) -> Any:
    if not path:
        return document
    holder, last = _container(document, path, op)
    try:
        return holder[int(last)] if isinstance(holder, list) else holder[last]
    except (KeyError, IndexError, ValueError):
        raise _missing(op, "key", path) from None


def _add(document: Any, operation: Body) -> Any:
    path = operation["path"]
    if not path:
        return operation.get("value")
    holder, last = _container(document, path, "add")
    if isinstance(holder, dict):
        holder[last] = operation.get("value")
        return document
    index = len(holder) if last == "-" else int(last)
    if not 0 <= index <= len(holder):
        raise _missing("add", "path", path)
    holder.insert(index, operation.get("value"))
    return document


def _remove(document: Any, operation: Body) -> Any:
    _look_up(document, operation["path"], "remove")
    holder, last = _container(document, operation["path"], "remove")
    del holder[int(last) if isinstance(holder, list) else last]
    return document


def _replace(document: Any, operation: Body) -> Any:
    _look_up(document, operation["path"], "replace")
    if not operation["path"]:
        return operation.get("value")
    holder, last = _container(document, operation["path"], "replace")
    holder[int(last) if isinstance(holder, list) else last] = operation.get("value")
    return document


def _test(document: Any, operation: Body) -> Any:
    path = operation["path"]
    if _look_up(document, path, "test") != operation.get("value"):
        raise patch_failed(f"testing value {path} failed: test failed")
    return document


def _copy(document: Any, operation: Body) -> Any:
    value = _look_up(document, operation.get("from", ""), "copy")
    return _add(document, {"path": operation["path"], "value": copy.deepcopy(value)})


def _move(document: Any, operation: Body) -> Any:
    value = _look_up(document, operation.get("from", ""), "move")
    without = _remove(document, {"path": operation["from"]})
    return _add(without, {"path": operation["path"], "value": value})


_OPERATIONS: Mapping[str, Callable[[Any, Body], Any]] = {
    "add": _add,
    "remove": _remove,
    "replace": _replace,
    "test": _test,
    "copy": _copy,
    "move": _move,
}
