"""Full machines that go on from a memory that was kept: as themselves, and as others."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from tests import linux_guest
from vm_lab import MIB, Lab, read_until, tell

from lamella.host.compute.driver import (
    SUSPENDED_MEMORY,
    DataDisk,
    DriveImage,
    KeepsMemory,
    Limits,
)
from lamella.host.compute.vm.driver import VmDriver
from lamella.host.linux.cgroup import ROOT, Cgroups
from lamella.host.linux.spare_tap import spare_tap
from lamella.host.network.driver import Attachment
from lamella.host.storage.driver import Base, VolumeHandle
from lamella.model.board import Board, Graphics, Hardware, Seed
from lamella.model.errors import Conflict, NotFound, Unavailable, Unsupported
from lamella.model.ids import new_id
from lamella.model.instance import Phase
from lamella.model.storage import VolumeForm
from lamella.model.stream import ExecSpec, Exit, Stderr, Stdout

pytestmark = pytest.mark.root


@pytest.fixture(scope="session")
def linux_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return asyncio.run(linux_guest.build(tmp_path_factory.mktemp("linux")))


async def test_a_suspended_machine_goes_on_under_a_new_driver(
    lab: Lab, driver: VmDriver, guest_disk: Path, tmp_path: Path
) -> None:
    _keeps: KeepsMemory = driver
    image = tmp_path / "image.iso"
    image.write_bytes(bytes(1 * MIB))
    machine = lab.machine(
        disk=guest_disk,
        board=Board(tpm=True),
        disks=[DataDisk(name="more", volume=lab.volume())],
        cdroms=[DriveImage(name="tools", path=image, size=1 * MIB)],
    )
    await driver.create(machine)
    console = await driver.attach(machine.id)
    await driver.start(machine.id)
    await read_until(console, "ready\n")
    clock = await tell(console, "clock", "\n")
    await tell(console, "deaf", "deaf\n")
    seen = await driver.observe(machine.id)
    assert seen is not None
    began = seen.started_at
    await driver.suspend(machine.id)
    await driver.suspend(machine.id)
    assert machine.id not in Cgroups(ROOT, lab.home.mark).ids()
    await driver.close()
    again = lab.driver()
    await again.open()
    seen = await again.observe(machine.id)
    assert seen is not None and seen.phase is Phase.SUSPENDED and seen.board_type.startswith("pc-q35-")
    larger = msgspec.structs.replace(machine, memory=SUSPENDED_MEMORY, limits=Limits(cpu=1000, memory=256 * MIB))
    with pytest.raises(Unsupported, match="more memory than that machine had"):
        await again.create(larger)
    seen = await again.observe(machine.id)
    assert seen is not None and seen.phase is Phase.SUSPENDED
    await again.create(msgspec.structs.replace(machine, memory=SUSPENDED_MEMORY))
    seen = await again.observe(machine.id)
    assert seen is not None and seen.phase is Phase.STARTING
    console = await again.attach(machine.id)
    await again.start(machine.id)
    seen = await again.observe(machine.id)
    assert seen is not None and seen.phase is Phase.RUNNING and seen.started_at == began
    assert seen.devices == ["more", "tools"]
    assert await tell(console, "echo still here", "still here\n") == "still here\n"
    assert await tell(console, "clock", "\n") == clock
    await again.stop(machine.id, signal="SIGTERM", timeout=0)
    assert not list((lab.home.state / "memory" / "vm").iterdir())
    await again.remove(machine.id)
    await again.close()


async def run(driver: VmDriver, id: str, command: str) -> str:
    stream = await driver.exec(id, ExecSpec(command=["/bin/sh", "-c", command]))
    said, code = b"", -1
    try:
        async with asyncio.timeout(90):
            while (frame := await stream.receive()) is not None:
                match frame:
                    case Stdout(data) | Stderr(data):
                        said += data
                    case Exit():
                        code = frame.code
                    case _:
                        pass
    finally:
        await stream.close()
    assert code == 0, said
    return said.decode(errors="replace").strip()


COUNT = "i=0; while :; do i=$((i + 1)); echo $i > /tmp/count; sleep 0.05; done"


async def counted(driver: VmDriver, id: str, beyond: int = 0) -> int:
    """What the guest has counted to, which is more than *beyond*. Files are read of one that is held, too."""
    async with asyncio.timeout(90):
        while True:
            with contextlib.suppress(NotFound):
                said = b"".join([piece async for piece in driver.read_file(id, "/tmp/count")])
                if said and int(said) > beyond:
                    return int(said)
            await asyncio.sleep(0.05)


def over(directory: Path, name: str, base: Base) -> VolumeHandle:
    """A disk of its own over an image's."""
    path = directory / f"{name}.qcow2"
    command = [
        "qemu-img",
        "create",
        "-q",
        "-u",
        "-f",
        "qcow2",
        "-b",
        "/nowhere/at-all",
        "-F",
        "raw",
        path,
        str(base.size),
    ]
    subprocess.run(command, check=True, timeout=90)
    return VolumeHandle(
        id=new_id("volume"), form=VolumeForm.BLOCK, path=path, size=base.size, format="qcow2", base=base
    )


async def generation(driver: VmDriver, id: str) -> tuple[str, int]:
    """The generation's id where the firmware put it in memory, and how often ACPI was told of another one (QEMU's docs/specs/vmgenid.txt):
    its address is what the table with VGIA says, after a byte for the integer's kind, and 40; its event is number 5."""
    tables = await run(
        driver, id, "cd /sys/firmware/acpi/tables; for one in SSDT*; do hexdump -v -e '1/1 \"%02x\"' $one; done"
    )
    name = tables.index(b"VGIA".hex()) + 10
    address = int.from_bytes(bytes.fromhex(tables[name : name + 8]), "little") + 40
    count = await run(driver, id, "cat /sys/firmware/acpi/interrupts/gpe05")
    monitor = await (await driver._running(id)).monitor()  # pyright: ignore[reportPrivateUsage]
    said = await monitor.ask(str, "human-monitor-command", {"command-line": f"xp /16xb {address:#x}"})
    return "".join(re.findall(r"0x([0-9a-f]{2})\b", said)), int(count.split()[0])


async def test_copies_of_a_running_machine_are_others(
    lab: Lab, driver: VmDriver, linux_disk: Path, tmp_path: Path
) -> None:
    more = {"board": Board(graphics=Graphics.NONE), "limits": Limits(cpu=1000, memory=256 * MIB)}
    base = Base(path=linux_disk, size=linux_disk.stat().st_size)
    parent = lab.machine(hostname="parent", **more)
    parent = msgspec.structs.replace(parent, disk=over(tmp_path, "parent", base))
    await driver.create(parent)
    with pytest.raises(Conflict, match="is paused"):
        async with driver.remember(parent.id, "early"):
            pass
    await driver.start(parent.id)
    await run(driver, parent.id, "hostname parent; echo here > /tmp/kept; (" + COUNT + ") >/dev/null 2>&1 &")
    before = await counted(driver, parent.id)
    async with driver.remember(parent.id, "kept") as told:
        subprocess.run(["cp", parent.volume.path, tmp_path / "copy.qcow2"], check=True)
    print(f"kept {told.size >> 20} MiB, the parent stood still for {told.pause * 1e3:.0f} ms")
    assert await counted(driver, parent.id, before) > before
    copies = [lab.machine(hostname=name, memory="kept", fresh=True, **more) for name in ("one", "two")]
    copies = [msgspec.structs.replace(one, disk=over(tmp_path, one.hostname, base)) for one in copies]
    for machine in copies:
        subprocess.run(["cp", tmp_path / "copy.qcow2", machine.volume.path], check=True)
    time = asyncio.get_running_loop().time
    for machine in copies:
        began = time()
        await driver.create(machine)
        await driver.start(machine.id)
        assert await run(driver, machine.id, "cat /tmp/kept; hostname") == f"here\n{machine.hostname}"
        print(f"a copy answered after {time() - began:.2f} s")
        assert await counted(driver, machine.id, before) > before
        facts = {one.name: one for one in await driver.mechanisms(machine.id)}
        assert facts["memory beginning"].value == "shared copy-on-write with kept, with copies in project default alone"
        assert facts["memory beginning"].in_force
    seen = [await generation(driver, machine.id) for machine in (parent, *copies)]
    assert len({id for id, _ in seen}) == 3 and all(len(id) == 32 for id, _ in seen)
    assert [count for _, count in seen] == [0, 1, 1]
    random = [await run(driver, one.id, "cat /proc/sys/kernel/random/uuid") for one in (parent, *copies)]
    assert len(set(random)) == 3

    for refused, why in (
        ({"limits": Limits(cpu=1000, memory=512 * MIB)}, "more memory than that machine had"),
        ({"board": Board(graphics=Graphics.VGA)}, "this memory is of 1 processors, 256 MiB, devices none"),
        ({"disks": [DataDisk(name="more", volume=lab.volume())]}, "and here is 1 processors, 256 MiB, devices more"),
    ):
        machine = lab.machine(**{**more, "memory": "kept", "fresh": True, **refused})
        machine = msgspec.structs.replace(machine, disk=copies[0].disk)
        with pytest.raises(Unsupported, match=why):
            await driver.create(machine)
        assert machine.id not in await driver.inventory()

    # What goes wrong leaves nothing, and the parent goes on: who asked fails, the receiver dies, the daemon dies.
    before = await counted(driver, parent.id)
    with pytest.raises(LookupError):
        async with driver.remember(parent.id, "again"):
            raise LookupError
    with pytest.raises(Unavailable):
        async with driver.remember(parent.id, "again"):
            for pid in Cgroups(ROOT, lab.home.mark).group("vm-memory-again").pids():
                os.kill(pid, signal.SIGKILL)
    assert await counted(driver, parent.id, before) > before
    assert {path.name for path in (lab.home.state / "memory" / "vm").iterdir()} == {"kept"}
    await driver.close()
    daemon = Path(__file__).with_name("vm_daemon.py")
    other = subprocess.Popen(
        [sys.executable, str(daemon), str(lab.home.path), lab.home.mark, "remember", parent.id], stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    assert [(await asyncio.to_thread(other.stdout.readline)) for _ in range(2)] == [b"opened\n", b"held\n"]
    other.kill()
    other.wait()
    other.stdout.close()
    again = lab.driver()
    await again.open()
    assert not [id for id in Cgroups(ROOT, lab.home.mark).ids() if id.startswith("vm-memory")]
    before = await counted(again, parent.id)
    assert await counted(again, parent.id, before) > before
    for id in await again.inventory():
        await again.remove(id)
    await again.close()


async def test_what_cannot_be_kept_says_why(lab: Lab, driver: VmDriver, guest_disk: Path) -> None:
    disks = [DataDisk(name="more", volume=lab.volume())]
    machines = {
        "NVMe disks are plugged in": lab.machine(disk=guest_disk, board=Board(hardware=Hardware.GENERIC), disks=disks),
        "": lab.machine(disk=guest_disk, board=Board(tpm=True)),
    }
    for why, machine in machines.items():
        await driver.create(machine)
        console = await driver.attach(machine.id)
        await driver.start(machine.id)
        await read_until(console, "ready\n")
        if why:
            with pytest.raises(Unsupported, match=why):
                await driver.suspend(machine.id)
        else:
            async with driver.remember(machine.id, "kept"):
                pass
        await tell(console, "echo goes on", "goes on\n")
    fresh = {"disk": guest_disk, "memory": "kept", "fresh": True}
    with pytest.raises(Unsupported, match="a TPM's keys are of one machine alone"):
        await driver.create(lab.machine(**fresh, board=Board(tpm=True)))
    with pytest.raises(Unsupported, match="nobody inside could tell it that it is another one"):
        await driver.create(lab.machine(**fresh))
    # As itself it needs nobody.
    itself = msgspec.structs.replace(machines[""], memory="kept")
    await driver.create(itself)
    console = await driver.attach(itself.id)
    await driver.start(itself.id)
    assert await tell(console, "echo once more", "once more\n") == "once more\n"
    await driver.forget("kept")


@pytest.mark.extended
async def test_copies_of_a_debian_answer_at_once(lab: Lab, driver: VmDriver, debian_disk: Path, tmp_path: Path) -> None:
    namespaces = contextlib.ExitStack()

    async def tap(port: str) -> int:
        descriptor, namespace = spare_tap()
        namespaces.callback(os.close, namespace)
        return descriptor

    def nic(number: int) -> Attachment:
        address = f"10.9.0.{number}/24"
        return Attachment(
            port=f"port-{number}", mac=f"02:00:00:00:00:{number:02x}", address=address, gateway="10.9.0.1", mtu=1400
        )

    driver.use_taps(tap)
    limits = Limits(cpu=1000, memory=768 * MIB)
    base = Base(path=debian_disk, size=debian_disk.stat().st_size)
    time = asyncio.get_running_loop().time
    parent = lab.machine(hostname="parent", limits=limits, seed=Seed(), nic=nic(2))
    parent = msgspec.structs.replace(parent, disk=over(tmp_path, "parent", base))
    began = time()
    await driver.create(parent)
    await driver.start(parent.id)
    while True:
        with contextlib.suppress(Unavailable, Unsupported):
            await run(driver, parent.id, "systemctl is-system-running --wait; cat /etc/machine-id")
            break
    print(f"booted in {time() - began:.1f} s")
    async with driver.remember(parent.id, "kept") as told:
        subprocess.run(["cp", parent.volume.path, tmp_path / "copy.qcow2"], check=True)
    print(f"kept {told.size >> 20} MiB, the parent stood still for {told.pause * 1e3:.0f} ms")
    told_of: list[str] = []
    facts = "hostname; cat /etc/machine-id; cat /etc/ssh/ssh_host_ed25519_key.pub; ip -4 -o addr show scope global; ip -o link show"
    for number, name in ((3, "one"), (4, "two")):
        machine = lab.machine(hostname=name, memory="kept", fresh=True, limits=limits, seed=Seed(), nic=nic(number))
        machine = msgspec.structs.replace(machine, disk=over(tmp_path, name, base))
        subprocess.run(["cp", tmp_path / "copy.qcow2", machine.volume.path], check=True)
        began = time()
        await driver.create(machine)
        made = time()
        await driver.start(machine.id)
        ran = time()
        told_of.append(await run(driver, machine.id, facts))
        print(
            f"{name}: made in {made - began:.2f} s, told what it is in {ran - made:.2f} s, answered in {time() - ran:.2f} s"
        )
        assert told_of[-1].startswith(f"{name}\n") and f"10.9.0.{number}/24" in told_of[-1]
        assert "10.9.0.2/24" not in told_of[-1] and f"02:00:00:00:00:{number:02x}" in told_of[-1]
    told_of.append(await run(driver, parent.id, facts))
    for line in (1, 2):
        assert len({said.splitlines()[line] for said in told_of}) == 3
    namespaces.close()
