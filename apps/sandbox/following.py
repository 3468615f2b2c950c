"""Level-triggered controllers inside the sandbox: a function is called for each object that is there or changes."""

from __future__ import annotations

from collections.abc import Callable

from apps.sandbox.resources import Resource
from apps.sandbox.status import StatusError
from apps.sandbox.store import Store
from apps.sandbox.versions import Stored


async def follow(store: Store, resource: Resource, reconcile: Callable[[Stored, bool], None]) -> None:
    """Call *reconcile* with the newest version of every object, and again after each change, until the store closes.

    Its second argument says that the object is gone. It is called again for all if history was lost in between.
    """
    while not store.closed:
        cursor = store.cursor(resource, store.version)
        for held in store.list(resource):
            reconcile(held, False)
        try:
            with cursor:
                while events := await cursor.read():
                    for event in events:
                        _newest(store, resource, event.now, event.type == "DELETED", reconcile)
        except StatusError:
            continue


def _newest(
    store: Store, resource: Resource, seen: Stored, is_gone: bool, reconcile: Callable[[Stored, bool], None]
) -> None:
    if is_gone:
        reconcile(seen, True)
        return
    try:
        newest = store.get(resource, seen.namespace, seen.name)
    except StatusError:
        return  # its DELETED event is still to come
    if newest.version == seen.version:
        reconcile(newest, False)
