"""The three patch formats."""

from typing import Any

import pytest

from apps.sandbox.patches import json_patch, merge_patch, strategic_merge
from apps.sandbox.status import StatusError


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": None}}, {"a": {"c": 2}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": "x"}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({}, {"a": {"b": None}}, {"a": {}}),
    ],
)
def test_merge_patch(target: Any, patch: Any, result: Any) -> None:
    assert merge_patch(target, patch) == result


@pytest.mark.parametrize(
    ("target", "operations", "result"),
    [
        ({"a": 1}, [{"op": "replace", "path": "/a", "value": 2}], {"a": 2}),
        ({}, [{"op": "add", "path": "/a", "value": {}}, {"op": "add", "path": "/a/b", "value": 1}], {"a": {"b": 1}}),
        ({"a": [1, 3]}, [{"op": "add", "path": "/a/1", "value": 2}], {"a": [1, 2, 3]}),
        ({"a": [1]}, [{"op": "add", "path": "/a/-", "value": 2}], {"a": [1, 2]}),
        ({"a": [1, 2]}, [{"op": "remove", "path": "/a/0"}], {"a": [2]}),
        ({"x/y": 1}, [{"op": "remove", "path": "/x~1y"}], {}),
        ({"a": 1}, [{"op": "move", "from": "/a", "path": "/b"}], {"b": 1}),
        ({"a": {"c": 1}}, [{"op": "copy", "from": "/a", "path": "/b"}], {"a": {"c": 1}, "b": {"c": 1}}),
        ({"a": 1}, [{"op": "test", "path": "/a", "value": 1}], {"a": 1}),
    ],
)
def test_json_patch(target: Any, operations: Any, result: Any) -> None:
    assert json_patch(target, operations) == result


@pytest.mark.parametrize(
    ("operations", "code"),
    [
        ([{"op": "replace", "path": "/status/status", "value": "x"}], 422),
        ([{"op": "replace", "path": "/spec/none", "value": "x"}], 422),
        ([{"op": "remove", "path": "/spec/none"}], 422),
        ([{"op": "test", "path": "/spec/a", "value": 2}], 422),
        ([{"op": "add", "path": "/none/a", "value": 2}], 422),
        ([{"op": "jump", "path": "/spec"}], 400),
        ({"op": "add"}, 400),
    ],
)
def test_a_json_patch_that_does_not_apply_changes_nothing(operations: Any, code: int) -> None:
    target = {"spec": {"a": 1}}

    with pytest.raises(StatusError) as refused:
        json_patch(target, operations)

    assert refused.value.code == code
    assert target == {"spec": {"a": 1}}


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        pytest.param(
            {"containers": [{"name": "a", "image": "1"}, {"name": "b"}]},
            {"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "a", "image": "2"}]},
            {"containers": [{"name": "a", "image": "2"}, {"name": "b"}]},
            id="items are joined by name",
        ),
        pytest.param(
            {"env": [{"name": "a", "value": "1"}]},
            {"env": [{"name": "a", "$patch": "delete"}, {"name": "b", "value": "2"}]},
            {"env": [{"name": "b", "value": "2"}]},
            id="items are deleted",
        ),
        pytest.param(
            {"finalizers": ["a", "b"]},
            {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]},
            {"finalizers": ["b", "c"]},
            id="finalizers are a set",
        ),
        pytest.param({"args": ["a"]}, {"args": ["b"]}, {"args": ["b"]}, id="other lists are replaced"),
        pytest.param(
            {"strategy": {"type": "Old", "x": 1}},
            {"strategy": {"$retainKeys": ["type"], "type": "New"}},
            {"strategy": {"type": "New"}},
            id="retained keys",
        ),
    ],
)
def test_strategic_merge(target: Any, patch: Any, result: Any) -> None:
    assert strategic_merge(target, patch) == result
