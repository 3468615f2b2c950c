"""Objects that the tests of the sandbox write."""

import asyncio
from collections.abc import Callable
from typing import Any

GROUP = "/apis/test.example/v1"
CRD: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "things.test.example"},
    "spec": {
        "group": "test.example",
        "scope": "Namespaced",
        "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}],
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "apiVersion": {"type": "string"},
                            "kind": {"type": "string"},
                            "metadata": {"type": "object"},
                            "spec": {
                                "type": "object",
                                "properties": {
                                    "size": {"type": "integer", "minimum": 0},
                                    "names": {"type": "array", "nullable": True, "items": {"type": "string"}},
                                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                                    "metadata": {"type": "object"},
                                    "copy": {
                                        "type": "object",
                                        "x-kubernetes-embedded-resource": True,
                                        "properties": {
                                            "spec": {
                                                "type": "object",
                                                "properties": {"size": {"type": "integer"}},
                                            }
                                        },
                                    },
                                },
                            },
                            "status": {"type": "object", "properties": {"status": {"type": "string"}}},
                        },
                    }
                },
            }
        ],
    },
}


def thing(name: str, **spec: Any) -> dict[str, Any]:
    """Return a custom resource of the test's own CRD."""
    return {
        "apiVersion": "test.example/v1",
        "kind": "Thing",
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    }


def pod(name: str, namespace: str = "default", **labels: str) -> dict[str, Any]:
    """Return a pod of an image that nobody knows."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"containers": [{"name": "main", "image": "unknown:1"}]},
    }


async def until(condition: Callable[[], object], within_s: float = 5.0) -> None:
    """Return when *condition* holds. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)
