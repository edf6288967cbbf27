"""How a run of a unikernel ended, from what its keeper wrote down (native/keeper.c). Pure.

A kernel has no exit code. QEMU gives it one: a write of N to I/O port 0xf4 or 0x501 (isa-debug-exit) ends QEMU with (N << 1) | 1.
"""

import re
from datetime import UTC, datetime

import msgspec

from lamella.host.compute.qemu.places import ExitRecord

FAILED = 134
"""The exit code of a kernel that panicked or reset itself: that of a process which aborted (128 + SIGABRT)."""

BROKEN = 125
"""The exit code when QEMU itself failed."""

_LINE = re.compile(rb"(exit|signal) (\d{1,3}) (\d{1,12})\.(\d{6})\n")
_CAUSE = re.compile(r"qemu_system_shutdown_request \D*(\d+)")
_TERMINATED = re.compile(r"terminating on signal (\d+)")
_ERROR = re.compile(r"^qemu-system-[^:\n]*: .*$", re.MULTILINE)

# Values of ShutdownCause, qapi/run-state.json of QEMU.
_GUEST_SHUTDOWN, _GUEST_PANIC = 6, 8
_HOST = {1: "an error of the host", 2: "its monitor", 5: "its user interface"}


class Ending(msgspec.Struct, kw_only=True, frozen=True):
    """``signal`` says that *number* is a signal, else it is QEMU's exit code. ``words`` is the last of what QEMU wrote."""

    signal: bool
    number: int
    at: datetime
    words: str


def parse(text: bytes) -> Ending | None:
    """What the keeper wrote; ``None`` when it did not get to it."""
    match = _LINE.match(text)
    if match is None:
        return None
    at = datetime.fromtimestamp(int(match[3]), UTC).replace(microsecond=int(match[4]))
    words = text[match.end() :].decode(errors="replace")
    return Ending(signal=match[1] == b"signal", number=int(match[2]), at=at, words=words)


def record(ending: Ending, started_at: datetime | None, *, out_of_memory: bool) -> ExitRecord:
    """What is written down of the run."""
    code, reason = _meaning(ending, out_of_memory=out_of_memory)
    finished = max(ending.at, started_at) if started_at else ending.at
    return ExitRecord(exit_code=code, started_at=started_at, finished_at=finished, reason=reason)


def complaint(words: str) -> str:
    """QEMU's own error messages among *words*, which hold traces too."""
    return "; ".join(_ERROR.findall(words))


def _meaning(ending: Ending, *, out_of_memory: bool) -> tuple[int, str]:
    said = complaint(ending.words)
    if ending.signal:
        if out_of_memory:
            return 128 + ending.number, "the kernel killed QEMU: it used more memory than its group may"
        return 128 + ending.number, f"QEMU was ended by signal {ending.number}{f' ({said})' if said else ''}"
    if ending.number & 1:
        if ending.number == 1 and said:
            return BROKEN, f"QEMU failed: {said}"
        return ending.number >> 1, ""
    if ending.number:
        return BROKEN, f"QEMU ended with {ending.number}{f': {said}' if said else ''}"
    if terminated := _TERMINATED.search(ending.words):
        return 128 + int(terminated[1]), f"QEMU was ended by signal {terminated[1]} of the host"
    causes = _CAUSE.findall(ending.words)
    cause = int(causes[-1]) if causes else None
    if cause == _GUEST_SHUTDOWN:
        return 0, ""
    if cause == _GUEST_PANIC:
        return FAILED, "the kernel told that it panicked (pvpanic)"
    if cause in _HOST:
        return BROKEN, f"QEMU was ended by {_HOST[cause]}"
    if "Triple fault" in ending.words:
        return (
            FAILED,
            "triple fault: the processor met an exception while it handled one, and nothing was there to handle it",
        )
    return FAILED, "the kernel reset its machine, which ends the run here (a triple fault does so too)"
