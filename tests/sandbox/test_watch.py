"""Watches over their socket: order, resuming, bookmarks, 410, selectors, and the end of a stream."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from apps.sandbox.sandbox import Sandbox, SandboxOptions
from tests.sandbox.objects import pod, until

PODS = "/api/v1/namespaces/default/pods"


class Events:
    """The lines of one watch."""

    def __init__(self, answer: httpx.Response) -> None:
        self._lines = answer.aiter_lines()

    async def next(self) -> dict[str, Any]:
        """Return the next event, within a deadline."""
        async with asyncio.timeout(5):
            event: dict[str, Any] = json.loads(await anext(self._lines))
        return event

    async def names(self, count: int) -> list[tuple[str, str]]:
        """Return type and object name of the next events."""
        events = [await self.next() for _ in range(count)]
        return [(event["type"], event["object"]["metadata"]["name"]) for event in events]

    async def rest(self) -> list[dict[str, Any]]:
        """Return all events up to the end of the stream."""
        async with asyncio.timeout(5):
            return [json.loads(line) async for line in self._lines]


@asynccontextmanager
async def watch(kube: httpx.AsyncClient, **query: str | int) -> AsyncIterator[Events]:
    """Watch pods."""
    async with kube.stream("GET", PODS, params={"watch": "true", **query}) as answer:
        assert answer.status_code == 200
        yield Events(answer)


@pytest.fixture
def options(options: SandboxOptions) -> SandboxOptions:
    """Bookmarks come quickly."""
    return dataclasses.replace(options, bookmark_s=0.05)


async def test_a_watch_without_version_begins_with_what_is_there(kube: httpx.AsyncClient, sandbox: Sandbox) -> None:
    sandbox.cluster.create(pod("a"))
    async with watch(kube) as events:
        assert await events.names(1) == [("ADDED", "a")]

        sandbox.cluster.create(pod("b"))
        sandbox.cluster.change("pods", "default", "a", lambda body: body["spec"].update(nodeName="n"))
        sandbox.cluster.delete(sandbox.cluster.registry.named("pods"), "default", "a")

        assert await events.names(3) == [("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "a")]


async def test_a_watch_resumes_after_the_version_of_a_list(kube: httpx.AsyncClient, sandbox: Sandbox) -> None:
    sandbox.cluster.create(pod("a"))
    version = (await kube.get(PODS)).json()["metadata"]["resourceVersion"]
    sandbox.cluster.create(pod("b"))

    async with watch(kube, resourceVersion=version) as events:
        first = await events.next()

    assert (first["type"], first["object"]["metadata"]["name"]) == ("ADDED", "b")
    assert int(first["object"]["metadata"]["resourceVersion"]) > int(version)


async def test_a_watch_from_a_forgotten_version_is_an_error_event(kube: httpx.AsyncClient, sandbox: Sandbox) -> None:
    old = sandbox.cluster.create(pod("a")).version - 1
    sandbox.kube.compact()

    async with watch(kube, resourceVersion=old) as events:
        told = await events.rest()

    assert [(event["type"], event["object"]["code"], event["object"]["reason"]) for event in told] == [
        ("ERROR", 410, "Expired")
    ]


async def test_bookmarks_carry_the_newest_version_if_asked_for(kube: httpx.AsyncClient, sandbox: Sandbox) -> None:
    version = sandbox.store.version
    async with watch(kube, resourceVersion=version, allowWatchBookmarks="true") as events:
        sandbox.cluster.create({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}})
        newest = sandbox.store.version
        bookmarks = [await events.next()]
        while int(bookmarks[-1]["object"]["metadata"]["resourceVersion"]) < newest:
            bookmarks.append(await events.next())

    assert {(event["type"], event["object"]["kind"]) for event in bookmarks} == {("BOOKMARK", "Pod")}


async def test_a_watch_ends_after_its_time(kube: httpx.AsyncClient, sandbox: Sandbox) -> None:
    started = asyncio.get_running_loop().time()

    async with watch(kube, resourceVersion=sandbox.store.version, timeoutSeconds=1) as events:
        assert await events.rest() == []

    assert 0.9 < asyncio.get_running_loop().time() - started < 3


async def test_an_object_that_leaves_the_selection_is_deleted_for_the_watch(
    kube: httpx.AsyncClient, sandbox: Sandbox
) -> None:
    sandbox.cluster.create(pod("a", app="x"))
    sandbox.cluster.create(pod("b"))
    async with watch(kube, labelSelector="app=x") as events:
        assert await events.names(1) == [("ADDED", "a")]

        sandbox.cluster.change("pods", "default", "a", lambda body: body["metadata"].update(labels={}))
        sandbox.cluster.change("pods", "default", "b", lambda body: body["metadata"].update(labels={"app": "x"}))

        assert await events.names(2) == [("DELETED", "a"), ("ADDED", "b")]


async def test_one_namespace_and_one_object_can_be_watched(kube: httpx.AsyncClient, sandbox: Sandbox) -> None:
    sandbox.cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other"}})
    query: dict[str, str] = {"watch": "1", "fieldSelector": "metadata.name=b"}
    async with kube.stream("GET", "/api/v1/namespaces/other/pods", params=query) as answer:
        for name, namespace in (("b", "default"), ("a", "other"), ("b", "other")):
            sandbox.cluster.create(pod(name, namespace))

        first = await Events(answer).next()

    assert (first["object"]["metadata"]["namespace"], first["object"]["metadata"]["name"]) == ("other", "b")


async def test_a_client_that_leaves_is_forgotten(kube: httpx.AsyncClient, sandbox: Sandbox) -> None:
    log = sandbox.store._log(sandbox.cluster.registry.named("pods"))
    async with watch(kube) as events:
        sandbox.cluster.create(pod("a"))
        await events.next()
        assert len(log.wakers) == 1

    await until(lambda: not log.wakers)


async def test_the_end_of_the_sandbox_ends_its_watches(options: SandboxOptions) -> None:
    async with Sandbox(options) as sandbox:
        headers = {"authorization": f"Bearer {sandbox.token}"}
        client = httpx.AsyncClient(base_url=sandbox.kube_url, headers=headers)
        query: dict[str, str] = {"watch": "true", "resourceVersion": str(sandbox.store.version)}
        answer = await client.send(client.build_request("GET", PODS, params=query), stream=True)
    with pytest.raises(httpx.HTTPError):
        await Events(answer).rest()
    await client.aclose()


async def test_five_thousand_pods_are_listed_and_watched_quickly(kube: httpx.AsyncClient, sandbox: Sandbox) -> None:
    for number in range(5000):
        sandbox.cluster.create(pod(f"p{number}", app="x"))
    loop = asyncio.get_running_loop()

    started = loop.time()
    listed = (await kube.get(PODS)).json()["items"]
    list_s = loop.time() - started
    started = loop.time()
    async with watch(kube) as events:
        for _ in range(5000):
            await events.next()
    watch_s = loop.time() - started

    assert len(listed) == 5000
    assert (list_s < 2, watch_s < 5) == (True, True)
