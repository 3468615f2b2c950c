"""The API server over its socket: verbs, errors, schemas, selectors, pages, tables."""

from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from apps.sandbox.sandbox import Sandbox
from tests.sandbox.objects import GROUP, pod, thing

THINGS = f"{GROUP}/namespaces/default/things"
PODS = "/api/v1/namespaces/default/pods"
MERGE = {"content-type": "application/merge-patch+json"}
JSON_PATCH = {"content-type": "application/json-patch+json"}
TABLE = {"accept": "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"}
REAL_CRDS = sorted((Path(__file__).parents[2] / "deploy" / "chart" / "crds").glob("*.yaml"))


async def test_an_object_is_created_read_replaced_and_deleted(kube: httpx.AsyncClient) -> None:
    made = await kube.post(THINGS, json=thing("a", size=1))
    body = made.json()
    body["spec"]["size"] = 2
    changed = await kube.put(f"{THINGS}/a", json=body)
    read = await kube.get(f"{THINGS}/a")
    deleted = await kube.delete(f"{THINGS}/a")
    gone = await kube.get(f"{THINGS}/a")

    assert [made.status_code, changed.status_code, deleted.status_code, gone.status_code] == [201, 200, 200, 404]
    assert read.json() == changed.json()
    assert read.json()["spec"] == {"size": 2}
    assert deleted.json()["status"] == "Success"
    assert deleted.json()["details"]["uid"] == body["metadata"]["uid"]
    assert gone.json() == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": 'things.test.example "a" not found',
        "reason": "NotFound",
        "details": {"name": "a", "group": "test.example", "kind": "things"},
        "code": 404,
    }


async def test_a_stale_put_conflicts_and_one_without_version_is_refused_for_custom_resources(
    kube: httpx.AsyncClient,
) -> None:
    stale = (await kube.post(THINGS, json=thing("a", size=1))).json()
    await kube.patch(f"{THINGS}/a", json={"spec": {"size": 2}}, headers=MERGE)
    conflict = await kube.put(f"{THINGS}/a", json=stale)
    del stale["metadata"]["resourceVersion"]
    without = await kube.put(f"{THINGS}/a", json=stale)
    patched = await kube.patch(f"{THINGS}/a", json={"metadata": {"resourceVersion": "1"}}, headers=MERGE)

    assert conflict.status_code == 409
    assert conflict.json()["reason"] == "Conflict"
    assert "the object has been modified" in conflict.json()["message"]
    assert without.status_code == 422
    assert without.json()["details"]["causes"][0]["field"] == "metadata.resourceVersion"
    assert patched.status_code == 409


async def test_a_second_create_says_that_the_name_is_taken(kube: httpx.AsyncClient) -> None:
    await kube.post(THINGS, json=thing("a"))

    answer = await kube.post(THINGS, json=thing("a"))

    assert (answer.status_code, answer.json()["reason"]) == (409, "AlreadyExists")


async def test_a_json_patch_of_a_missing_status_is_unprocessable(kube: httpx.AsyncClient) -> None:
    await kube.post(THINGS, json=thing("a"))
    operations = [{"op": "replace", "path": "/status/status", "value": "Assigned"}]

    missing = await kube.patch(f"{THINGS}/a", json=operations, headers=JSON_PATCH)
    await kube.patch(f"{THINGS}/a", json={"status": {"status": "Created"}}, headers=MERGE)
    there = await kube.patch(f"{THINGS}/a", json=operations, headers=JSON_PATCH)

    assert (missing.status_code, missing.json()["reason"]) == (422, "Invalid")
    assert there.json()["status"] == {"status": "Assigned"}


async def test_finalizers_hold_a_deleted_object(kube: httpx.AsyncClient) -> None:
    body = thing("a")
    body["metadata"]["finalizers"] = ["example.com/f"]
    await kube.post(THINGS, json=body)

    held = (await kube.delete(f"{THINGS}/a")).json()
    held["metadata"]["finalizers"] = []
    freed = await kube.put(f"{THINGS}/a", json=held)

    assert held["metadata"]["deletionTimestamp"]
    assert freed.status_code == 200
    assert (await kube.get(f"{THINGS}/a")).status_code == 404


@pytest.mark.parametrize(
    ("spec", "field", "message"),
    [
        ({"size": "1"}, "spec.size", 'spec.size in body must be of type integer: "string"'),
        ({"size": True}, "spec.size", 'spec.size in body must be of type integer: "boolean"'),
        ({"size": None}, "spec.size", 'spec.size in body must be of type integer: "null"'),
        ({"size": -1}, "spec.size", "spec.size in body should be greater than or equal to 0"),
        ({"names": [1]}, "spec.names[0]", 'spec.names[0] in body must be of type string: "integer"'),
        ({"labels": {"a": 1}}, "spec.labels.a", 'spec.labels.a in body must be of type string: "integer"'),
        ({"copy": {"kind": "Thing", "metadata": {}}}, "spec.copy.apiVersion", "Required value"),
        ({"copy": {"apiVersion": "v1", "kind": "", "metadata": {}}}, "spec.copy.kind", "Required value"),
    ],
)
async def test_what_breaks_the_schema_is_refused(
    kube: httpx.AsyncClient, spec: dict[str, Any], field: str, message: str
) -> None:
    answer = await kube.post(THINGS, json=thing("a", **spec))

    body = answer.json()
    assert (answer.status_code, body["reason"]) == (422, "Invalid")
    assert body["message"].startswith('Thing.test.example "a" is invalid: ')
    assert [(cause["field"], message in cause["message"]) for cause in body["details"]["causes"]] == [(field, True)]


async def test_unknown_fields_are_pruned_with_a_warning_or_refused_if_strict(kube: httpx.AsyncClient) -> None:
    spec = {"sise": 1, "metadata": {"creationTimestamp": None}, "names": None, "copy": _embedded()}

    pruned = await kube.post(THINGS, json=thing("a", **spec))
    strict = await kube.post(THINGS, json=thing("b", sise=1), params={"fieldValidation": "Strict"})

    kept = {**_embedded(), "spec": {"size": 1}}
    assert pruned.json()["spec"] == {"metadata": {}, "names": None, "copy": kept}
    assert pruned.headers["warning"] == '299 - "unknown field \\"spec.sise\\""'
    assert strict.status_code == 400
    assert 'unknown field "spec.sise"' in strict.json()["message"]


def _embedded() -> dict[str, Any]:
    meta = {"name": "b", "annotations": {"x": "y"}}
    return {"apiVersion": "test.example/v1", "kind": "Thing", "metadata": meta, "spec": {"size": 1, "other": 2}}


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({"labelSelector": "app=a"}, ["p1"]),
        ({"labelSelector": "app!=a"}, ["p2", "p3"]),
        ({"labelSelector": "app in (a, b),tier"}, ["p2"]),
        ({"labelSelector": "app notin (a)"}, ["p2", "p3"]),
        ({"labelSelector": "!app"}, ["p3"]),
        ({"labelSelector": "app"}, ["p1", "p2"]),
        ({"fieldSelector": "spec.nodeName=n1"}, ["p1"]),
        ({"fieldSelector": "spec.nodeName!=n1,metadata.name!=p3"}, ["p2"]),
        ({"fieldSelector": "spec.nodeName="}, ["p2", "p3"]),
    ],
)
async def test_selectors(kube: httpx.AsyncClient, sandbox: Sandbox, query: dict[str, str], names: list[str]) -> None:
    for body in (pod("p1", app="a"), pod("p2", app="b", tier="x"), pod("p3")):
        sandbox.cluster.create(body)
    sandbox.cluster.change("pods", "default", "p1", lambda body: body["spec"].update(nodeName="n1"))

    answer = await kube.get(PODS, params=query)

    assert [item["metadata"]["name"] for item in answer.json()["items"]] == names


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ({"fieldSelector": "spec.other=x"}, "field label not supported"),
        ({"labelSelector": "a in b"}, "unable to parse"),
        ({"limit": "x"}, "must be a number"),
        ({"continue": "nonsense"}, "continue key is not valid"),
    ],
)
async def test_a_bad_query_is_a_bad_request(kube: httpx.AsyncClient, query: dict[str, str], word: str) -> None:
    answer = await kube.get(PODS, params=query)

    assert (answer.status_code, answer.json()["reason"]) == (400, "BadRequest")
    assert word in answer.json()["message"]


async def test_pages_show_one_version_of_the_list(kube: httpx.AsyncClient, sandbox: Sandbox) -> None:
    for number in range(5):
        sandbox.cluster.create(pod(f"p{number}"))

    first = (await kube.get("/api/v1/pods", params={"limit": 2})).json()
    sandbox.cluster.create(pod("p30"))
    rest = {"limit": 2, "continue": first["metadata"]["continue"]}
    second = (await kube.get("/api/v1/pods", params=rest)).json()
    rest = {"limit": 2, "continue": second["metadata"]["continue"]}
    third = (await kube.get("/api/v1/pods", params=rest)).json()

    pages = [first, second, third]
    names = [item["metadata"]["name"] for page in pages for item in page["items"]]
    assert names == ["p0", "p1", "p2", "p3", "p4"]
    assert len({page["metadata"]["resourceVersion"] for page in pages}) == 1
    assert (first["metadata"]["remainingItemCount"], "continue" in third["metadata"]) == (3, False)
    assert first["kind"] == "PodList"
    assert "kind" not in first["items"][0]


async def test_a_continue_token_expires_when_history_is_compacted(kube: httpx.AsyncClient, sandbox: Sandbox) -> None:
    for number in range(3):
        sandbox.cluster.create(pod(f"p{number}"))
    token = (await kube.get(PODS, params={"limit": 1})).json()["metadata"]["continue"]

    sandbox.kube.compact()
    answer = await kube.get(PODS, params={"limit": 1, "continue": token})

    assert (answer.status_code, answer.json()["reason"]) == (410, "Expired")


async def test_status_is_a_subresource_of_pods(kube: httpx.AsyncClient) -> None:
    made = (await kube.post(PODS, json={**pod("a"), "status": {"phase": "Running"}})).json()
    both = {"metadata": {"labels": {"x": "y"}}, "status": {"phase": "Running"}}
    ordinary = (await kube.patch(f"{PODS}/a", json=both, headers=MERGE)).json()
    status = (await kube.patch(f"{PODS}/a/status", json={"status": {"phase": "Failed"}}, headers=MERGE)).json()
    custom = await kube.get(f"{THINGS}/a/status")

    assert made["status"]["phase"] == "Pending"
    assert (ordinary["status"]["phase"], ordinary["metadata"]["labels"]) == ("Pending", {"x": "y"})
    assert (status["status"]["phase"], status["metadata"]["labels"]) == ("Failed", {"x": "y"})
    assert custom.status_code == 404


async def test_secrets_take_plain_strings_and_names_can_be_generated(kube: httpx.AsyncClient) -> None:
    body = {"metadata": {"generateName": "s-"}, "stringData": {"key": "value"}}

    made = (await kube.post("/api/v1/namespaces/default/secrets", json=body)).json()

    assert made["data"] == {"key": "dmFsdWU="}
    assert "stringData" not in made
    assert made["metadata"]["name"].startswith("s-")


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "reason"),
    [
        ("POST", "/api/v1/namespaces/none/pods", pod("a", "none"), 404, "NotFound"),
        ("POST", PODS, {**pod("a"), "kind": "Node"}, 400, "BadRequest"),
        ("POST", PODS, pod("a", "other"), 400, "BadRequest"),
        ("POST", PODS, {"metadata": {}}, 422, "Invalid"),
        ("POST", f"{PODS}?dryRun=All", pod("a"), 400, "BadRequest"),
        ("PATCH", f"{PODS}/a", {}, 415, "UnsupportedMediaType"),
        ("PUT", PODS, pod("a"), 405, "MethodNotAllowed"),
        ("GET", "/api/v1/namespaces/default/nothing", None, 404, "NotFound"),
        ("GET", "/apis/none.example/v1/things", None, 404, "NotFound"),
        ("GET", f"{PODS}/a/exec", None, 404, "NotFound"),
    ],
)
async def test_refusals_are_status_objects(
    kube: httpx.AsyncClient, method: str, path: str, body: Any, code: int, reason: str
) -> None:
    answer = await kube.request(method, path, json=body)

    assert (answer.status_code, answer.json()["code"], answer.json()["reason"]) == (code, code, reason)
    assert answer.json()["kind"] == "Status"


async def test_without_the_token_only_health_and_version_are_answered(sandbox: Sandbox) -> None:
    async with httpx.AsyncClient(base_url=sandbox.kube_url) as stranger:
        refused = await stranger.get(PODS, headers={"authorization": "Bearer wrong"})
        version = await stranger.get("/version")

        assert (await stranger.get("/readyz")).text == "ok"
    assert (refused.status_code, refused.json()["reason"]) == (401, "Unauthorized")
    assert version.json()["major"] == "1"


async def test_crds_are_served_from_the_moment_they_are_applied(kube: httpx.AsyncClient) -> None:
    crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    await kube.post(THINGS, json=thing("a"))

    listed = await kube.get("/apis/test.example/v1")
    established = (await kube.get(f"{crds}/things.test.example")).json()["status"]["conditions"]
    await kube.delete(f"{crds}/things.test.example")
    after = await kube.get(THINGS)

    assert [entry["name"] for entry in listed.json()["resources"]] == ["things"]
    assert {entry["type"]: entry["status"] for entry in established} == {"NamesAccepted": "True", "Established": "True"}
    assert after.status_code == 404


async def test_a_crd_without_names_is_refused(kube: httpx.AsyncClient) -> None:
    body = {"metadata": {"name": "x.y"}, "spec": {"group": "y"}}

    answer = await kube.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", json=body)

    assert answer.status_code == 422


@pytest.mark.parametrize("path", REAL_CRDS, ids=lambda path: path.stem)
async def test_the_projects_own_crds_install(kube: httpx.AsyncClient, path: Path) -> None:
    for crd in _documents(path):
        made = await kube.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", json=crd)
        spec = crd["spec"]
        listed = await kube.get(f"/apis/{spec['group']}/v1/{spec['names']['plural']}")

        assert (made.status_code, listed.status_code) == (201, 200)
        assert listed.json()["kind"] == spec["names"]["listKind"]


def _documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


async def test_discovery_names_groups_resources_and_verbs(kube: httpx.AsyncClient) -> None:
    groups = (await kube.get("/apis")).json()["groups"]
    core = (await kube.get("/api/v1")).json()["resources"]
    index = (await kube.get("/openapi/v3")).json()["paths"]
    pods = (await kube.get(index["api/v1"]["serverRelativeURL"])).json()["paths"]

    assert "test.example" in [group["name"] for group in groups]
    assert {"pods", "pods/status", "pods/log"} <= {entry["name"] for entry in core}
    patch = pods["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"]
    assert [entry["name"] for entry in patch["parameters"]] == ["fieldValidation"]


async def test_tables_have_the_columns_of_the_crd(kube: httpx.AsyncClient) -> None:
    await kube.post(THINGS, json=thing("a", size=3))

    shown = (await kube.get(THINGS, headers=TABLE)).json()

    assert shown["kind"] == "Table"
    assert [column["name"] for column in shown["columnDefinitions"]] == ["Name", "Size"]
    assert [row["cells"] for row in shown["rows"]] == [["a", 3]]
    assert shown["rows"][0]["object"]["metadata"]["name"] == "a"


async def test_events_are_found_by_the_object_they_are_about(kube: httpx.AsyncClient) -> None:
    events = "/api/v1/namespaces/default/events"
    for name in ("a", "b"):
        about = {"kind": "Pod", "name": name, "namespace": "default", "uid": f"uid-{name}"}
        body = {"metadata": {"name": f"e-{name}"}, "involvedObject": about, "reason": "Tested", "type": "Normal"}
        await kube.post(events, json=body)

    selector = "involvedObject.kind=Pod,involvedObject.name=b,involvedObject.uid=uid-b"
    found = (await kube.get(events, params={"fieldSelector": selector})).json()

    assert [item["metadata"]["name"] for item in found["items"]] == ["e-b"]


async def test_deleting_a_namespace_deletes_what_is_in_it(kube: httpx.AsyncClient) -> None:
    await kube.post("/api/v1/namespaces", json={"metadata": {"name": "team"}})
    await kube.post("/api/v1/namespaces/team/pods", json=pod("a", "team"))

    await kube.delete("/api/v1/namespaces/team")

    assert (await kube.get("/api/v1/pods")).json()["items"] == []
