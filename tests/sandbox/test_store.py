"""The object store alone: versions, deletion, history."""

import asyncio

import pytest

from apps.sandbox.resources import PODS, SECRETS
from apps.sandbox.status import StatusError
from apps.sandbox.store import Store
from tests.sandbox.objects import pod


def test_every_write_of_any_kind_takes_the_next_version() -> None:
    store = Store()

    first = store.create(PODS, pod("a"))
    second = store.create(SECRETS, {"metadata": {"name": "s"}})

    assert second.version == first.version + 1
    assert first.body["metadata"]["resourceVersion"] == str(first.version)
    assert first.body["metadata"]["uid"] != second.body["metadata"]["uid"]


def test_an_unchanged_object_keeps_its_version_and_a_changed_one_does_not() -> None:
    store = Store()
    first = store.create(PODS, pod("a"))

    same = store.replace(PODS, first.body)
    body = first.body
    body["spec"]["nodeName"] = "n"
    changed = store.replace(PODS, body)

    assert same == first
    assert changed.version == first.version + 1
    assert changed.body["metadata"]["generation"] == 2


def test_a_replace_of_an_older_version_is_a_conflict() -> None:
    store = Store()
    old = store.create(PODS, pod("a")).body
    store.replace(PODS, {**old, "spec": {"nodeName": "n"}})

    with pytest.raises(StatusError) as refused:
        store.replace(PODS, {**old, "spec": {"nodeName": "m"}})

    assert (refused.value.code, refused.value.reason) == (409, "Conflict")


def test_callers_objects_are_neither_kept_nor_changed() -> None:
    store = Store()
    body = pod("a")

    held = store.create(PODS, body)
    held.body["metadata"]["name"] = "other"

    assert body == pod("a")
    assert store.get(PODS, "default", "a").body["metadata"]["name"] == "a"


def test_a_finalizer_keeps_a_deleted_object_until_it_is_taken_away() -> None:
    store = Store()
    body = pod("a")
    body["metadata"]["finalizers"] = ["example.com/f"]
    store.create(PODS, body)

    kept = store.delete(PODS, "default", "a")
    assert kept is not None
    assert kept.body["metadata"]["deletionTimestamp"]
    again = store.delete(PODS, "default", "a")
    freed = kept.body
    freed["metadata"]["finalizers"] = []
    store.replace(PODS, freed)

    assert again == kept
    assert store.list(PODS) == ()


def test_lists_are_in_the_order_of_namespace_and_name() -> None:
    store = Store()
    for namespace, name in (("b", "a"), ("a", "z"), ("a", "b")):
        store.create(PODS, pod(name, namespace))

    assert [(held.namespace, held.name) for held in store.list(PODS)] == [("a", "b"), ("a", "z"), ("b", "a")]
    assert [held.name for held in store.list(PODS, "b")] == ["a"]


async def test_a_cursor_gives_each_change_once_and_wakes_for_the_next() -> None:
    store = Store()
    since = store.create(PODS, pod("a")).version
    with store.cursor(PODS, since) as cursor:
        store.create(PODS, pod("b"))
        first = await cursor.read()
        waiting = asyncio.create_task(cursor.read())
        await asyncio.sleep(0)
        store.delete(PODS, "default", "b")
        second = await waiting

    assert [(event.type, event.now.name) for event in (*first, *second)] == [("ADDED", "b"), ("DELETED", "b")]


async def test_a_cursor_returns_nothing_when_the_time_is_over_or_the_store_is_closed() -> None:
    store = Store()
    with store.cursor(PODS, store.version) as cursor:
        assert await cursor.read(0.01) == ()
        waiting = asyncio.create_task(cursor.read())
        await asyncio.sleep(0)
        store.close()
        assert await waiting == ()


async def test_history_is_bounded_and_what_is_older_is_gone() -> None:
    store = Store(history=5)
    first = store.create(PODS, pod("first")).version
    with store.cursor(PODS, first) as slow:
        for number in range(20):
            store.create(PODS, pod(f"p{number}"))

        with pytest.raises(StatusError) as late:
            await slow.read()
    with pytest.raises(StatusError) as early:
        store.cursor(PODS, first)

    assert (late.value.code, early.value.code) == (410, 410)
    with store.cursor(PODS, store.version - 5) as cursor:
        assert len(await cursor.read()) == 5
