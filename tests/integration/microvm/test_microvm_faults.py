"""What a guest sees of a storage process that dies under it, and of a pool that is full: nothing but time. One boot."""

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from microvm_lab import MIB, Lab, run
from storage_process import StorageProcess
from test_microvm_volumes import attached, ext4

from lamella.host.compute.microvm.driver import MicrovmDriver
from lamella.model.instance import Phase

pytestmark = pytest.mark.root

LINES = 300


@pytest.fixture
def served(tmp_path: Path) -> Iterator[StorageProcess]:
    served = StorageProcess(ext4(tmp_path / "backing.raw"), tmp_path / "served")
    served.start()
    yield served
    served.kill()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A pool with 16 MiB."""
    pool = tmp_path / "pool"
    pool.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(pool)], check=True, timeout=90)
    yield pool
    subprocess.run(["umount", "-l", str(pool)], check=True, timeout=90)


async def until(driver: MicrovmDriver, id: str, phase: Phase) -> None:
    async with asyncio.timeout(90):
        while (seen := await driver.observe(id)) is None or seen.phase is not phase:
            await asyncio.sleep(0.05)


async def test_a_guest_waits_for_its_storage(
    lab: Lab, driver: MicrovmDriver, served: StorageProcess, small: Path
) -> None:
    full = ext4(small / "full.raw")
    data, thin = attached(served.file, "data"), attached(full, "thin")
    machine = lab.machine("/bin/sleep", "1000", volumes=[data, thin])
    id = machine.id
    await driver.create(machine)
    await driver.start(id)

    # It dies under a writer that waits for the disk after every line.
    script = f"for n in $(seq {LINES}); do echo $n >>/srv/data/lines && sync -f /srv/data || exit 9; done"
    writer = asyncio.create_task(run(driver, id, "sh", "-c", script))
    await asyncio.sleep(1.0)
    assert not writer.done()
    served.kill()
    await until(driver, id, Phase.PAUSED)
    served.start()
    await driver.heal(id, [data, thin])
    await until(driver, id, Phase.RUNNING)
    assert await asyncio.wait_for(writer, 90) == (0, "")
    assert (await run(driver, id, "wc", "-l", "/srv/data/lines"))[1].split()[0] == str(LINES)
    # Nothing is dead now: asked again, nothing changes, and the guest goes on.
    await driver.heal(id, [data, thin])
    assert (await run(driver, id, "sh", "-c", "dmesg | grep -ci 'i/o error'"))[1] == "0\n"

    # A pool with no room pauses the writer; it goes on when there is some.
    fill = "dd if=/dev/urandom of=/srv/thin/much bs=1M count=32 conv=fsync 2>&1 && md5sum </srv/thin/much"
    writer = asyncio.create_task(run(driver, id, "sh", "-c", fill))
    await until(driver, id, Phase.PAUSED)
    subprocess.run(["mount", "-o", "remount,size=96m", str(small)], check=True, timeout=90)
    await driver.heal(id, [data, thin])
    code, said = await asyncio.wait_for(writer, 90)
    assert code == 0, said
    assert (await run(driver, id, "sh", "-c", "dmesg | grep -ci 'i/o error'"))[1] == "0\n"
    assert (full.stat().st_blocks * 512) > 32 * MIB
    await driver.stop(id, signal="SIGKILL", timeout=0)
    served.kill()
    for path in (served.backing, full):
        subprocess.run(["e2fsck", "-fn", str(path)], check=True, timeout=90, stdout=subprocess.DEVNULL)
