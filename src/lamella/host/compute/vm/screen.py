"""A machine's screen as a picture, and hands at its keyboard and pointer.

Sources: QEMU's ``screendump`` and ``input-send-event`` (QMP reference manual); a PS/2 keyboard keeps sixteen bytes that nobody has read
yet (``hw/input/ps2.c``), a key takes three of them, and what does not fit is lost.
"""

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path
from weakref import WeakKeyDictionary, finalize

import msgspec

from lamella.host.compute.qemu.monitor import Monitor, Refused
from lamella.host.compute.vm import keyboard
from lamella.model.board import Input, Pointer
from lamella.model.errors import Conflict, Internal, Unsupported

_MARK = "screen"
_LARGEST = 64 << 20
_SCREENSHOT_DEADLINE = 30.0

# Seconds that a key is held and that pass before the next: a guest under emulation takes five keys that fast before one is lost.
HOLD = 0.02
GAP = 0.02
_FULL_SCALE = 32767

_Event = dict[str, object]


class _File(msgspec.Struct):
    opaque: str = ""


class _FdSet(msgspec.Struct):
    fdset: int = msgspec.field(name="fdset-id")
    fds: list[_File] = []


class _Canvas:
    """Memory that QEMU draws into. One a conversation: while a guest is paused, QEMU 7.2 closes no descriptor that it was given, so
    that one for each picture would use them up."""

    def __init__(self, memory: int, fdset: int) -> None:
        self.memory = memory
        self.fdset = fdset
        self.turn = asyncio.Lock()


_canvases: WeakKeyDictionary[Monitor, _Canvas] = WeakKeyDictionary()


async def screenshot(monitor: Monitor) -> bytes:
    """The screen as PNG.

    :raise Unsupported: when the machine has none.
    """
    canvas = await _canvas(monitor)
    async with canvas.turn:
        os.ftruncate(canvas.memory, 0)
        # QEMU's descriptor is a copy of this one and shares its position.
        os.lseek(canvas.memory, 0, os.SEEK_SET)
        try:
            await monitor.execute(
                "screendump",
                {"filename": f"/dev/fdset/{canvas.fdset}", "format": "png"},
                deadline=_SCREENSHOT_DEADLINE,
            )
        except Refused as error:
            if "console" in error.reason:
                raise Unsupported("this machine has no screen", hint="give it graphics, or use its console") from error
            raise
        size = os.fstat(canvas.memory).st_size
        if size > _LARGEST:
            raise Internal(f"a picture of {size} bytes is no screenshot")
        picture = await asyncio.to_thread(_read, canvas.memory, size)
        os.ftruncate(canvas.memory, 0)
        return picture


async def send(monitor: Monitor, input: Input) -> None:
    """Do what *input* says, in its order: text, keys, pointer. Typing takes ``HOLD + GAP`` seconds a key.

    :raise Invalid: when a character or key is on no keyboard; nothing is done then.
    :raise Conflict: when the machine does not run: nobody would take the keys.
    """
    pressed = [*keyboard.chords(input.text), *(keyboard.check(keys) for keys in input.keys)]
    if await monitor.status() != "running":
        raise Conflict("the machine does not run and takes no keys", hint="resume it first")
    for chord in pressed:
        await _press(
            monitor, [_key(key, down=True) for key in chord], [_key(key, down=False) for key in reversed(chord)]
        )
    for pointer in input.pointer:
        await _point(monitor, pointer)


async def _canvas(monitor: Monitor) -> _Canvas:
    known = _canvases.get(monitor)
    if known is not None:
        return known
    sets = await monitor.ask(list[_FdSet], "query-fdsets")
    for old in sets:
        if any(file.opaque == _MARK for file in old.fds):
            await monitor.remove_fdset(old.fdset)
    # QEMU opens what it writes for writing only, and takes no descriptor that can do more.
    made = os.memfd_create("screen", os.MFD_CLOEXEC)
    try:
        memory = os.open(f"/proc/self/fd/{made}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            fdset = await monitor.add_fd(memory, _MARK)
        except BaseException:
            os.close(memory)
            raise
    finally:
        os.close(made)
    canvas = _canvases.setdefault(monitor, _Canvas(memory, fdset))
    if canvas.memory != memory:
        os.close(memory)
        await monitor.remove_fdset(fdset)
    else:
        finalize(monitor, os.close, memory)
    return canvas


def _read(memory: int, size: int) -> bytes:
    with Path(f"/proc/self/fd/{memory}").open("rb") as file:
        return file.read(size)


async def _point(monitor: Monitor, pointer: Pointer) -> None:
    await _tell(monitor, [_axis("x", pointer.x), _axis("y", pointer.y)])
    await asyncio.sleep(GAP)
    for button in pointer.buttons:
        await _press(monitor, [_button(button, down=True)], [_button(button, down=False)])


async def _press(monitor: Monitor, down: Iterable[_Event], up: Iterable[_Event]) -> None:
    """What was pressed is let go of, whatever happens between."""
    try:
        await _tell(monitor, down)
        await asyncio.sleep(HOLD)
    finally:
        await asyncio.shield(_tell(monitor, up))
    await asyncio.sleep(GAP)


async def _tell(monitor: Monitor, events: Iterable[_Event]) -> None:
    await monitor.execute("input-send-event", {"events": list(events)})


def _key(key: str, *, down: bool) -> _Event:
    return {"type": "key", "data": {"down": down, "key": {"type": "qcode", "data": key}}}


def _button(button: str, *, down: bool) -> _Event:
    return {"type": "btn", "data": {"down": down, "button": button}}


def _axis(axis: str, value: float) -> _Event:
    return {"type": "abs", "data": {"axis": axis, "value": round(value * _FULL_SCALE)}}
