"""What an instance uses now, and one line of its log."""

from datetime import datetime

import msgspec


class Usage(msgspec.Struct, kw_only=True):
    """``cpu_seconds`` since its start; bytes everywhere else; ``None`` where this host cannot tell.

    Seconds, since its start, in which something in it waited: ``cpu_waited`` for a processor, ``memory_waited`` for memory to be reclaimed,
    ``io_waited`` for a device (pressure, ``some``); ``throttled`` is what its own ceiling took, summed over processors. ``oom_kills``
    are the processes that the kernel killed for want of memory."""

    at: datetime
    cpu_seconds: float | None = None
    memory: int | None = None
    memory_limit: int | None = None
    processes: int | None = None
    disk_used: int | None = None
    received: int | None = None
    sent: int | None = None
    cpu_waited: float | None = None
    throttled: float | None = None
    memory_waited: float | None = None
    io_waited: float | None = None
    oom_kills: int | None = None


class LogEntry(msgspec.Struct, kw_only=True):
    """A piece of output: ``stream`` is ``stdout`` or ``stderr``; ``partial`` pieces have no line end yet."""

    at: datetime
    stream: str
    data: bytes
