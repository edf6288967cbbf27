"""What the routes promise beyond their schemas: names, revisions, problems, streams."""

import asyncio
import json

import httpx
import msgspec
import pytest
from fake_layer import FakeLayer

from lamella.model.instance import Instance
from lamella.model.usage import LogEntry

WEB = "/v1/projects/default/instances/web"
INSTANCES = "/v1/projects/default/instances"


async def test_about_says_who_asks(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1")
    assert answer.status_code == 200
    assert answer.json()["you"] == "unix:root"


async def test_a_resource_is_found_by_name_and_by_id(client: httpx.AsyncClient) -> None:
    answer = await client.get(WEB)
    instance = msgspec.json.decode(answer.content, type=Instance)
    assert answer.headers["etag"] == f'"{instance.revision}"'
    assert (await client.get(f"{INSTANCES}/{instance.id}")).content == answer.content


@pytest.mark.parametrize("encoded", ["team%2Fweb:1.0", "team%2fweb%3A1.0", "%74eam%2Fweb:1%2E0"])
async def test_a_slash_in_an_images_name_stays_in_its_segment(client: httpx.AsyncClient, encoded: str) -> None:
    answer = await client.get(f"/v1/projects/default/images/{encoded}")
    assert (answer.status_code, answer.json()["name"]) == (200, "team/web:1.0")


async def test_making_an_instance_answers_where_it_is(client: httpx.AsyncClient) -> None:
    body = {"name": "made", "labels": {"tier": "front"}, "spec": {"image": "debian:12"}}
    made = await client.post(INSTANCES, json=body)
    assert made.status_code == 201
    found = await client.get(made.headers["location"])
    assert found.json()["labels"] == {"tier": "front"}
    listed = await client.get(INSTANCES, params={"label": "tier=front"})
    assert [item["name"] for item in listed.json()["items"]] == ["made"]
    again = await client.post(INSTANCES, json=body)
    assert (again.status_code, again.json()["code"], again.json()["field"]) == (409, "conflict", "name")
    assert again.headers["content-type"] == "application/problem+json"


async def test_the_same_idempotency_key_makes_one_instance(client: httpx.AsyncClient) -> None:
    body = {"spec": {"image": "debian:12"}}
    answers = [await client.post(INSTANCES, json=body, headers={"idempotency-key": "k1"}) for _ in range(2)]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    refused = await client.post(INSTANCES, json=body, headers={"idempotency-key": "x" * 256})
    assert (refused.status_code, refused.json()["field"]) == (400, "Idempotency-Key")


async def test_a_stale_revision_is_refused(client: httpx.AsyncClient) -> None:
    etag = (await client.get(WEB)).headers["etag"]
    first = await client.patch(WEB, json={"labels": {"a": "1"}}, headers={"if-match": etag})
    assert first.status_code == 200
    second = await client.patch(WEB, json={"labels": {"a": "2"}}, headers={"if-match": etag})
    assert (second.status_code, second.json()["code"]) == (412, "stale-revision")
    fresh = await client.patch(WEB, json={"labels": {"a": None}}, headers={"if-match": first.headers["etag"]})
    assert fresh.json()["labels"] == {}
    for bad in ("abc", '"1"; DROP', '"99999999999999999999999"'):
        assert (await client.patch(WEB, json={}, headers={"if-match": bad})).status_code == 400


async def test_power_and_removal(client: httpx.AsyncClient) -> None:
    assert (await client.post(f"{WEB}/stop", json={"timeout": 3})).json()["status"]["phase"] == "stopped"
    assert (await client.post(f"{WEB}/start")).json()["status"]["phase"] == "running"
    assert (await client.post(f"{WEB}/kill", json={"signal": "TERM"})).status_code == 200
    assert (await client.post(f"{WEB}/kill", json={"signal": "NOSUCH"})).json()["field"] == "signal"
    removed = await client.delete(WEB, params={"force": "true"})
    assert (removed.status_code, removed.content) == (204, b"")
    assert (await client.get(WEB)).json()["hint"] == "lamella instance ls shows what there is"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"spec": {"image": "debian:12", "cpu": "two"}}, "spec.cpu"),
        ({"spec": {"image": "debian:12", "nics": [{"publish": [{"port": 0}]}]}}, "spec.nics[0].publish[0].port"),
        ({"spec": {"image": "debian:12", "restart": {"mode": "sometimes"}}}, "spec.restart.mode"),
        ({"spec": {}}, "spec.image"),
        ({"spec": {"template": ""}}, "spec.template"),
        ({"labels": {"bad key": "x"}, "spec": {"image": "debian:12"}}, "labels"),
    ],
)
async def test_what_is_wrong_names_the_field(client: httpx.AsyncClient, body: object, field: str) -> None:
    answer = await client.post(INSTANCES, json=body)
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (400, "invalid", field)


async def test_lists_come_in_pages(client: httpx.AsyncClient) -> None:
    for number in range(3):
        await client.post(INSTANCES, json={"name": f"n{number}", "spec": {"image": "debian:12"}})
    names, cursor = [], ""
    while True:
        page = (await client.get(INSTANCES, params={"limit": 2, "cursor": cursor})).json()
        names += [item["name"] for item in page["items"]]
        cursor = page["cursor"]
        if not cursor:
            break
    assert names == ["web", "n0", "n1", "n2"]


async def test_logs_are_lines_of_json(client: httpx.AsyncClient) -> None:
    answer = await client.get(f"{WEB}/logs", params={"tail": 2})
    assert answer.headers["content-type"] == "application/x-ndjson"
    entries = [msgspec.json.decode(line, type=LogEntry) for line in answer.content.splitlines()]
    assert [entry.data for entry in entries] == [b"line 1\n", b"line 2\n"]
    missing = await client.get(f"{INSTANCES}/nobody/logs")
    assert (missing.status_code, missing.json()["code"]) == (404, "not-found")


async def test_followed_logs_answer_at_once(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(90):
        async with client.stream("GET", f"{WEB}/logs", params={"follow": "true", "tail": 0}) as answer:
            assert answer.status_code == 200


async def test_a_watch_tells_every_change_from_a_revision_on(client: httpx.AsyncClient, layer: FakeLayer) -> None:
    since = layer.revision
    await client.post(INSTANCES, json={"name": "one", "spec": {"image": "debian:12"}})
    async with asyncio.timeout(90):
        async with client.stream("GET", INSTANCES, params={"watch": "true", "since": since}) as stream:
            assert stream.headers["content-type"] == "text/event-stream"
            lines = stream.aiter_lines()
            first = [await anext(lines) for _ in range(4)]
            await client.delete(f"{INSTANCES}/one")
            second = [await anext(lines) for _ in range(4)]
    assert first[:2] == [f"id: {since + 1}", "event: created"]
    assert json.loads(first[2].removeprefix("data: "))["name"] == "one"
    assert second[:2] == [f"id: {since + 2}", "event: deleted"]


async def test_a_lost_watch_goes_on_where_it_was(client: httpx.AsyncClient, layer: FakeLayer) -> None:
    headers = {"last-event-id": str(layer.revision - 1)}
    async with client.stream("GET", "/v1/projects/default/changes", headers=headers) as stream:
        assert await anext(stream.aiter_lines()) == f"id: {layer.revision}"
    refused = await client.get("/v1/projects/default/changes", headers={"last-event-id": "x"})
    assert refused.status_code == 400


async def test_a_watch_from_a_revision_that_is_gone_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.get(INSTANCES, params={"watch": "true", "since": 10**9})
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")


async def test_files_go_in_and_out(client: httpx.AsyncClient) -> None:
    async def chunks():
        for _ in range(64):
            yield b"q" * 65536

    sent = await client.put(f"{WEB}/files/content", params={"path": "/tmp/f", "mode": "0600"}, content=chunks())
    assert sent.status_code == 204
    info = (await client.get(f"{WEB}/files", params={"path": "/tmp/f"})).json()
    assert info["type"] == "file"
    small = await client.put(f"{WEB}/files/content", params={"path": "/tmp/é ?"}, content=b"\x00\xff")
    assert small.status_code == 204
    read = await client.get(f"{WEB}/files/content", params={"path": "/tmp/é ?"})
    assert (read.headers["content-type"], read.content) == ("application/octet-stream", b"\x00\xff")
    assert (await client.get(f"{WEB}/files/content", params={"path": "/none"})).status_code == 404
    assert (await client.get(f"{WEB}/files/content", params={"path": "relative"})).json()["field"] == "path"
    assert (await client.post(f"{WEB}/files/directory", params={"path": "/d", "mode": "0755"})).status_code == 204
    listed = await client.get(f"{WEB}/files/list", params={"path": "/tmp"})
    assert sorted(info["path"] for info in listed.json()) == ["/tmp/f", "/tmp/é ?"]


async def test_an_upload_is_larger_than_any_limit_for_json(client: httpx.AsyncClient, layer: FakeLayer) -> None:
    async def chunks():
        for _ in range(48):
            yield b"q" * (1 << 20)

    answer = await client.put(f"{WEB}/files/content", params={"path": "/big"}, content=chunks())
    assert answer.status_code == 204
    assert layer.uploaded == 48 << 20


async def test_a_file_that_breaks_off_is_not_taken_for_whole(client: httpx.AsyncClient, layer: FakeLayer) -> None:
    layer.files["/broken"] = b"a" * 65536 + b"BREAK"
    with pytest.raises(httpx.RemoteProtocolError):
        await client.get(f"{WEB}/files/content", params={"path": "/broken"})


async def test_an_unexpected_error_keeps_its_trace_to_the_log(
    client: httpx.AsyncClient, layer: FakeLayer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("a secret place")

    monkeypatch.setattr(layer, "contract", broken)
    answer = await client.get(f"{WEB}/contract")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text
    request_id = answer.json()["hint"].split()[2]
    assert any(request_id in record.getMessage() and record.exc_info for record in caplog.records)
