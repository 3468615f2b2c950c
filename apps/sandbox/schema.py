"""CRDs' structural schemas: unknown fields are pruned, wrong ones refused with the API server's texts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from apps.sandbox.resources import Resource
from apps.sandbox.status import Cause, invalid

Schema = Mapping[str, Any]
_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: _is_number(value) and float(value).is_integer(),
    "number": lambda value: _is_number(value),
}
_JSON_NAMES = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number"}
_IMPLICIT = ("apiVersion", "kind", "metadata")


def admit(resource: Resource, body: dict[str, Any]) -> None:
    """Prune *body* in place and check it. Raises StatusError (422). Built-in kinds have no schema here."""
    if resource.schema is None:
        return
    unknown_fields(resource, body)
    causes: list[Cause] = []
    for key, value in body.items():
        if key not in _IMPLICIT and key in resource.schema.get("properties", {}):
            _check(resource.schema["properties"][key], value, key, causes)
    _check_required(resource.schema, body, "", causes)
    if causes:
        raise invalid(resource, body["metadata"]["name"], causes)


def unknown_fields(resource: Resource, body: dict[str, Any]) -> list[str]:
    """Remove the fields that the schema does not know, and nulls it has no room for; return the removed paths."""
    removed: list[str] = []
    if resource.schema is not None:
        _prune({**resource.schema, "x-kubernetes-embedded-resource": True}, body, "", removed)
    return removed


def _prune(schema: Schema, value: Any, path: str, removed: list[str]) -> None:
    if isinstance(value, list):
        for index, item in enumerate(value):
            _prune(schema.get("items", {}), item, f"{path}[{index}]", removed)
        return
    if not isinstance(value, dict):
        return
    known = schema.get("properties", {})
    for key in list(value):
        where = f"{path}.{key}" if path else key
        if schema.get("x-kubernetes-embedded-resource") and key in _IMPLICIT:
            continue
        if key in known:
            _prune(known[key], value[key], where, removed)
        elif isinstance(schema.get("additionalProperties"), Mapping):
            _prune(schema["additionalProperties"], value[key], where, removed)
        elif not _keeps_unknown(schema):
            del value[key]
            removed.append(where)


def _keeps_unknown(schema: Schema) -> bool:
    return bool(schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("additionalProperties"))


def _check(schema: Schema, value: Any, path: str, causes: list[Cause]) -> None:
    if value is None and schema.get("nullable"):
        return
    if not _has_type(schema, value):
        kind = schema["type"]
        shown = _shown(value, as_type=True)
        causes.append(
            Cause(
                "FieldValueTypeInvalid",
                path,
                f"Invalid value: {shown}: {path} in body must be of type {kind}: {shown}",
            )
        )
        return
    _check_rules(schema, value, path, causes)
    if isinstance(value, list):
        for index, item in enumerate(value):
            _check(schema.get("items", {}), item, f"{path}[{index}]", causes)
    elif isinstance(value, dict):
        _check_object(schema, value, path, causes)


def _check_object(schema: Schema, value: Mapping[str, Any], path: str, causes: list[Cause]) -> None:
    embedded = bool(schema.get("x-kubernetes-embedded-resource"))
    if embedded:
        _check_embedded(value, path, causes)
    _check_required(schema, value, path, causes)
    others = schema.get("additionalProperties")
    for key, item in value.items():
        if embedded and key in _IMPLICIT:
            continue
        if key in schema.get("properties", {}):
            _check(schema["properties"][key], item, f"{path}.{key}", causes)
        elif isinstance(others, Mapping):
            _check(others, item, f"{path}.{key}", causes)


def _check_embedded(value: Mapping[str, Any], path: str, causes: list[Cause]) -> None:
    # The real server asks for these two; that metadata is an object, if there, it finds when it decodes it.
    for key in ("apiVersion", "kind"):
        if key not in value or value[key] == "":
            causes.append(Cause("FieldValueRequired", f"{path}.{key}", "Required value"))
        elif not isinstance(value[key], str):
            message = f"Invalid value: {_shown(value[key])}: must be a string"
            causes.append(Cause("FieldValueInvalid", f"{path}.{key}", message))
    if not isinstance(value.get("metadata", {}), dict):
        message = f"Invalid value: {_shown(value['metadata'])}: must be an object"
        causes.append(Cause("FieldValueInvalid", f"{path}.metadata", message))


def _check_required(schema: Schema, value: Mapping[str, Any], path: str, causes: list[Cause]) -> None:
    missing = [key for key in schema.get("required", ()) if key not in value]
    where = f"{path}." if path else ""
    causes.extend(Cause("FieldValueRequired", f"{where}{key}", "Required value") for key in missing)


def _check_rules(schema: Schema, value: Any, path: str, causes: list[Cause]) -> None:
    if "enum" in schema and value not in schema["enum"]:
        listed = ", ".join(_shown(choice) for choice in schema["enum"])
        message = f"Unsupported value: {_shown(value)}: supported values: {listed}"
        causes.append(Cause("FieldValueNotSupported", path, message))
    broken: list[tuple[str, str, Callable[[Any], bool]]] = [
        ("pattern", "should match '{}'", lambda limit: not re.search(limit, value)),
        ("minLength", "should be at least {} chars long", lambda limit: len(value) < limit),
        ("maxLength", "should be at most {} chars long", lambda limit: len(value) > limit),
        ("minimum", "should be greater than or equal to {}", lambda limit: value < limit),
        ("maximum", "should be less than or equal to {}", lambda limit: value > limit),
    ]
    for rule, text, is_broken in broken:
        if rule in schema and is_broken(schema[rule]):
            told = f"{path} in body {text.format(schema[rule])}"
            causes.append(Cause("FieldValueInvalid", path, f"Invalid value: {_shown(value)}: {told}"))


def _has_type(schema: Schema, value: Any) -> bool:
    if schema.get("x-kubernetes-int-or-string"):
        return isinstance(value, int | str) and not isinstance(value, bool)
    kind = schema.get("type")
    return kind is None or _TYPES[kind](value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any, as_type: bool = False) -> str:
    """Return a value as a message shows it; for a wrong type the real server names the type it found."""
    if as_type:
        return f'"{_JSON_NAMES.get(type(value), "null")}"'
    return json.dumps(value)
