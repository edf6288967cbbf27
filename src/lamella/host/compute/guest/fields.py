"""Message bodies of the guest protocol: a run of (u16 tag, u32 length, value); numbers are u64, everything little-endian."""

import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from enum import IntEnum

from lamella.model.errors import Corrupt

_FIELD = struct.Struct("<HI")
_NUMBER = struct.Struct("<Q")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Verb(IntEnum):
    CONFIGURE = 1
    START = 2
    EXEC = 3
    ATTACH = 4
    LOGS = 5
    ACKNOWLEDGE_LOGS = 6
    SIGNAL = 7
    STATE = 8
    WAIT_EXIT = 9
    ACKNOWLEDGE_EXIT = 10
    SHUTDOWN = 11
    STAT = 12
    LIST = 13
    READ = 14
    WRITE = 15
    MAKE_DIRECTORY = 16
    USAGE = 17
    FREEZE = 18
    THAW = 19
    RESEED = 20
    SET = 21
    MOUNT = 22
    UNMOUNT = 23
    HOLD = 24
    RELEASE = 25
    RENEW = 26
    PREPARE = 27


class Tag(IntEnum):
    VERB = 1
    PATH = 2
    ARGUMENT = 3
    ENVIRONMENT = 4
    WORKING_DIRECTORY = 5
    USER = 6
    TERMINAL = 7
    STDIN = 8
    ROWS = 9
    COLUMNS = 10
    TIMEOUT_MS = 11
    SIGNAL = 12
    EXIT_CODE = 13
    REASON = 14
    ERROR = 15
    MESSAGE = 16
    MODE = 17
    UID = 18
    GID = 19
    SIZE = 20
    MODIFIED_NS = 21
    TARGET = 22
    FILE_TYPE = 23
    HOSTNAME = 24
    NAMESERVER = 25
    MAC = 26
    ADDRESS = 27
    GATEWAY = 28
    MTU = 29
    INTERFACE = 30
    ROOT_SERIAL = 31
    DATA_SERIAL = 32
    PIDS = 33
    ENTROPY = 34
    TIME_NS = 35
    PHASE = 36
    PID = 37
    STARTED_NS = 38
    FINISHED_NS = 39
    LOG_START = 40
    LOG_END = 41
    LOG_ACKNOWLEDGED = 42
    OFFSET = 43
    CPU_US = 44
    MEMORY = 45
    MEMORY_TOTAL = 46
    PROCESSES = 47
    DISK_USED = 48
    RECEIVED = 49
    SENT = 50
    VERSION = 51
    AGENT_MODE = 52
    KERNEL = 53
    REBOOT = 54
    SERIAL = 55
    FILESYSTEM = 56
    READ_ONLY = 57
    COUNT = 58
    HELD = 59
    PLACE = 60
    ADDRESS6 = 61
    GATEWAY6 = 62
    FORMER_MAC = 63
    DROP_NETWORK = 64


Value = bytes | str | int | bool


def field(tag: Tag, value: Value) -> bytes:
    raw = _NUMBER.pack(value) if isinstance(value, int) else value.encode() if isinstance(value, str) else value
    return _FIELD.pack(tag, len(raw)) + raw


def body(*pairs: tuple[Tag, Value | None]) -> bytes:
    """A message of these fields in this order; those that are ``None`` are left out."""
    return b"".join(field(tag, value) for tag, value in pairs if value is not None)


class Fields:
    """A message from the guest: the first value of each tag that we know; what we do not know is skipped.

    :raise Corrupt: when it cannot be taken apart.
    """

    def __init__(self, message: bytes) -> None:
        self._values: dict[int, bytes] = {}
        for tag, value in _split(message):
            self._values.setdefault(tag, value)

    def __contains__(self, tag: Tag) -> bool:
        return tag in self._values

    def text(self, tag: Tag) -> str:
        """Empty when absent; what is not UTF-8 is replaced."""
        return self._values.get(tag, b"").decode(errors="replace")

    def number(self, tag: Tag, *, largest: int = (1 << 63) - 1) -> int | None:
        """:raise Corrupt: when it is not a number from 0 to *largest*."""
        raw = self._values.get(tag)
        if raw is None:
            return None
        if len(raw) != _NUMBER.size or (value := _NUMBER.unpack(raw)[0]) > largest:
            raise Corrupt(f"the guest sent a {tag.name.lower()} that cannot be", hint="its agent is broken or hostile")
        return value

    def time(self, tag: Tag) -> datetime | None:
        value = self.number(tag)
        return None if value is None else when(value)


def when(nanoseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=nanoseconds // 1000)


def nanoseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def _split(message: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(message):
        if len(message) - at < _FIELD.size:
            raise Corrupt("the guest sent a message that ends inside a field", hint="its agent is broken or hostile")
        tag, size = _FIELD.unpack_from(message, at)
        at += _FIELD.size
        if len(message) - at < size:
            raise Corrupt("the guest sent a message that ends inside a field", hint="its agent is broken or hostile")
        yield tag, message[at : at + size]
        at += size
