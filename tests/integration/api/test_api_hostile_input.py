"""Bytes that nobody sends by accident: a sentence and a 4xx, or a closed connection; never a 5xx, and the server lives on."""

import asyncio
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_layer import FakeLayer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server_thread import serving

from lamella.api.app import create_app
from lamella.api.serve import serve
from lamella.wire.identity import Peer

INSTANCES = b"/v1/projects/default/instances"


@pytest.fixture(scope="module")
def uds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One server for all of it: what one test sends must not hurt the next."""
    path = tmp_path_factory.mktemp("hostile") / "api.sock"
    with serving(lambda ready: serve(create_app(FakeLayer()), uds=path, ready=ready, deadline=1)):
        yield path


async def ask(uds: Path, request: bytes) -> tuple[int, bytes]:
    """Status and body of what is answered to *request*; status 0 when the connection is closed instead."""
    reader, writer = await asyncio.open_unix_connection(str(uds))
    try:
        async with asyncio.timeout(90):
            writer.write(request)
            await writer.drain()
            writer.write_eof()
            answer = await reader.read()
    except ConnectionError:
        return 0, b""
    finally:
        writer.transport.abort()
    head, _, body = answer.partition(b"\r\n\r\n")
    return (int(head.split(b" ", 2)[1]), body) if head else (0, b"")


def get(path: bytes, *headers: bytes, method: bytes = b"GET", body: bytes = b"") -> bytes:
    lines = [b"%s %s HTTP/1.1" % (method, path), b"host: x", b"connection: close", *headers]
    if body:
        lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (INSTANCES + b"/%00", 400),
        (INSTANCES + b"/%ff%fe", 400),
        (INSTANCES + b"/%ED%A0%80", 400),
        (INSTANCES + b"/%zz", 400),
        (INSTANCES + b"/%", 400),
        (INSTANCES + b"/..%2f..%2fetc", 400),
        (INSTANCES + b"/" + b"a" * 5000, 400),
        (b"/v1/projects/%2e%2e/instances", 400),
        (b"/v1/projects/UPPER/instances", 400),
        (b"/%ff", 400),
        (b"/v1/../../etc/passwd", 404),
        (b"//v1", 404),
        (b"/v1//projects/default/instances", 404),
        (b"/v1/projects//instances", 404),
        (INSTANCES + b"/web/" + b"x/" * 2000, 404),
        (INSTANCES + b"?limit=99999999999999999999999999", 400),
        (INSTANCES + b"?limit=-1", 400),
        (INSTANCES + b"?limit=1&limit=2", 400),
        (INSTANCES + b"?label=%ff", 400),
        (INSTANCES + b"?label=novalue", 400),
        (INSTANCES + b"?since=1e400&watch=true", 400),
        (INSTANCES + b"?" + b"&".join(b"a%d=1" % number for number in range(500)), 400),
        (INSTANCES + b"/web/wait?timeout=nan", 400),
        (INSTANCES + b"/web/wait?timeout=inf", 400),
        (INSTANCES + b"/web/wait?for=never", 400),
        (INSTANCES + b"/web/files?path=/a%00b", 400),
        (INSTANCES + b"/web/files", 400),
        (INSTANCES + b"/web/logs?since=yesterday", 400),
    ],
)
async def test_strange_paths_and_queries(uds: Path, path: bytes, status: int) -> None:
    answered, body = await ask(uds, get(path))
    assert answered == status, body
    problem = json.loads(body)
    assert (problem["status"], bool(problem["detail"])) == (status, True)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"spec": {"image": "\xff"}}',
        b'{"spec": {"image": "\\ud800"}}',
        b'{"spec": {"image": "a\\u0000b"}}',
        b'{"spec": {"image": "debian:12", "cpu": 1' + b"0" * 5000 + b"}}",
        b'{"spec": {"image": "debian:12", "memory": 1e999}}',
        b'{"spec": {"image": "debian:12", "stop_timeout": NaN}}',
        b'{"spec": ' * 100000,
        b"[" * 200000 + b"]" * 200000,
        b'{"unknown": 1, "spec": {"image": "debian:12"}}',
        b'{"name": "web", "name": "UPPER", "spec": {"image": "debian:12"}}',
    ],
)
async def test_strange_bodies(uds: Path, body: bytes) -> None:
    answered, text = await ask(uds, get(INSTANCES, method=b"POST", body=body))
    assert answered == 400, text
    assert json.loads(text)["code"] == "invalid"


async def test_a_nested_patch(uds: Path) -> None:
    for depth in (100, 5000, 200000):
        body = b'{"spec": {"environment": ' + b'{"a":' * depth + b"1" + b"}" * depth + b"}}"
        answered, text = await ask(uds, get(INSTANCES + b"/web", method=b"PATCH", body=body))
        assert answered in (400, 422), text[:300]


async def test_a_body_that_is_too_large(uds: Path) -> None:
    answered, text = await ask(uds, get(INSTANCES, b"content-length: 99999999", method=b"POST"))
    assert (answered, json.loads(text)["code"]) == (413, "too-large")
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    chunked = get(INSTANCES, b"transfer-encoding: chunked", method=b"POST") + chunk * 200 + b"0\r\n\r\n"
    answered, _ = await ask(uds, chunked)
    assert answered in (0, 413)


@pytest.mark.parametrize("method", [b"PUT", b"DELETE", b"PATCH", b"TRACE", b"PROPFIND", b"HEAD"])
async def test_a_wrong_method(uds: Path, method: bytes) -> None:
    answered, _ = await ask(uds, get(b"/v1", method=method))
    assert answered == 405


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /v1 HTTP/1.1\r\nhost: a b\r\nhost: c\r\nconnection: close\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET http://other/v1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        b"GET /v1 HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade\r\nhost: x\r\n\r\n",
        b"GET /nothing HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade\r\nhost: x\r\n"
        b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nsec-websocket-version: 13\r\n\r\n",
        b"POST /v1/images/collect HTTP/1.1\r\nhost: x\r\ncontent-length: abc\r\n\r\n",
        b"POST /v1/images/collect HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
    ],
)
async def test_what_is_hardly_http(uds: Path, request_bytes: bytes) -> None:
    answered, text = await ask(uds, request_bytes)
    assert answered < 500, text
    if answered == 400 and b"websocket" not in request_bytes:
        assert json.loads(text)["code"] == "invalid"
    assert (await ask(uds, get(b"/v1")))[0] == 200


@functools.cache
def one_app() -> Any:
    return create_app(FakeLayer())


@settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(path=st.binary(max_size=60), method=st.sampled_from([b"GET", b"POST", b"PATCH"]), body=st.binary(max_size=40))
def test_any_bytes(path: bytes, method: bytes, body: bytes) -> None:
    """In one process, without a server: the application itself never answers with a 5xx."""

    async def once() -> int:
        sent: list[dict[str, object]] = []

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, object]) -> None:
            sent.append(message)

        raw_path, _, query = (INSTANCES + b"/" + path).partition(b"?")
        scope = {"type": "http", "method": method.decode(), "raw_path": raw_path, "path": "", "query_string": query}
        await one_app()({**scope, "headers": [], "state": {"peer": Peer(uid=0, gid=0)}}, receive, send)
        return int(str(sent[0]["status"]))

    assert asyncio.run(once()) < 500
