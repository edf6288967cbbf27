"""Disks, CDs, NICs and size through the driver, in the room: what QEMU may not open is opened for it."""

import asyncio
import fcntl
import os
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from vm_lab import MEMTEST_ISO, MIB, Lab, read_until, tell

from lamella.host.compute.driver import DataDisk, DriveImage, Limits, NamedNic
from lamella.host.compute.vm.driver import VmDriver
from lamella.host.linux import syscalls
from lamella.host.network.driver import Attachment
from lamella.host.storage.driver import Base, VolumeHandle
from lamella.model.board import Board, Graphics, Hardware, Input
from lamella.model.errors import Conflict, NotFound, Unsupported
from lamella.model.ids import new_id
from lamella.model.storage import VolumeForm
from lamella.model.stream import Stdout

pytestmark = pytest.mark.root

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000


@pytest.fixture
def namespace() -> Iterator[str]:
    """A network namespace of its own."""
    name = f"lamella-test-vm{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=90)
    yield name
    subprocess.run(["ip", "netns", "delete", name], check=True, timeout=90)


def open_tap(namespace: str, name: str) -> int:
    """A TAP made in *namespace*, by a thread that goes there and ends."""
    made: list[int] = []

    def work() -> None:
        with Path(f"/run/netns/{namespace}").open() as place:
            syscalls.setns(place.fileno(), syscalls.CLONE_NEWNET)
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
        made.append(fd)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return made[0]


def carried(namespace: str) -> set[str]:
    """Names of the links in *namespace* whose other end is held open."""
    for name in ("tap1", "tap2"):
        subprocess.run(["ip", "-n", namespace, "link", "set", name, "up"], check=True, timeout=90)
    said = subprocess.run(["ip", "-n", namespace, "-o", "link"], capture_output=True, text=True, check=True, timeout=90)
    lines = [line for line in said.stdout.splitlines() if "LOWER_UP" in line]
    return {line.split()[1].rstrip(":") for line in lines}


def clone(lab: Lab, base: Path) -> VolumeHandle:
    """A volume over *base*, as a pool makes them."""
    path = lab.home.path / "disks" / f"{new_id('volume')}.qcow2"
    path.parent.mkdir(exist_ok=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(64 * MIB)], check=True, timeout=90)
    below = Base(path=base, size=base.stat().st_size)
    return VolumeHandle(id=path.stem, form=VolumeForm.BLOCK, path=path, size=64 * MIB, format="qcow2", base=below)


@pytest.mark.parametrize("hardware", list(Hardware))
async def test_a_clone_of_an_image_starts_and_the_image_is_not_touched(
    lab: Lab, driver: VmDriver, guest_disk: Path, hardware: Hardware
) -> None:
    before = guest_disk.read_bytes()
    board = Board(hardware=hardware, graphics=Graphics.NONE)
    machine = lab.machine(disk=None, board=board)
    machine = msgspec.structs.replace(machine, disk=clone(lab, guest_disk))
    await driver.create(machine)
    console = await driver.attach(machine.id)
    await driver.start(machine.id)
    await read_until(console, "ready\n")
    assert guest_disk.read_bytes() == before
    usage = await driver.usage(machine.id)
    assert usage.memory_limit == 128 * MIB and usage.cpu_seconds and usage.memory


@pytest.mark.parametrize("hardware", list(Hardware))
async def test_devices_are_there_from_the_start_and_may_be_booted_from(
    lab: Lab, driver: VmDriver, guest_disk: Path, hardware: Hardware
) -> None:
    machine = lab.machine(
        board=Board(hardware=hardware, graphics=Graphics.NONE, boot=["data"]),
        disks=[DataDisk(name="data", volume=lab.volume(content=guest_disk))],
        cdroms=[DriveImage(name="cd", path=MEMTEST_ISO, size=MEMTEST_ISO.stat().st_size)],
    )
    await driver.create(machine)
    seen = await driver.observe(machine.id)
    assert seen is not None and seen.devices == machine.devices == ["cd", "data"]
    console = await driver.attach(machine.id)
    await driver.start(machine.id)
    await read_until(console, "ready\n")
    more = msgspec.structs.replace(
        machine, disks=[*machine.disks, DataDisk(name="more", volume=lab.volume())], cdroms=[]
    )
    await driver.rewire(more)
    seen = await driver.observe(machine.id)
    assert seen is not None and seen.devices == ["data", "more"]
    # Another daemon learns what there is from QEMU, and what there shall be from what is written down.
    await driver.close()
    await driver.rewire(more)
    seen = await driver.observe(machine.id)
    assert seen is not None and seen.devices == ["data", "more"]


async def test_nics_are_descriptors_of_taps(lab: Lab, driver: VmDriver, guest_disk: Path, namespace: str) -> None:
    asked: list[str] = []

    async def taps(port: str) -> int:
        asked.append(port)
        return await asyncio.to_thread(open_tap, namespace, f"tap{len(asked)}")

    driver.use_taps(taps)
    first, second = (
        Attachment(port=f"port_{n}", mac=f"02:00:00:00:00:0{n}", address=f"10.9.0.{n}/24", gateway="10.9.0.9", mtu=1400)
        for n in (1, 2)
    )
    machine = lab.machine(
        disk=guest_disk, nic=first, nics=[NamedNic(name="lan", attachment=second)], board=Board(graphics=Graphics.NONE)
    )
    await driver.create(machine)
    assert asked == ["port_1", "port_2"]
    seen = await driver.observe(machine.id)
    assert seen is not None and seen.devices == ["lan"]
    console = await driver.attach(machine.id)
    await driver.start(machine.id)
    await read_until(console, "ready\n")
    assert "02.0 1af4:1000" in await tell(console, "pci", "end\n")
    assert {"tap1", "tap2"} <= await asyncio.to_thread(carried, namespace)


async def test_a_machine_is_given_more_within_what_it_started_with(
    lab: Lab, driver: VmDriver, guest_disk: Path
) -> None:
    machine = lab.machine(disk=guest_disk, board=Board(graphics=Graphics.NONE))
    await driver.create(machine)
    console = await driver.attach(machine.id)
    await driver.start(machine.id)
    await read_until(console, "ready\n")
    seen = await driver.observe(machine.id)
    assert seen is not None and seen.launched is not None and seen.launched.cpu == 4000
    await driver.update(machine.id, Limits(cpu=1500, memory=128 * MIB))
    found = {item.name: item for item in await driver.mechanisms(machine.id)}
    assert found["limit.cpu"].value == "1.5 cores"
    with pytest.raises(Unsupported, match="places for 4 virtual processors"):
        await driver.update(machine.id, Limits(cpu=5000, memory=128 * MIB))


async def test_what_is_missing_is_said_and_nothing_is_left(lab: Lab, driver: VmDriver) -> None:
    machine = lab.machine()
    machine.volume.path.unlink()
    with pytest.raises(NotFound, match="not where it should be"):
        await driver.create(machine)
    gone = lab.machine(cdroms=[DriveImage(name="cd", path=Path("/nowhere"), size=1)])
    with pytest.raises(NotFound, match="device cd is not there"):
        await driver.create(gone)
    seen = await driver.observe(gone.id)
    assert seen is None or seen.pid is None
    with pytest.raises(NotFound, match="no machine"):
        await driver.reset("inst_none")


async def test_a_screen_is_opened_through_the_driver(lab: Lab, driver: VmDriver, guest_disk: Path) -> None:
    machine = lab.machine(disk=guest_disk, board=Board(spice=True, graphics=Graphics.QXL))
    await driver.create(machine)
    await driver.start(machine.id)
    ticket = await driver.desktop(machine.id, "vnc")
    assert ticket.certificate.startswith("-----BEGIN CERTIFICATE-----") and ticket.password
    viewer = await driver.screen(machine.id, "vnc")
    assert await viewer.receive() == Stdout(b"RFB 003.008\n")
    await viewer.close()
    with pytest.raises(Conflict, match="no unused ticket"):
        await driver.screen(machine.id, "vnc")
    assert (await driver.desktop(machine.id, "spice")).kind == "spice"
    await driver.input(machine.id, Input(text="a"))
    bare = lab.machine(disk=guest_disk, board=Board(graphics=Graphics.NONE))
    await driver.create(bare)
    with pytest.raises(Unsupported, match="has no screen"):
        await driver.screenshot(bare.id)
