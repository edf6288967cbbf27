"""A volume that is served to a microVM over NBD: many requests under way while the server is killed, growth, and the daemon's restart."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from microvm_lab import MIB, Lab, run
from test_microvm_volumes import attached, ext4
from tests.served_disk import Served, parallel_writer

from lamella.host.compute.microvm.driver import MicrovmDriver
from lamella.model.instance import Phase

pytestmark = pytest.mark.root

KILLS = 4
DEPTH = 16


async def test_a_guest_loses_nothing_while_its_storage_process_is_another(
    lab: Lab, driver: MicrovmDriver, tmp_path: Path
) -> None:
    names = ("data", "bare")
    served = {
        name: Served(ext4(tmp_path / f"{name}.raw"), tmp_path / "sockets" / name, f"vol_{name}") for name in names
    }
    volumes = [
        msgspec.structs.replace(attached(served["data"].backing, "data"), socket=served["data"].socket),
        msgspec.structs.replace(
            attached(served["bare"].backing, "bare", target="", filesystem=""), socket=served["bare"].socket
        ),
    ]
    machine = lab.machine("sleep", "1000", volumes=volumes)
    id = machine.id
    try:
        for one in served.values():
            one.start(machine.id_base)
        await driver.create(machine)
        await driver.start(id)

        async def program() -> AsyncIterator[bytes]:
            yield parallel_writer(tmp_path)

        await driver.write_file(id, "/tmp/writer", program(), mode=0o755)
        writer = asyncio.create_task(run(driver, id, "sh", "-c", f"/tmp/writer {FIND} {4 * KILLS + 6} {DEPTH}"))
        await asyncio.sleep(1.5)
        for _ in range(KILLS):
            assert not writer.done()
            served["bare"].kill()
            await asyncio.sleep(0.3)
            served["bare"].start(machine.id_base)
            await asyncio.sleep(1.7)
        code, said = await asyncio.wait_for(writer, 90)
        assert code == 0 and int(said) > 0, said

        await driver.close()
        await driver.heal(id)
        with served["data"].backing.open("r+b") as file:
            file.truncate(96 * MIB)
        served["data"].kill()
        served["data"].start(machine.id_base)
        await driver.resized(id, "vol_data", 96 * MIB)
        assert int((await run(driver, id, "sh", "-c", "df -m /srv/data | tail -1 | awk '{print $2}'"))[1]) > 80
        facts = {one.name: one for one in await driver.mechanisms(id)}
        assert facts["volume data"].in_force
        seen = await driver.observe(id)
        assert seen is not None and seen.phase is Phase.RUNNING
        await driver.remove(id)
    finally:
        for one in served.values():
            one.kill()


FIND = '$(for d in /sys/block/vd*; do [ "$(cat $d/serial)" = bare ] && echo /dev/${d##*/}; done)'
