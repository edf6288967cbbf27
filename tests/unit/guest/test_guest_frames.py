"""The codec: what is encoded comes back, however the bytes are cut; anything else is refused and nothing is hoarded."""

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.host.compute.guest.frames import (
    FRAME_COST,
    FROM_GUEST,
    GREETING_GUEST,
    LARGEST_PAYLOAD,
    PADDING,
    Decoder,
    Frame,
    FrameType,
    encode,
    find_greeting,
    greeting,
)
from lamella.model.errors import Corrupt, Internal

SEAL = 0x1234_5678
streams = st.integers(0, (1 << 32) - 1)
frames = st.builds(Frame, streams, st.sampled_from(sorted(FROM_GUEST)), st.binary(max_size=300))


def answer(nonce: int, version: int = 1) -> bytes:
    return struct.pack("<16sIQI", GREETING_GUEST, version, nonce, 0)


@given(st.lists(frames, max_size=10), st.lists(st.integers(0, 3000), max_size=12))
def test_frames_come_back_however_they_are_cut(sent: list[Frame], cuts: list[int]) -> None:
    raw = b"".join(encode(frame, SEAL) for frame in sent)
    edges = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
    decoder = Decoder(SEAL)
    received = [frame for start, end in itertools.pairwise(edges) for frame in decoder.feed(raw[start:end])]
    assert received == sent


@given(st.lists(frames, min_size=1, max_size=4), st.data())
def test_a_changed_byte_is_refused_or_changes_only_what_it_names(sent: list[Frame], data: st.DataObject) -> None:
    raw = bytearray(b"".join(encode(frame, SEAL) for frame in sent))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    decoder = Decoder(SEAL)
    try:
        received = decoder.feed(raw)
    except Corrupt:
        return
    whole = [frame for frame in received if frame in sent]
    assert len(received) <= len(sent)
    assert len(whole) >= len(received) - 1


@given(st.binary(max_size=5000), st.integers(1, 200))
def test_random_bytes_never_make_it_hold_more_than_a_frame(noise: bytes, step: int) -> None:
    decoder = Decoder(SEAL)
    try:
        for start in range(0, len(noise), step):
            decoder.feed(noise[start : start + step])
    except Corrupt:
        pass
    assert len(decoder._held) < LARGEST_PAYLOAD + FRAME_COST + step


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<IIBBH", LARGEST_PAYLOAD + 1, 1, FrameType.DATA, 0, 0),
        struct.pack("<IIBBH", 0xFFFF_FFFF, 1, FrameType.DATA, 0, 0),
        struct.pack("<IIBBH", 0, 1, FrameType.REQUEST, 0, 0),
        struct.pack("<IIBBH", 0, 1, 0, 0, 0),
        struct.pack("<IIBBH", 0, 1, FrameType.DATA, 1, 0),
        struct.pack("<IIBBH", 0, 1, FrameType.DATA, 0, 7),
    ],
)
def test_a_header_that_cannot_be_is_refused_before_its_payload_comes(header: bytes) -> None:
    with pytest.raises(Corrupt):
        Decoder(SEAL).feed(header)


def test_a_frame_of_another_conversation_is_refused() -> None:
    with pytest.raises(Corrupt, match="not of this conversation"):
        Decoder(SEAL).feed(encode(Frame(1, FrameType.END), SEAL + 1))


def test_what_is_larger_than_a_frame_is_not_encoded() -> None:
    with pytest.raises(Internal):
        encode(Frame(1, FrameType.DATA, bytes(LARGEST_PAYLOAD + 1)), SEAL)


@given(st.binary(max_size=200), st.binary(max_size=50), st.integers(1, (1 << 64) - 1))
def test_the_answer_is_found_after_anything_stale(before: bytes, after: bytes, nonce: int) -> None:
    stale = answer(nonce ^ 1)
    raw = before + stale + before + answer(nonce) + after
    found = find_greeting(raw, nonce)
    assert found is not None
    assert found[0] == 1
    assert raw[found[1] :] == after or GREETING_GUEST in before


def test_padding_completes_the_largest_frame_that_was_cut_anywhere() -> None:
    whole = encode(Frame(1, FrameType.DATA, bytes(LARGEST_PAYLOAD)), SEAL)
    assert len(PADDING) >= len(whole)
    assert len(greeting(1)) == 32
