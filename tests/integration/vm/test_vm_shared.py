"""A volume served through the machine's memory: found without a serial number, and what a crash of its server is to the guest."""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from test_vm_volumes import attached, ext4, linux_disk, run, until
from vm_lab import MIB, Lab

from lamella.host.compute.driver import Limits
from lamella.host.compute.vm.driver import VmDriver
from lamella.model.board import Board, Graphics

__all__ = ["linux_disk"]

pytestmark = pytest.mark.root

LINES = 300


class Served:
    """A file on a vhost-user-blk socket."""

    def __init__(self, backing: Path, socket: Path) -> None:
        self.backing = backing
        self.socket = socket
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, user: int) -> None:
        self.socket.unlink(missing_ok=True)
        self.socket.parent.mkdir(mode=0o711, exist_ok=True)
        node = f"driver=file,node-name=node,filename={self.backing}"
        export = f"type=vhost-user-blk,id=export,node-name=node,addr.type=unix,addr.path={self.socket},writable=on"
        self.process = subprocess.Popen(
            ["qemu-storage-daemon", "--blockdev", node, "--export", export], stdin=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 20
        while not self.socket.exists():
            assert self.process.poll() is None and time.monotonic() < deadline, "the storage process did not start"
            time.sleep(0.02)
        os.chown(self.socket, user, user)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(10)
            self.process = None


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(ext4(tmp_path / "backing.raw"), tmp_path / "socket" / "disk")
    yield served
    served.kill()


async def test_a_guest_waits_while_its_storage_process_is_another(
    lab: Lab, driver: VmDriver, linux_disk: Path, served: Served, tmp_path: Path
) -> None:
    machine = lab.machine(disk=linux_disk, board=Board(graphics=Graphics.NONE), limits=Limits(memory=256 * MIB))
    served.start(machine.id_base)
    volume = msgspec.structs.replace(attached(served.backing, "data"), socket=served.socket)
    machine = msgspec.structs.replace(machine, volumes=[volume])
    id = machine.id
    await driver.create(machine)
    await driver.start(id)
    seen = await driver.observe(id)
    assert seen is not None and seen.devices == machine.devices == ["data"] and seen.pid is not None
    assert str(served.backing) not in {str(path.resolve()) for path in Path(f"/proc/{seen.pid}/fd").iterdir()}
    assert (await run(driver, id, "echo up"))[1] == "up\n"
    await until(driver, id, "volume data", "ext4 at /srv/data")
    assert (await run(driver, id, "cat /sys/block/vdb/serial"))[1].strip() == "vhost_user_blk"
    assert all(one.in_force for one in await driver.mechanisms(id) if one.name in ("root", "volume data"))

    script = f"for n in $(seq {LINES}); do echo $n >>/srv/data/lines && sync -f /srv/data || exit 9; done"
    writer = asyncio.create_task(run(driver, id, script))
    await asyncio.sleep(1.0)
    assert not writer.done()
    served.kill()
    await asyncio.sleep(0.5)
    served.start(machine.id_base)
    assert await asyncio.wait_for(writer, 60) == (0, "")
    assert (await run(driver, id, "wc -l </srv/data/lines"))[1] == f"{LINES}\n"

    # One that comes later is a file: its socket is not shown in this room.
    late = Served(ext4(tmp_path / "late.raw"), tmp_path / "other" / "disk")
    more = msgspec.structs.replace(attached(late.backing, "late"), socket=late.socket)
    late.socket.parent.mkdir()
    await driver.rewire(msgspec.structs.replace(machine, volumes=[volume, more]))
    assert (await run(driver, id, "echo late >/srv/late/file && cat /srv/late/file"))[1] == "late\n"
    await driver.rewire(msgspec.structs.replace(machine, volumes=[]))
    seen = await driver.observe(id)
    assert seen is not None and seen.devices == []
    await driver.stop(id, signal="SIGTERM", timeout=20)
    served.kill()
    subprocess.run(["e2fsck", "-fn", str(served.backing)], check=True, timeout=30, stdout=subprocess.DEVNULL)
