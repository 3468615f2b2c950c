"""The sandbox's own endpoint: faults, refusals and the record of requests, for tests in another process.

GET / returns everything: the faults that are set, the requests seen, the operations of ARM, the refused identities.
POST / does what its JSON object asks for: {"fault": {fields of Fault}}, {"clear": true} (faults), {"forget": true}
(requests), {"refuse": id, "code": ...}, {"accept": id}, {"fail_next_operation": code}, {"compact": true} (watches and
continue tokens expire). Several may be in one object.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from apps.sandbox.faults import Fault, Faults
from apps.sandbox.hosts import Azure, Operation
from apps.sandbox.kube import Kube
from apps.sandbox.serving import Receive, Scope, Send, answer, read_body


class Control:
    """ASGI application over a sandbox's faults and state."""

    def __init__(self, faults: Faults, azure: Azure, kube: Kube) -> None:
        self._faults = faults
        self._azure = azure
        self._kube = kube

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/" or scope["method"] not in ("GET", "POST"):
            await answer(send, 404, {"error": "GET or POST /"})
            return
        if scope["method"] == "POST":
            try:
                self._do(json.loads(await read_body(receive)))
            except (ValueError, TypeError, AttributeError) as error:
                await answer(send, 400, {"error": str(error)})
                return
        await answer(send, 200, self._state())

    def _do(self, order: dict[str, Any]) -> None:
        if order.get("clear"):
            self._faults.clear()
        if order.get("forget"):
            self._faults.forget()
        if "fault" in order:
            self._faults.add(Fault(**order["fault"]))
        if "refuse" in order:
            self._azure.refuse(order["refuse"], order.get("code", "FailedIdentityOperation"))
        if "accept" in order:
            self._azure.accept(order["accept"])
        if "fail_next_operation" in order:
            self._azure.fail_next_operation(order["fail_next_operation"])
        if order.get("compact"):
            self._kube.compact()

    def _state(self) -> dict[str, Any]:
        return {
            "faults": [asdict(fault) for fault in self._faults.active],
            "requests": [asdict(seen) for seen in self._faults.seen()],
            "operations": [_operation(entry) for entry in self._azure.operations],
            "refused": self._azure.refused,
        }


def _operation(operation: Operation) -> dict[str, Any]:
    shown = asdict(operation)
    del shown["secret"]
    return shown
