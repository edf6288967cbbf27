"""The part of MessagePack that the frames of ``lamella.model.stream`` use, for the command that must start quickly.

The library packs the same frames with msgspec; the tests hold the two against each other.
"""

import struct

from lamella.client.http1 import WireError


def pack(value: object) -> bytes:
    """*value* (None, bool, int, float, str, bytes, list, tuple or dict of these) as MessagePack.

    :raise TypeError: for anything else.
    """
    out = bytearray()
    _pack(value, out)
    return bytes(out)


def _pack(value: object, out: bytearray) -> None:
    if value is None:
        out.append(0xC0)
    elif isinstance(value, bool):
        out.append(0xC3 if value else 0xC2)
    elif isinstance(value, int):
        _pack_int(value, out)
    elif isinstance(value, float):
        out += struct.pack(">Bd", 0xCB, value)
    elif isinstance(value, str):
        data = value.encode("utf-8", "surrogatepass")
        _head(out, len(data), 0xA0, 32, 0xDA, 0xDB)
        out += data
    elif isinstance(value, bytes):
        size = len(value)
        out += (
            bytes((0xC4, size))
            if size < 256
            else struct.pack(">BH", 0xC5, size)
            if size < 65536
            else struct.pack(">BI", 0xC6, size)
        )
        out += value
    elif isinstance(value, (list, tuple)):
        items: list[object] = list(value)  # pyright: ignore[reportUnknownArgumentType]
        _head(out, len(items), 0x90, 16, 0xDC, 0xDD)
        for item in items:
            _pack(item, out)
    elif isinstance(value, dict):
        pairs: dict[object, object] = value  # pyright: ignore[reportUnknownVariableType]
        _head(out, len(pairs), 0x80, 16, 0xDE, 0xDF)
        for key, item in pairs.items():
            _pack(key, out)
            _pack(item, out)
    else:
        raise TypeError(f"{type(value).__name__} is not packed")


def _head(out: bytearray, size: int, small: int, bound: int, middle: int, large: int) -> None:
    if size < bound:
        out.append(small | size)
    elif size < 65536:
        out += struct.pack(">BH", middle, size)
    else:
        out += struct.pack(">BI", large, size)


def _pack_int(value: int, out: bytearray) -> None:
    if 0 <= value < 128:
        out.append(value)
    elif value >= 0:
        out += struct.pack(">BI", 0xCE, value) if value < 1 << 32 else struct.pack(">BQ", 0xCF, value)
    elif value >= -32:
        out.append(value & 0xFF)
    else:
        out += struct.pack(">Bq", 0xD3, value)


def unpack(data: bytes) -> object:
    """The one value that *data* is.

    :raise WireError: when it is not MessagePack, or not of the part that is used here.
    """
    try:
        value, end = _unpack(data, 0, 8)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise WireError("the daemon sent a frame that cannot be read") from error
    if end != len(data):
        raise WireError("the daemon sent a frame with something behind it")
    return value


_FIXED = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
    0xCA: ">f",
    0xCB: ">d",
}
_LENGTHS = {
    0xD9: ">B",
    0xDA: ">H",
    0xDB: ">I",
    0xC4: ">B",
    0xC5: ">H",
    0xC6: ">I",
    0xDC: ">H",
    0xDD: ">I",
    0xDE: ">H",
    0xDF: ">I",
}


def _unpack(data: bytes, at: int, depth: int) -> tuple[object, int]:
    if not depth:
        raise WireError("the daemon sent a frame that is nested too deeply")
    byte = data[at]
    at += 1
    if byte < 0x80:
        return byte, at
    if byte >= 0xE0:
        return byte - 256, at
    if byte in _FIXED:
        return _FIXED[byte], at
    if byte in _NUMBERS:
        number: int | float = struct.unpack_from(_NUMBERS[byte], data, at)[0]
        return number, at + struct.calcsize(_NUMBERS[byte])
    if byte < 0xC0:
        size = byte & (0x0F if byte < 0xA0 else 0x1F)
    elif byte in _LENGTHS:
        size = struct.unpack_from(_LENGTHS[byte], data, at)[0]
        at += struct.calcsize(_LENGTHS[byte])
    else:
        raise WireError("the daemon sent a frame that cannot be read")
    if byte < 0x90 or byte in (0xDE, 0xDF):
        return _unpack_map(data, at, size, depth)
    if byte < 0xA0 or byte in (0xDC, 0xDD):
        items: list[object] = []
        for _ in range(size):
            item, at = _unpack(data, at, depth - 1)
            items.append(item)
        return items, at
    piece = data[at : at + size]
    if len(piece) != size:
        raise WireError("the daemon sent a frame that is cut off")
    return (piece if byte in (0xC4, 0xC5, 0xC6) else piece.decode()), at + size


def _unpack_map(data: bytes, at: int, size: int, depth: int) -> tuple[object, int]:
    pairs: dict[object, object] = {}
    for _ in range(size):
        key, at = _unpack(data, at, depth - 1)
        if not isinstance(key, (str, int)):
            raise WireError("the daemon sent a map with a strange key")
        pairs[key], at = _unpack(data, at, depth - 1)
    return pairs, at
