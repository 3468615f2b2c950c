"""What the API server says about itself: versions, groups, resources, and as much OpenAPI as kubectl asks for."""

from __future__ import annotations

from typing import Any

from apps.sandbox.resources import Registry, Resource

Body = dict[str, Any]
_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
_VERSION = {
    "major": "1",
    "minor": "32",
    "gitVersion": "v1.32.0-sandbox",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "",
    "compiler": "",
    "platform": "linux/amd64",
}


def document(registry: Registry, path: str) -> Body | None:
    """Return the discovery document under *path*, or None if it is not one."""
    parts = path.strip("/").split("/")
    match parts:
        case ["version"]:
            return dict(_VERSION)
        case ["api"]:
            return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
        case ["api", version]:
            return _resources(registry, version)
        case ["apis"]:
            groups = [_group(group, version) for group, version in _groups(registry)]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        case ["apis", group]:
            found = [_group(*pair) for pair in _groups(registry) if pair[0] == group]
            return {"kind": "APIGroup", "apiVersion": "v1", **found[0]} if found else None
        case ["apis", group, version]:
            return _resources(registry, f"{group}/{version}")
        case ["openapi", "v3"]:
            return {"paths": {_prefix(v): {"serverRelativeURL": f"/openapi/v3/{_prefix(v)}"} for v in _all(registry)}}
        case ["openapi", "v3", _, *_]:
            return _openapi(registry, "/".join(parts[2:]))
    return None


def _all(registry: Registry) -> list[str]:
    return sorted({row.api_version for row in registry})


def _groups(registry: Registry) -> list[tuple[str, str]]:
    return sorted({(row.group, row.version) for row in registry if row.group})


def _group(group: str, version: str) -> Body:
    served = {"groupVersion": f"{group}/{version}", "version": version}
    return {"name": group, "versions": [served], "preferredVersion": served}


def _resources(registry: Registry, api_version: str) -> Body | None:
    rows = [row for row in registry if row.api_version == api_version]
    if not rows:
        return None
    listed = [entry for row in rows for entry in _entries(row)]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version, "resources": listed}


def _entries(row: Resource) -> list[Body]:
    common = {"namespaced": row.namespaced, "kind": row.kind, "singularName": ""}
    whole = {**common, "name": row.plural, "singularName": row.kind.lower(), "verbs": _VERBS}
    if row.short_names:
        whole["shortNames"] = list(row.short_names)
    if row.categories:
        whole["categories"] = list(row.categories)
    subresources = [("status", ["get", "patch", "update"])] if row.has_status else []
    if row.plural == "pods":
        subresources.append(("log", ["get"]))
    return [whole, *({**common, "name": f"{row.plural}/{sub}", "verbs": verbs} for sub, verbs in subresources)]


def _prefix(api_version: str) -> str:
    return f"apis/{api_version}" if "/" in api_version else f"api/{api_version}"


def _openapi(registry: Registry, prefix: str) -> Body | None:
    """Return no schemas, only that PATCH takes fieldValidation: so kubectl leaves validation to the server."""
    rows = [row for row in registry if _prefix(row.api_version) == prefix]
    if not rows:
        return None
    paths = {}
    for row in rows:
        scope = "namespaces/{namespace}/" if row.namespaced else ""
        kind = {"group": row.group, "version": row.version, "kind": row.kind}
        validation = {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}
        patch = {"parameters": [validation], "x-kubernetes-group-version-kind": kind, "responses": {}}
        paths[f"/{prefix}/{scope}{row.plural}/{{name}}"] = {"patch": patch}
    info = {"title": "Kubernetes", "version": _VERSION["gitVersion"]}
    return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": {}}}
