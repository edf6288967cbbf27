"""The HTTP reader and writer, held against h11."""

import itertools

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.client import http1
from lamella.client.http1 import ResponseReader, WireError
from lamella.client.request import Request
from lamella.client.routes import quote, target

TOKENS = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12).filter(
    lambda name: (
        name not in ("connection", "te", "upgrade", "trailer", "date") and not name.startswith(("content", "transfer"))
    )
)
VALUES = st.text("abcdefghijklmnopqrstuvwxyz0123456789 /=;", max_size=20).map(str.strip)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


def read(reader: ResponseReader, parts: list[bytes]) -> bytes:
    body = b""
    for part in parts:
        reader.feed(part)
        body += reader.take()
    return body


@given(
    st.integers(200, 599).filter(lambda status: status not in (204, 304)),
    st.dictionaries(TOKENS, VALUES, max_size=5),
    st.lists(st.binary(max_size=300), max_size=5),
    st.sampled_from(["length", "chunked"]),
    st.lists(st.integers(0, 10_000), max_size=8),
)
def test_reads_what_h11_writes(
    status: int, headers: dict[str, str], body: list[bytes], framing: str, cuts: list[int]
) -> None:
    server = h11.Connection(h11.SERVER)
    server.receive_data(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    while server.next_event() is not h11.PAUSED and server.their_state is not h11.DONE:
        pass
    whole = b"".join(body)
    frame = ("content-length", str(len(whole))) if framing == "length" else ("transfer-encoding", "chunked")
    data = server.send(h11.Response(status_code=status, headers=[*headers.items(), frame])) or b""
    for part in body:
        data += server.send(h11.Data(data=part)) or b""
    data += server.send(h11.EndOfMessage()) or b""
    reader = ResponseReader("GET")
    assert read(reader, pieces(data, cuts)) == whole
    assert reader.done and reader.reusable and reader.status == status
    assert {name: reader.headers[name] for name in headers} == headers
    assert reader.rest == b""


@given(
    st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE"]),
    st.text(max_size=30),
    st.one_of(st.none(), st.binary(max_size=300), st.lists(st.binary(min_size=1, max_size=100), max_size=4)),
)
def test_h11_reads_what_is_written(method: str, name: str, body: bytes | list[bytes] | None) -> None:
    request = Request(
        method, target("projects", name, query=[("path", name), ("follow", True), ("tail", None)]), body=body
    )
    data = http1.head(request, "lamella")
    if isinstance(body, bytes):
        data += body
    elif body is not None:
        data += b"".join(http1.chunk(part) for part in body) + http1.chunk(b"")
    server = h11.Connection(h11.SERVER)
    server.receive_data(data)
    seen = server.next_event()
    assert isinstance(seen, h11.Request)
    assert (seen.method.decode(), seen.target.decode()) == (method, request.target)
    got = b""
    while isinstance(event := server.next_event(), h11.Data):
        got += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert got == (body if isinstance(body, bytes) else b"".join(body or []))


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4))
def test_any_bytes_are_read_or_refused(data: bytes, cuts: list[int]) -> None:
    for prefix in (b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"):
        reader = ResponseReader("GET")
        try:
            read(reader, pieces(prefix + data, cuts))
            reader.feed(b"")
        except WireError:
            pass


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 20x OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
        b"HTTP/1.1 200 OK\r\nno name\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * http1.LARGEST_HEAD,
    ],
)
def test_what_is_not_http_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        ResponseReader("GET").feed(data)


def test_interim_answers_are_passed_over_and_what_follows_an_upgrade_is_kept() -> None:
    reader = ResponseReader("GET")
    reader.feed(
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\nframes"
    )
    assert (reader.status, reader.done, reader.rest) == (101, True, b"frames")


def test_a_body_until_the_end_of_the_connection() -> None:
    reader = ResponseReader("GET")
    reader.feed(b"HTTP/1.0 200 OK\r\n\r\nab")
    assert not reader.done
    reader.feed(b"")
    assert (reader.take(), reader.done, reader.reusable) == (b"ab", True, False)


def test_an_answer_that_breaks_off_is_no_answer() -> None:
    reader = ResponseReader("GET")
    reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab")
    with pytest.raises(WireError):
        reader.feed(b"")


def test_nothing_of_a_request_can_end_its_line() -> None:
    for request in (
        Request("GET", "/v1", headers={"If-Match": '"1"\r\nX: y'}),
        Request("GET", "/v1 HTTP/1.1\r\nX: y"),
        Request("G\nT", "/"),
    ):
        with pytest.raises(WireError):
            http1.head(request, "lamella")


@given(st.text(max_size=40))
def test_a_segment_is_one_segment(name: str) -> None:
    from urllib.parse import unquote

    assert unquote(quote(name), errors="strict") == name
    assert not set(quote(name)) & set("/?#& \r\n=")
