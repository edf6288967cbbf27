"""The WebSocket reader and writer, held against wsproto."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection, events
from wsproto.connection import Connection

from lamella.client import websocket
from lamella.client.http1 import WireError

SIZES = st.one_of(st.integers(0, 200), st.sampled_from([125, 126, 127, 65535, 65536, 70000]))


@given(st.lists(SIZES, max_size=4), st.integers(500, 50_000))
def test_wsproto_reads_what_is_written(sizes: list[int], step: int) -> None:
    wanted = [bytes([size % 251]) * size for size in sizes]
    server = Connection(ConnectionType.SERVER)
    got: list[bytes] = []
    part = b""
    for data in (*(websocket.message(message) for message in wanted), websocket.closing(1000, "bye")):
        for start in range(0, len(data), step):
            server.receive_data(data[start : start + step])
            for event in server.events():
                if isinstance(event, events.BytesMessage):
                    part += bytes(event.data)
                    if event.message_finished:
                        got.append(part)
                        part = b""
                elif isinstance(event, events.CloseConnection):
                    assert (event.code, event.reason) == (1000, "bye")
    assert got == wanted


@given(st.lists(st.tuples(SIZES, st.booleans()), max_size=4), st.integers(500, 50_000))
def test_reads_what_wsproto_writes(messages: list[tuple[int, bool]], step: int) -> None:
    server = Connection(ConnectionType.SERVER)
    data = b""
    wanted: list[bytes] = []
    for size, split in messages:
        message = bytes([size % 251]) * size
        wanted.append(message)
        if split:
            data += server.send(events.BytesMessage(data=message[: size // 2], message_finished=False))
            data += server.send(events.Ping(payload=b"there?"))
            data += server.send(events.BytesMessage(data=message[size // 2 :]))
        else:
            data += server.send(events.BytesMessage(data=message))
    data += server.send(events.CloseConnection(code=4004, reason="not-found"))
    reader = websocket.MessageReader()
    got: list[bytes] = []
    for start in range(0, len(data), step):
        got += reader.feed(data[start : start + step])
    assert got == wanted
    assert (reader.closed, reader.code, reader.reason) == (True, 4004, "not-found")
    server.receive_data(bytes(reader.answers))
    answered = list(server.events())
    assert sum(isinstance(event, events.Pong) for event in answered) == sum(split for _, split in messages)


def test_the_handshake_is_wsprotos_own() -> None:
    handshake = websocket.Handshake()
    server = WSConnection(ConnectionType.SERVER)
    lines = "".join(f"{name}: {value}\r\n" for name, value in handshake.headers.items())
    server.receive_data(f"GET / HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())
    assert isinstance(next(server.events()), events.Request)
    answer = server.send(events.AcceptConnection()).decode()
    headers = {
        name.lower(): value for name, _, value in (line.partition(": ") for line in answer.split("\r\n")[1:] if line)
    }
    handshake.check(101, headers)
    with pytest.raises(WireError):
        handshake.check(200, headers)
    with pytest.raises(WireError):
        websocket.Handshake().check(101, headers)


def test_a_text_message_is_a_refusal() -> None:
    server = Connection(ConnectionType.SERVER)
    data = server.send(events.TextMessage(data='{"code":"not-found"}')) + server.send(events.CloseConnection(code=4004))
    reader = websocket.MessageReader()
    assert list(reader.feed(data)) == []
    assert (reader.refusal, reader.code) == (b'{"code":"not-found"}', 4004)


@given(st.binary(max_size=200), st.binary(min_size=4, max_size=4))
def test_masking_twice_is_nothing(data: bytes, key: bytes) -> None:
    assert websocket.mask(websocket.mask(data, key), key) == data


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    reader = websocket.MessageReader()
    try:
        list(reader.feed(data))
        list(reader.feed(b""))
    except WireError:
        pass


@pytest.mark.parametrize(
    "data",
    [
        b"\x82\x85aaaaaaaaa",  # masked by a server
        b"\xc2\x00",  # a reserved bit
        b"\x89\x7e\x00\x80",  # a ping that is too long
        b"\x09\x00",  # a ping in pieces
        b"\x80\x00",  # the rest of nothing
        b"\x82\x7f\x00\x00\x00\x01\x00\x00\x00\x00",  # 4 GiB
        b"\x83\x00",  # an unknown kind
    ],
)
def test_what_the_protocol_forbids_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        list(websocket.MessageReader().feed(data))
