"""Volumes served over NBD: what a crash of the server is to a guest with many requests under way, hot-plug, growth, healing."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
from test_vm_volumes import attached, ext4, linux_disk, run, until
from tests.served_disk import Served, parallel_writer
from vm_lab import MIB, Lab

from lamella.host.compute.driver import Limits
from lamella.host.compute.vm.driver import VmDriver
from lamella.model.board import Board, Graphics

__all__ = ["linux_disk"]

pytestmark = pytest.mark.root

KILLS = 5
DEPTH = 16


@pytest.fixture
def served(tmp_path: Path) -> Iterator[dict[str, Served]]:
    made = {
        name: Served(ext4(tmp_path / f"{name}.raw"), tmp_path / "sockets" / name, f"vol_{name}")
        for name in ("data", "bare", "read")
    }
    yield made
    for one in made.values():
        one.kill()


async def test_a_guest_loses_nothing_while_its_storage_process_is_another(
    lab: Lab, driver: VmDriver, linux_disk: Path, served: dict[str, Served], tmp_path: Path
) -> None:
    machine = lab.machine(disk=linux_disk, board=Board(graphics=Graphics.NONE), limits=Limits(memory=256 * MIB))
    more = {"data": {}, "bare": {"target": "", "filesystem": ""}, "read": {"read_only": True}}
    volumes = []
    for name, one in served.items():
        one.start(machine.id_base)
        volumes.append(msgspec.structs.replace(attached(one.backing, name, **more[name]), socket=one.socket))
    data = volumes[0]
    machine = msgspec.structs.replace(machine, volumes=volumes)
    id = machine.id
    await driver.create(machine)
    await driver.start(id)
    seen = await driver.observe(id)
    assert seen is not None and seen.devices == machine.devices == ["bare", "data", "read"] and seen.pid is not None
    opened = {str(path.resolve()) for path in Path(f"/proc/{seen.pid}/fd").iterdir()}
    assert not opened & {str(one.backing) for one in served.values()}
    assert (await run(driver, id, "echo up"))[1] == "up\n"
    await until(driver, id, "volume data", "ext4 at /srv/data")
    await until(driver, id, "volume read", "read-only")
    assert all(one.in_force for one in await driver.mechanisms(id) if one.name.startswith("volume "))

    # Many requests under way, which end in any order: each is done, and none twice over a later one.
    async def program() -> AsyncIterator[bytes]:
        yield parallel_writer(tmp_path)

    await driver.write_file(id, "/tmp/writer", program(), mode=0o755)
    writer = asyncio.create_task(run(driver, id, f"/tmp/writer {FIND} {4 * KILLS + 6} {DEPTH}"))
    await asyncio.sleep(1.5)
    for _ in range(KILLS):
        assert not writer.done()
        served["bare"].kill()
        await asyncio.sleep(0.3)
        served["bare"].start(machine.id_base)
        await asyncio.sleep(1.7)
    code, said = await asyncio.wait_for(writer, 90)
    assert code == 0 and int(said) > 0, said

    # It heals by itself, and healing takes no file for it; it grows.
    await driver.heal(id)
    with served["data"].backing.open("r+b") as file:
        file.truncate(96 * MIB)
    served["data"].kill()
    served["data"].start(machine.id_base)
    for _ in range(2):
        await driver.resized(id, data.id, 96 * MIB)
    assert int((await run(driver, id, "df -m /srv/data | tail -1 | awk '{print $2}'"))[1]) > 80
    assert (await run(driver, id, "echo kept >/srv/data/file && sync && cat /srv/data/file"))[1] == "kept\n"

    # What was taken out comes again over its socket; one whose socket the room does not show comes as a file.
    await driver.rewire(msgspec.structs.replace(machine, volumes=volumes[1:]))
    seen = await driver.observe(id)
    assert seen is not None and seen.devices == ["bare", "read"]
    late = Served(ext4(tmp_path / "late.raw"), tmp_path / "other" / "disk", "vol_late")
    late.socket.parent.mkdir()
    other = msgspec.structs.replace(attached(late.backing, "late"), socket=late.socket)
    await driver.rewire(msgspec.structs.replace(machine, volumes=[*volumes, other]))
    assert (await run(driver, id, "cat /srv/data/file; echo late >/srv/late/file && cat /srv/late/file"))[1] == (
        "kept\nlate\n"
    )
    await driver.rewire(msgspec.structs.replace(machine, volumes=[]))
    seen = await driver.observe(id)
    assert seen is not None and seen.devices == []
    await driver.stop(id, signal="SIGTERM", timeout=120)


FIND = '$(for d in /sys/block/vd*; do [ "$(cat $d/serial)" = bare ] && echo /dev/${d##*/}; done)'
