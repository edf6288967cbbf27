"""What the guest answers, as the values that the layer knows."""

import struct
from datetime import datetime

from lamella.host.compute.guest.fields import Fields, Tag, when
from lamella.host.compute.guest.frames import Frame, FrameType
from lamella.host.compute.guest.setup import GuestHello, GuestPhase, GuestState
from lamella.model.errors import Corrupt
from lamella.model.files import FileInfo, FileType
from lamella.model.resource import now
from lamella.model.usage import LogEntry, Usage

_PIECE = struct.Struct("<QQB")
_EPOCH: datetime = when(0)
_PHASES = list(GuestPhase)
_FILE_TYPES = [FileType.FILE, FileType.DIRECTORY, FileType.SYMLINK, FileType.OTHER]
_STREAMS = {1: "stdout", 2: "stderr"}


def hello(fields: Fields) -> GuestHello:
    return GuestHello(
        version=fields.number(Tag.VERSION) or 0, mode=fields.text(Tag.AGENT_MODE), kernel=fields.text(Tag.KERNEL)
    )


def state(fields: Fields) -> GuestState:
    return GuestState(
        phase=_PHASES[fields.number(Tag.PHASE, largest=len(_PHASES) - 1) or 0],
        pid=fields.number(Tag.PID, largest=1 << 31),
        exit_code=fields.number(Tag.EXIT_CODE, largest=255),
        reason=fields.text(Tag.REASON),
        started_at=fields.time(Tag.STARTED_NS),
        finished_at=fields.time(Tag.FINISHED_NS),
        log_start=fields.number(Tag.LOG_START) or 0,
        log_end=fields.number(Tag.LOG_END) or 0,
        log_acknowledged=fields.number(Tag.LOG_ACKNOWLEDGED) or 0,
        held=bool(fields.number(Tag.HELD, largest=1)),
    )


def file_info(fields: Fields) -> FileInfo:
    return FileInfo(
        path=fields.text(Tag.PATH),
        type=_FILE_TYPES[fields.number(Tag.FILE_TYPE, largest=len(_FILE_TYPES) - 1) or 0],
        size=fields.number(Tag.SIZE) or 0,
        mode=fields.number(Tag.MODE, largest=0o7777) or 0,
        uid=fields.number(Tag.UID, largest=(1 << 32) - 1) or 0,
        gid=fields.number(Tag.GID, largest=(1 << 32) - 1) or 0,
        modified_at=fields.time(Tag.MODIFIED_NS) or _EPOCH,
        target=fields.text(Tag.TARGET),
    )


def usage(fields: Fields) -> Usage:
    microseconds = fields.number(Tag.CPU_US)
    return Usage(
        at=now(),
        cpu_seconds=None if microseconds is None else microseconds / 1e6,
        memory=fields.number(Tag.MEMORY),
        memory_limit=fields.number(Tag.MEMORY_TOTAL),
        processes=fields.number(Tag.PROCESSES),
        disk_used=fields.number(Tag.DISK_USED),
        received=fields.number(Tag.RECEIVED),
        sent=fields.number(Tag.SENT),
    )


def log_piece(frame: Frame) -> tuple[int, LogEntry]:
    """The offset of its first byte, and the piece.

    :raise Corrupt: when it is none.
    """
    if frame.type is not FrameType.ITEM or len(frame.payload) <= _PIECE.size:
        raise Corrupt("the guest sent something that is not of its log", hint="its agent is broken or hostile")
    offset, at, number = _PIECE.unpack_from(frame.payload)
    stream = _STREAMS.get(number)
    if stream is None or offset >= 1 << 63:
        raise Corrupt("the guest sent a piece of log that cannot be", hint="its agent is broken or hostile")
    return offset, LogEntry(at=when(at), stream=stream, data=frame.payload[_PIECE.size :])
