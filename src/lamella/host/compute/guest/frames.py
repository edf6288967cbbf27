"""Frames of the guest protocol as bytes: what is sent, and a decoder that takes nothing but well-formed ones (docs/guest-protocol.md)."""

import struct
from enum import IntEnum

import msgspec

from lamella.model.errors import Corrupt, Internal

VERSION = 1
GREETING_HOST = b"\0LAMELLA-AGENT\r\n"
GREETING_GUEST = b"\0LAMELLA-GUEST\r\n"
GREETING_SIZE = 32

LARGEST_PAYLOAD = 65536
WINDOW = 256 << 10
MOST_STREAMS = 256

_HEADER = struct.Struct("<IIBBH")
_SEAL = struct.Struct("<I")
_GREETING = struct.Struct("<16sIQI")
FRAME_COST = _HEADER.size + _SEAL.size

PADDING = bytes(LARGEST_PAYLOAD + FRAME_COST)
"""More than any frame: it completes whatever a broken conversation left half-sent."""


class FrameType(IntEnum):
    REQUEST = 1
    DATA = 2
    END = 3
    CREDIT = 4
    CONTROL = 5
    CLOSE = 6
    ITEM = 7
    HELLO = 8


FROM_GUEST = frozenset({FrameType.DATA, FrameType.END, FrameType.CREDIT, FrameType.ITEM, FrameType.HELLO})
MORE = 1


class Frame(msgspec.Struct, frozen=True):
    stream: int
    type: FrameType
    payload: bytes = b""
    flags: int = 0

    @property
    def cost(self) -> int:
        """Bytes of its stream's window that it takes."""
        return FRAME_COST + len(self.payload)


def greeting(nonce: int) -> bytes:
    """What opens a conversation. The low 32 bits of *nonce* seal every frame of it, so they must not be 0."""
    return _GREETING.pack(GREETING_HOST, VERSION, nonce, 0)


def find_greeting(data: bytes | bytearray, nonce: int) -> tuple[int, int] | None:
    """The guest's answer to *nonce* in *data*: its protocol version and where its frames begin; ``None`` when it is not there (yet)."""
    start = data.find(GREETING_GUEST)
    while start >= 0 and start + GREETING_SIZE <= len(data):
        _, version, answered, zero = _GREETING.unpack_from(data, start)
        if answered == nonce and zero == 0:
            return version, start + GREETING_SIZE
        start = data.find(GREETING_GUEST, start + 1)
    return None


def encode(frame: Frame, seal: int) -> bytes:
    """:raise Internal: when the payload is larger than a frame can be."""
    if len(frame.payload) > LARGEST_PAYLOAD:
        raise Internal(f"a frame of {len(frame.payload)} bytes is larger than the guest protocol allows")
    header = _HEADER.pack(len(frame.payload), frame.stream, frame.type, frame.flags, 0)
    return b"".join((header, frame.payload, _SEAL.pack(seal)))


class Decoder:
    """Bytes from the guest in, frames out. It holds less than one frame besides what it was fed."""

    def __init__(self, seal: int) -> None:
        self._seal = seal
        self._held = bytearray()

    def feed(self, data: bytes | bytearray) -> list[Frame]:
        """The frames that are complete now.

        :raise Corrupt: when the bytes cannot be frames of this conversation; the decoder is of no use then.
        """
        self._held += data
        frames: list[Frame] = []
        at = 0
        while len(self._held) - at >= _HEADER.size:
            size, stream, number, flags, zero = _HEADER.unpack_from(self._held, at)
            if size > LARGEST_PAYLOAD or number not in FROM_GUEST or flags or zero:
                raise Corrupt("the guest sent something that is not a frame", hint="its agent is broken or hostile")
            end = at + FRAME_COST + size
            if len(self._held) < end:
                break
            if _SEAL.unpack_from(self._held, end - _SEAL.size)[0] != self._seal:
                raise Corrupt(
                    "the guest sent a frame that is not of this conversation", hint="its agent is broken or hostile"
                )
            payload = bytes(self._held[at + _HEADER.size : end - _SEAL.size])
            frames.append(Frame(stream, FrameType(number), payload))
            at = end
        del self._held[:at]
        return frames
