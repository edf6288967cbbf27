"""The small MessagePack, held against msgspec's."""

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.client.http1 import WireError
from lamella.client.msgpack import pack, unpack
from lamella.model.stream import ExecSpec, Exit, FromProcess, Resize, Signal, Stderr, Stdin, StdinEnd, Stdout, ToProcess

TREES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(), inner, max_size=20),
    max_leaves=20,
)


@given(TREES)
def test_msgspec_reads_what_is_packed(value: object) -> None:
    assert msgspec.msgpack.decode(pack(value)) == value


@given(TREES)
def test_reads_what_msgspec_packs(value: object) -> None:
    data = msgspec.msgpack.encode(value)
    try:
        assert unpack(data) == value
    except WireError as error:
        assert "nested too deeply" in str(error)


@pytest.mark.parametrize("size", [0, 31, 32, 255, 256, 65535, 65536, 70000])
def test_every_length(size: int) -> None:
    for value in (b"x" * size, "x" * size, [0] * size, {str(number): number for number in range(size)}):
        assert unpack(msgspec.msgpack.encode(value)) == value
        assert msgspec.msgpack.decode(pack(value)) == value


def test_the_frames_are_the_models() -> None:
    for parts, frame in (
        (("stdin", b"ab"), Stdin(b"ab")),
        (("eof",), StdinEnd()),
        (("resize", 24, 80), Resize(24, 80)),
        (("signal", 15), Signal(15)),
    ):
        assert msgspec.msgpack.decode(pack(parts), type=ToProcess) == frame
    for read, sent in (
        (["stdout", b"a"], Stdout(b"a")),
        (["stderr", b"b"], Stderr(b"b")),
        (["exit", 127, "no"], Exit(127, "no")),
    ):
        assert unpack(msgspec.msgpack.encode(sent)) == read
        assert isinstance(sent, FromProcess)
    spec = ExecSpec(command=["a", "b"], environment={"A": "1"}, stdin=True, timeout=1.5)
    asked = {"command": ["a", "b"], "environment": {"A": "1"}, "stdin": True, "timeout": 1.5}
    assert msgspec.msgpack.decode(pack(asked), type=ExecSpec) == spec


@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(WireError):
        unpack(data)


def test_nothing_nests_without_end() -> None:
    with pytest.raises(WireError):
        unpack(b"\x91" * 5000 + b"\xc0")
