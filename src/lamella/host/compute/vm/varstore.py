"""The store of UEFI variables of an OVMF machine: what is in it, and certificates added to those that Secure Boot trusts. Pure.

The file is a firmware volume whose content is a list of authenticated variables. Facts: EDK II,
MdeModulePkg/Include/Guid/VariableFormat.h and MdePkg/Include/Pi/PiFirmwareVolume.h; UEFI 2.10, section 32.4.1 (signature lists).
"""

import struct
import uuid

import msgspec

from lamella.model.errors import Corrupt, NoRoom

_VOLUME = struct.Struct("<16s16sQ4sIHHHBB")
_STORE = struct.Struct("<16sIBBHI")
_VARIABLE = struct.Struct("<HBBIQ16sIII16s")
_AUTHENTICATED = uuid.UUID("aaf32c78-947b-439a-a180-2e144ec37792").bytes_le
_START = 0x55AA
_ADDED = 0x3F

_GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c").bytes_le
_SECURITY_DATABASE = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f").bytes_le
_X509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072").bytes_le
_LIST = struct.Struct("<16sIII")

# Non-volatile, boot and run time, authenticated by time: how firmware keeps its databases.
_DATABASE_ATTRIBUTES = 0x27


class Variable(msgspec.Struct, kw_only=True, frozen=True):
    """One variable as it lies in the store; ``state`` 0x3f is one that counts, others were replaced or half written."""

    name: str
    vendor: bytes
    data: bytes
    attributes: int
    count: int = 0
    time: bytes = bytes(16)
    key: int = 0
    state: int = _ADDED
    reserved: int = 0

    def pack(self) -> bytes:
        name = self.name.encode("utf-16-le") + b"\0\0"
        head = _VARIABLE.pack(
            _START, self.state, self.reserved, self.attributes, self.count, self.time, self.key, len(name), len(self.data), self.vendor
        )  # fmt: skip
        return _aligned(head + name + self.data)


def read(store: bytes) -> list[Variable]:
    """Every variable of *store* that counts.

    :raise Corrupt: when it is not such a store.
    """
    start, end = _content(store)
    found: list[Variable] = []
    while start + _VARIABLE.size <= end:
        mark, state, reserved, attributes, count, time, key, name_size, size, vendor = _VARIABLE.unpack_from(
            store, start
        )
        if mark != _START:
            break
        begin = start + _VARIABLE.size
        if begin + name_size + size > end:
            raise Corrupt("a variable in the store of UEFI variables reaches beyond its end")
        if state == _ADDED:
            name = store[begin : begin + name_size].decode("utf-16-le", errors="replace").rstrip("\0")
            data = store[begin + name_size : begin + name_size + size]
            found.append(
                Variable(
                    name=name, vendor=vendor, data=data, attributes=attributes, count=count, time=time, key=key, reserved=reserved
                )
            )  # fmt: skip
        start = begin + name_size + size
        start += -start % 4
    return found


def enforced(store: bytes) -> bool:
    """Whether a firmware with Secure Boot refuses what is not signed: a platform key is there (UEFI 2.10, section 32.3)."""
    return any(variable.name == "PK" and variable.vendor == _GLOBAL and variable.data for variable in read(store))


def enrol(store: bytes, certificates: list[bytes], owner: uuid.UUID) -> bytes:
    """*store* with *certificates* (X.509, DER) among those whose signatures are trusted; those that are there stay as they are.

    *owner* names who enrolled them, for people who look.

    :raise Corrupt: when it is not such a store.
    :raise NoRoom: when they do not fit.
    """
    variables = read(store)
    known = next((one for one in variables if one.name == "db" and one.vendor == _SECURITY_DATABASE), None)
    data = known.data if known is not None else b""
    added = data + b"".join(_signature_list(der, owner) for der in certificates if der not in data)
    if added == data:
        return store
    if known is None:
        known = Variable(name="db", vendor=_SECURITY_DATABASE, data=b"", attributes=_DATABASE_ATTRIBUTES)
    changed = msgspec.structs.replace(known, data=added)
    others = [one for one in variables if one is not known]
    start, end = _content(store)
    content = b"".join(one.pack() for one in [*others, changed])
    if len(content) > end - start:
        raise NoRoom(
            "the certificates do not fit into the store of UEFI variables", hint="enrol fewer, or one authority's"
        )
    return store[:start] + content.ljust(end - start, b"\xff") + store[end:]


def _signature_list(der: bytes, owner: uuid.UUID) -> bytes:
    size = 16 + len(der)
    return _LIST.pack(_X509, _LIST.size + size, 0, size) + owner.bytes_le + der


def _content(store: bytes) -> tuple[int, int]:
    """Where the variables begin, and the end of the room for them."""
    try:
        *_, magic, _, head, _, _, _, _ = _VOLUME.unpack_from(store)
        kind, size, form, state, _, _ = _STORE.unpack_from(store, head)
    except struct.error:
        magic, kind, head, size, form, state = b"", b"", 0, 0, 0, 0
    if magic != b"_FVH" or kind != _AUTHENTICATED or (form, state) != (0x5A, 0xFE) or head + size > len(store):
        raise Corrupt("this is no store of UEFI variables of OVMF", hint="install the package ovmf anew")
    return head + _STORE.size, head + size


def _aligned(data: bytes) -> bytes:
    return data + b"\xff" * (-len(data) % 4)
