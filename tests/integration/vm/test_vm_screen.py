"""Pictures of a real screen, keys that a real guest reads, and a pointer that it is told of."""

import asyncio
import struct
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from device_guest import BareQemu, ShellGuest, make_guest
from device_machine import machine

from lamella.host.compute.qemu.monitor import Monitor
from lamella.host.compute.vm import hotplug, screen
from lamella.model.board import Input, Pointer
from lamella.model.errors import Conflict, Invalid, Unsupported

# Everything that a US keyboard can type on one line.
CHARACTERS = "".join(chr(code) for code in range(32, 127))


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShellGuest]:
    """A machine with a screen, a keyboard and a pointer, under a Linux with a text console on it."""
    boot = make_guest(tmp_path_factory.mktemp("boot"), ("evdev", "virtio_input"))
    arguments = ["-m", "256M", "-device", "VGA", *hotplug.cold_arguments(machine())]
    guest = ShellGuest(tmp_path_factory.mktemp("guest"), boot, arguments)
    try:
        guest.wait_shell()
        # Kept open: the last to close a console sets it back to lines and echo.
        guest.run("exec 5<>/dev/tty1; stty raw -echo <&5")
        yield guest
    finally:
        guest.end()


@pytest.fixture
async def monitor(guest: ShellGuest) -> AsyncIterator[Monitor]:
    monitor = await Monitor.connect(guest.monitor)
    yield monitor
    await monitor.close()


def pixels(picture: bytes) -> tuple[int, int, bytes]:
    """Width, height and what the rows of a PNG unpack to."""
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack_from(">II", picture, 16)
    place, data = 8, b""
    while place < len(picture):
        (size,) = struct.unpack_from(">I", picture, place)
        if picture[place + 4 : place + 8] == b"IDAT":
            data += picture[place + 8 : place + 8 + size]
        place += 12 + size
    return width, height, zlib.decompress(data)


async def test_a_screenshot_shows_what_the_guest_wrote(guest: ShellGuest, monitor: Monitor) -> None:
    guest.run("printf '\\033[2J\\033[H\\033[?25l' > /dev/tty1; sleep 0.3")
    blank = pixels(await screen.screenshot(monitor))
    assert blank == pixels(await screen.screenshot(monitor))
    guest.run("printf 'a machine wrote this' > /dev/tty1; sleep 0.3")
    written = pixels(await screen.screenshot(monitor))
    assert written[:2] == blank[:2] and min(blank[:2]) >= 400
    assert written[2] != blank[2]


async def test_pictures_cost_qemu_no_descriptors_even_while_paused(guest: ShellGuest, monitor: Monitor) -> None:
    await screen.screenshot(monitor)
    files = guest.files()
    await monitor.stop()
    first, *others = [await screen.screenshot(monitor) for _ in range(5)]
    await monitor.proceed()
    assert all(other == first for other in others)
    assert guest.files() == files


async def test_a_daemon_that_comes_later_lets_go_of_what_the_one_before_left(guest: ShellGuest) -> None:
    counts: list[int] = []
    for _ in range(3):
        monitor = await Monitor.connect(guest.monitor)
        await screen.screenshot(monitor)
        counts.append(guest.files())
        await monitor.close()
    assert len(set(counts)) == 1


async def test_every_character_is_typed_and_none_is_lost(guest: ShellGuest, monitor: Monitor) -> None:
    guest.run("(head -c 160 /dev/tty1 > /typed) &")
    text = f"{CHARACTERS}\n\t\x1b\b{CHARACTERS}"[:160]
    began = time.monotonic()
    await screen.send(monitor, Input(text=text))
    print(f"{160 / (time.monotonic() - began):.0f} characters a second")
    await asyncio.to_thread(guest.wait_for, "stat -c %s /typed", "160")
    read = guest.run("od -An -v -tx1 /typed")
    expected = text.replace("\n", "\r").replace("\b", "\x7f").encode()
    assert bytes.fromhex("".join(read.split())) == expected


async def test_keys_are_pressed_together(guest: ShellGuest, monitor: Monitor) -> None:
    guest.run("(head -c 2 /dev/tty1 > /chords) &")
    await screen.send(monitor, Input(keys=[["ctrl", "a"], ["shift", "b"]]))
    await asyncio.to_thread(guest.wait_for, "od -An -tx1 /chords", "01 42")


async def test_what_is_on_no_keyboard_is_refused_before_anything_is_typed(guest: ShellGuest, monitor: Monitor) -> None:
    guest.run("rm -f /none; (head -c 1 /dev/tty1 > /none) &")
    with pytest.raises(Invalid, match=r"'é' \(character 4\) is on no US keyboard"):
        await screen.send(monitor, Input(text="café"))
    with pytest.raises(Invalid, match="no keyboard has a key 'contrl'; did you mean ctrl"):
        await screen.send(monitor, Input(text="abc", keys=[["contrl", "a"]]))
    await asyncio.sleep(0.5)
    assert guest.run("stat -c %s /none") == "0"
    await screen.send(monitor, Input(text="z"))  # whoever reads is read from
    await asyncio.to_thread(guest.wait_for, "cat /none", "z")


async def test_a_paused_machine_takes_no_keys(guest: ShellGuest, monitor: Monitor) -> None:
    await monitor.stop()
    with pytest.raises(Conflict, match="takes no keys"):
        await screen.send(monitor, Input(text="lost"))
    await monitor.proceed()


async def test_the_pointer_is_put_at_a_place_and_clicks(guest: ShellGuest, monitor: Monitor) -> None:
    """Linux's struct input_event, 24 bytes: type 3 is absolute (code 0 x, 1 y), type 1 a button (0x110 left, 0x111 right)."""
    event = guest.run("for e in /sys/class/input/event*; do grep -q Tablet $e/device/name && basename $e; done")
    guest.run(f"(timeout 20 cat /dev/input/{event} > /pointed) &")
    await asyncio.sleep(0.5)
    await screen.send(
        monitor, Input(pointer=[Pointer(x=0.25, y=0.75, buttons=["left"]), Pointer(x=1, y=0, buttons=["right"])])
    )
    await asyncio.sleep(1)
    data = bytes.fromhex("".join(guest.run("od -An -v -tx1 /pointed").split()))
    events = [struct.unpack_from("<HHi", data, place + 16) for place in range(0, len(data) - 23, 24)]
    told = [event for event in events if event[0] in (1, 3)]
    assert told == [
        *((3, 0, 8192), (3, 1, 24575), (1, 0x110, 1), (1, 0x110, 0)),
        *((3, 0, 32767), (3, 1, 0), (1, 0x111, 1), (1, 0x111, 0)),
    ]


async def test_a_machine_without_a_screen_says_so(tmp_path: Path) -> None:
    qemu = BareQemu(tmp_path, ["-m", "32M"])
    try:
        monitor = await Monitor.connect(qemu.monitor)
        with pytest.raises(Unsupported, match="this machine has no screen"):
            await screen.screenshot(monitor)
        await monitor.close()
    finally:
        qemu.end()
