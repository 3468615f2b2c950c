"""Lists of objects, page by page, and the port `PodReader`: one list of a node's pods, past all caches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from podidentity_core.model import Pod, Seen
from podidentity_core.ports import PodReader
from podidentity_k8s.api import KubeApi
from podidentity_k8s.resources import ReadPage, Resource, pods_of_node

_PAGE_OBJECTS = 500
_PAGE_S = 60.0
_SECOND_LOOK_S = 3.0  # a pod waits for its token meanwhile


async def pages(api: KubeApi, resource: Resource, *, page_s: float = _PAGE_S) -> AsyncIterator[ReadPage]:
    """Yield all pages of the list as the server has it now; each may take *page_s*."""
    query = {**resource.selection, "limit": str(_PAGE_OBJECTS)}
    while True:
        page = resource.read_page(await api.get(resource.path, query=query, timeout_s=page_s))
        yield page
        if not page.next_token:
            return
        query["continue"] = page.next_token


class KubePods:
    """The PodReader of the node *node*."""

    def __init__(self, api: KubeApi, node: str) -> None:
        self._api = api
        self._resource = pods_of_node(node)

    async def pods(self) -> Sequence[Pod]:
        """List the node's pods. No field selector knows a pod's second address, so all are read."""
        return [
            read.change.thing
            async for page in pages(self._api, self._resource, page_s=_SECOND_LOOK_S)
            for read in page.objects
            if isinstance(read.change, Seen) and isinstance(read.change.thing, Pod)
        ]


if TYPE_CHECKING:
    _: type[PodReader] = KubePods
