"""What instances with virtual hardware have, over the real server."""

import httpx
import pytest
from fake_layer import FakeLayer
from test_api_routes import INSTANCES, WEB
from websocket_client import WebSocketClient

from lamella.model.board import Input, Pointer
from lamella.model.stream import Stdin, StdinEnd

IMAGE = "/v1/projects/default/images/team%2Fweb:1.0"


async def test_the_reset_button(client: httpx.AsyncClient, layer: FakeLayer) -> None:
    await client.post(INSTANCES, json={"name": "db", "spec": {"image": "debian:12", "isolation": "vm"}})
    done = await client.post(f"{INSTANCES}/db/reset")
    assert (done.status_code, done.content, layer.pressed) == (204, b"", ["reset"])
    refused = await client.post(f"{WEB}/reset")
    assert (refused.status_code, refused.json()["code"]) == (422, "unsupported")
    assert refused.json()["hint"] == "--isolation vm has one"


async def test_a_screenshot_is_a_picture(client: httpx.AsyncClient) -> None:
    answer = await client.get(f"{WEB}/screenshot")
    assert (answer.headers["content-type"], answer.content) == ("image/png", b"\x89PNG\r\nweb")
    assert answer.headers["cache-control"] == "no-store"
    missing = await client.get(f"{INSTANCES}/nobody/screenshot")
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")


async def test_hands(client: httpx.AsyncClient, layer: FakeLayer) -> None:
    asked = {
        "text": "root\n",
        "keys": [["ctrl", "alt", "delete"]],
        "pointer": [{"x": 0.5, "y": 1, "buttons": ["left"]}],
    }
    assert (await client.post(f"{WEB}/input", json=asked)).status_code == 204
    pointer = [Pointer(x=0.5, y=1.0, buttons=["left"])]
    assert layer.pressed == [Input(text="root\n", keys=[["ctrl", "alt", "delete"]], pointer=pointer)]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"keys": [["CTRL"]]}, "keys[0][0]"),
        ({"keys": ["ctrl"]}, "keys[0]"),
        ({"pointer": [{"x": 1.5, "y": 0}]}, "pointer[0].x"),
        ({"pointer": [{"x": 1, "y": 0, "buttons": ["fourth"]}]}, "pointer[0].buttons[0]"),
        ({"tekst": "x"}, ""),
    ],
)
async def test_hands_that_nobody_has(client: httpx.AsyncClient, body: object, field: str) -> None:
    answer = await client.post(f"{WEB}/input", json=body)
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (400, "invalid", field)


async def test_a_desktop_is_entered_with_a_ticket(client: httpx.AsyncClient) -> None:
    ticket = await client.post(f"{WEB}/desktop", params={"kind": "spice"})
    assert (ticket.json()["kind"], ticket.json()["password"]) == ("spice", "once")
    assert ticket.headers["cache-control"] == "no-store"
    assert (await client.post(f"{WEB}/desktop")).json()["kind"] == "vnc"
    refused = await client.post(f"{WEB}/desktop", params={"kind": "rdp"})
    assert (refused.status_code, refused.json()["field"]) == (400, "kind")


@pytest.mark.parametrize("kind", ["vnc", "spice"])
async def test_a_viewers_bytes_go_both_ways(uds, layer: FakeLayer, kind: str) -> None:  # type: ignore[no-untyped-def]
    viewer = await WebSocketClient.open(uds, f"{WEB}/screen?kind={kind}")
    await viewer.send(Stdin(b"RFB 003.008\n\x00\xff"))
    assert await viewer.receive() == ["stdout", b"RFB 003.008\n\x00\xff"]
    await viewer.send(StdinEnd())
    assert await viewer.receive() == ["exit", 0, ""]
    assert await viewer.receive() == 1000
    assert layer.streams[-1].command == ["cat", kind]
    viewer.close()


async def test_memory_is_read_as_a_core(client: httpx.AsyncClient) -> None:
    answer = await client.get(f"{WEB}/dump")
    assert (answer.headers["content-type"], answer.content) == ("application/octet-stream", b"\x7fELFcore")
    never = await client.get(f"{WEB}/dump", params={"crash": "true"})
    assert (never.status_code, never.json()["detail"]) == (404, "web never crashed")


async def test_a_disk_is_taken_out(client: httpx.AsyncClient) -> None:
    answer = await client.get(f"{IMAGE}/export")
    assert (answer.headers["content-type"], answer.content) == ("application/octet-stream", b"team/web:1.0 as qcow2")
    assert (await client.get(f"{IMAGE}/export", params={"format": "vmdk"})).content == b"team/web:1.0 as vmdk"
    assert (await client.get(f"{IMAGE}/export", params={"format": "zip"})).json()["field"] == "format"
    assert (await client.get("/v1/projects/default/images/absent/export")).status_code == 404
    with pytest.raises(httpx.RemoteProtocolError):
        await client.get("/v1/projects/default/images/debian:12/export")


async def test_levels_are_compared_and_missed(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/levels")).json()["not_promised"] == ["anything"]
    missed = await client.get("/v1/levels/confidential/why-not")
    assert missed.json() == {"level": "confidential", "available": False, "reasons": []}
    absent = await client.get("/v1/levels/vm9/why-not")
    assert (absent.status_code, absent.json()["code"]) == (404, "not-found")
    assert "unikernel" in absent.json()["hint"]
