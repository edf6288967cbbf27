"""A machine's volumes are served to it over NBD by a process of its own: what it sees, and what crashes, sizes and limits are to it."""

import asyncio
import os
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from process_lab import MIB, Writer, content, lost, overlay, volume
from test_storage_process_crashes import kill, settled

from lamella.host.compute.driver import Home
from lamella.host.storage.process import fuse
from lamella.host.storage.process.daemon import QemuStorageDaemon
from lamella.model.errors import Conflict, Invalid
from lamella.model.storage import IoLimits


class Client:
    """What a machine's QEMU is to the socket: it waits, and connects again. It shows the volume as a file, for a writer."""

    def __init__(self, socket: Path, export: str, file: Path) -> None:
        self.file = file
        file.touch()
        words = [
            *(
                "--blockdev",
                f"driver=nbd,node-name=n,server.type=unix,server.path={socket},export={export},reconnect-delay=1000",
            ),
            *("--export", f"type=fuse,id=e,node-name=n,mountpoint={file},writable=on"),
        ]
        self._process = subprocess.Popen(["qemu-storage-daemon", *words], stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 90
        while not os.path.ismount(file):
            assert self._process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        fuse.make_safe(file)

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(90)
        fuse.release(self.file)


@pytest.fixture
def clients() -> Iterator[list[Client]]:
    made: list[Client] = []
    yield made
    for client in made:
        client.end()


async def served(daemon: QemuStorageDaemon, id: str, owner: int = 4242) -> Path:
    socket = (await daemon.export(id, socket_owner=owner)).socket
    assert socket is not None
    return socket


def exports(socket: Path) -> list[str]:
    """What a server tells everybody who asks."""
    said = subprocess.run(
        ["qemu-nbd", "--list", "--socket", str(socket)], capture_output=True, text=True, check=True, timeout=90
    )
    return sorted(line.split("'")[1] for line in said.stdout.splitlines() if "export: '" in line)


async def test_a_machine_sees_its_own_volumes_only(daemon: QemuStorageDaemon, home: Home, tmp_path: Path) -> None:
    for id, machine in (("vol_a", "inst_one"), ("vol_b", "inst_one"), ("vol_c", "inst_two"), ("vol_d", "")):
        await daemon.add(volume(tmp_path, id, machine=machine))
    assert [await daemon.machine(f"vol_{letter}") for letter in "abcd"] == ["inst_one", "inst_one", "inst_two", ""]
    first, same, other = [
        await served(daemon, f"vol_{letter}", owner) for letter, owner in zip("abc", (1, 1, 2), strict=True)
    ]
    assert first == same != other and first.parent != other.parent
    seen = first.stat()
    assert stat.S_ISSOCK(seen.st_mode) and stat.S_IMODE(seen.st_mode) == 0o600 and seen.st_uid == 1
    assert other.stat().st_uid == 2
    assert exports(first) == ["vol_a", "vol_b"] and exports(other) == ["vol_c"]
    for id, owner in (("vol_a", None), ("vol_d", 3)):
        with pytest.raises(Invalid):
            await daemon.export(id, socket_owner=owner)
    await daemon.remove("vol_a")
    assert exports(first) == ["vol_b"] and first.parent.exists()
    await daemon.remove("vol_b")
    assert not first.parent.exists() and exports(other) == ["vol_c"]
    assert not list((home.run / "storage").glob("machine-*.json"))[1:]


async def test_sizes_limits_and_layers_of_what_is_served(
    daemon: QemuStorageDaemon, clients: list[Client], tmp_path: Path
) -> None:
    stack = volume(tmp_path, machine="inst_one")
    await daemon.add(stack)
    socket = await served(daemon, "vol_a")
    clients.append(client := Client(socket, "vol_a", tmp_path / "seen"))
    writer = Writer(client.file)
    await writer.go_on()
    await daemon.resize("vol_a", 96 * MIB)
    await writer.go_on()
    assert await daemon.size("vol_a") == 96 * MIB
    said = subprocess.run(
        ["qemu-img", "info", f"nbd+unix:///vol_a?socket={socket}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=90,
    )
    assert f"({96 * MIB} bytes)" in said.stdout
    await daemon.limit("vol_a", IoLimits(iops=40))
    await asyncio.sleep(0.5)
    began = time.monotonic()
    before = len(writer.rounds())
    await asyncio.sleep(2)
    await writer.go_on(1)
    made = len(writer.rounds()) - before
    most = 10 * (time.monotonic() - began)
    assert 1 <= made <= 1.2 * most + 3
    await daemon.limit("vol_a", IoLimits())
    with pytest.raises(Conflict, match="shared"):
        await daemon.limit("vol_a", IoLimits(iops=40), "project/shared")
    layer = overlay(tmp_path / "layer.qcow2", 96 * MIB)
    await daemon.switch({"vol_a": layer})
    await writer.go_on(50)
    await daemon.hold(["vol_a"])
    before = len(writer.rounds())
    await asyncio.sleep(2)
    assert len(writer.rounds()) - before <= 3
    await daemon.release(["vol_a"])
    await writer.go_on()
    acknowledged = await writer.stop()
    node = await daemon.node("vol_a")
    clients.pop().end()
    await daemon.remove("vol_a")
    assert not lost(content(node), acknowledged)


async def test_crashes_and_another_daemon_are_pauses(home: Home, clients: list[Client], tmp_path: Path) -> None:
    first = QemuStorageDaemon(home)
    assert await first.open() == ""
    stack = volume(tmp_path, machine="inst_one")
    try:
        await first.add(stack)
        await first.add(volume(tmp_path, "vol_b", machine="inst_two"))
        socket = await served(first, "vol_a")
        clients.append(client := Client(socket, "vol_a", tmp_path / "seen"))
        writer = Writer(client.file)
        await writer.go_on()
        other = first.machines["inst_two"].process.pid
        for _ in range(3):
            kill(first.machines["inst_one"].process.pid)
            await settled(first)
            assert socket.is_socket() and socket.stat().st_uid == 4242
            await writer.go_on(30)
            kill(first.disks.process.pid)
            await settled(first)
            await writer.go_on(30)
        assert first.machines["inst_two"].process.pid == other
        # Nobody is there to see it.
        process = first.machines["inst_one"].process.pid
        await first.close()
        kill(process)
        second = first = QemuStorageDaemon(home)
        assert await second.open() == ""
        await writer.go_on(30)
        assert second.machines["inst_two"].process.pid == other and exports(socket) == ["vol_a"]
        # And while it is adopted as it is.
        process = second.machines["inst_one"].process.pid
        await second.close()
        first = QemuStorageDaemon(home)
        assert await first.open() == "" and first.machines["inst_one"].process.pid == process
        await writer.go_on()
        acknowledged = await writer.stop()
        clients.pop().end()
        await first.remove("vol_a")
        assert not lost(content(stack.node), acknowledged)
    finally:
        await first.end()
