"""Between instances, the host's other users and the layer itself: what is tried against a real daemon, and must not work."""

import os
import signal
import time
from pathlib import Path

import pytest

from lamella.host.linux.processes import parent, start_time

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

SERVER = "while :; do echo served | nc -l -p 80; done"


def until(what: str, check, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_a_room_whose_holder_is_killed_goes_on(layer) -> None:
    """The holder is one small process: its end costs nobody anything, whether the daemon lives or dies with it."""
    layer.lamella("run", "-d", "--name", "before", "busybox", "--", "sh", "-c", SERVER)
    address = layer.show("before")["status"]["address"]
    room = layer.home / "run" / "room"
    spaces = _spaces(_holder(room))

    first = _holder(room)
    os.kill(first, signal.SIGKILL)
    until("no new holder", lambda: _holder(room) != first)
    assert _spaces(_holder(room)) == spaces
    assert layer.out("run", "--rm", "busybox", "--", "echo", "meanwhile") == "meanwhile\n"

    layer.kill()
    os.kill(_holder(room), signal.SIGKILL)
    layer.start()
    assert _spaces(_holder(room)) == spaces
    assert layer.out("exec", "before", "--", "echo", "here") == "here\n"
    for _ in range(2):
        assert layer.out("run", "--rm", "busybox", "--", "sh", "-c", f"nc {address} 80 </dev/null") == "served\n"
        layer.lamella("restart", "before")
    layer.lamella("rm", "--force", "before")


def _holder(room: Path) -> int:
    return int(room.read_text().split()[0])


def _spaces(pid: int) -> tuple[str, str]:
    until(f"{pid} is not in the room yet", lambda: start_time(pid) is not None)
    return os.readlink(f"/proc/{pid}/ns/mnt"), os.readlink(f"/proc/{pid}/ns/net")


def test_no_descriptor_of_the_daemon_goes_on_to_what_outlives_it(layer) -> None:
    layer.lamella("run", "-d", "--name", "box", "busybox", "--", "sleep", "1000")
    container = layer.show("box")["status"]["pid"]
    shim = parent(container)
    assert layer.daemon is not None and shim is not None
    ours = _sockets(layer.daemon.pid)
    assert ours
    assert not ours & (_sockets(shim) | _sockets(container))
    layer.lamella("rm", "--force", "box")


def _sockets(pid: int) -> set[str]:
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(os.readlink(entry))
        except FileNotFoundError:
            continue
    return {link for link in links if link.startswith("socket:")}
