"""Devices, vCPUs and memory come and go under a real Linux in a real QEMU that may open nothing itself; the guest says what it sees."""

import asyncio
import ctypes
import fcntl
import os
import struct
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from device_guest import BareQemu, ManyThreads, ShellGuest, make_guest
from device_machine import MIB, clone_disk, machine, nic, raw_disk, sparse

from lamella.host.compute.driver import DriveImage, Limits
from lamella.host.compute.qemu.monitor import Monitor
from lamella.host.compute.vm import hotplug, sizing, usb
from lamella.host.compute.vm.wiring import Clear
from lamella.model.board import Board, Graphics, Hardware, Usb
from lamella.model.errors import Conflict, LamellaError, Unsupported
from lamella.model.storage import VolumeForm

MEMORY = 256 * MIB
MEMTEST = Path("/usr/lib/memtest86+/memtest86+x64.iso")
_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x400454CA, 0x0002, 0x1000, 0x4000


@pytest.fixture(scope="module")
def boot(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_guest(tmp_path_factory.mktemp("boot"))


@pytest.fixture(scope="module")
def guest(boot: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShellGuest]:
    """A machine of 1 vCPU and 256 MiB that can grow to 4 and 1 GiB, on virtio hardware."""
    size = sizing.size_of(Limits(memory=MEMORY))
    arguments = [
        *hotplug.cold_arguments(machine()),
        *sizing.cold_arguments(size, sizing.largest_of(size, 8 << 30)),
        *("-device", "virtio-balloon-pci,id=balloon"),
    ]
    guest = ShellGuest(tmp_path_factory.mktemp("guest"), boot, arguments)
    try:
        guest.wait_shell()
        yield guest
    finally:
        guest.end()


@pytest.fixture
async def monitor(guest: ShellGuest) -> AsyncIterator[Monitor]:
    """As a daemon does that finds the machine running; afterwards nothing is plugged in, and QEMU has no file more than before."""
    monitor = await Monitor.connect(guest.monitor)
    before = guest.files()
    try:
        yield monitor
        await hotplug.rewire(monitor, machine(), no_tap)
        found = await hotplug.look(monitor)
        assert (found.names, found.leftovers) == ([], frozenset())
        assert guest.files() == before
    finally:
        await monitor.close()


async def no_tap(port: str) -> int:
    raise AssertionError(port)


async def tap_of(port: str) -> int:
    """A TAP in a network namespace of its own, which ends with the descriptor: made by a thread that ends with it, too."""
    made: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()

    def make() -> None:
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "unshare")
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", b"tap0", _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
        except OSError as error:
            loop.call_soon_threadsafe(made.set_exception, error)
        else:
            loop.call_soon_threadsafe(made.set_result, fd)

    threading.Thread(target=make).start()
    return await made


async def see(guest: ShellGuest, command: str, expected: str) -> None:
    await asyncio.to_thread(guest.wait_for, command, expected)


# --- disks


async def test_disks_appear_with_size_and_name_and_vanish(guest: ShellGuest, monitor: Monitor, tmp_path: Path) -> None:
    base = sparse(tmp_path / "base.raw", 32 * MIB, b"what the base says")
    data = raw_disk(tmp_path, "data", 64 * MIB)
    clone = clone_disk(tmp_path, "clone", 48 * MIB, base)
    await hotplug.rewire(monitor, machine(disks=[data, clone]), no_tap)
    assert await hotplug.plugged(monitor) == ["clone", "data"]
    listing = "cd /sys/block; for d in vd*; do echo $(cat $d/serial) $(cat $d/size); done | sort"
    await see(guest, listing, f"clone {48 * MIB // 512}\ndata {64 * MIB // 512}")
    of = "$(grep -l ^{}$ /sys/block/vd*/serial | cut -d/ -f4)"
    assert guest.run(f"head -c 18 /dev/{of.format('clone')}") == "what the base says"
    assert guest.run(f"echo written > /dev/{of.format('data')}; sync") == ""
    assert data.volume.path.read_bytes()[:8] == b"written\n"
    assert guest.run(f"echo changed > /dev/{of.format('clone')}; sync") == ""
    assert base.read_bytes()[:8] == b"what the"
    await hotplug.rewire(monitor, machine(disks=[clone]), no_tap)
    await see(guest, "cat /sys/block/vd*/serial", "clone")


async def test_what_is_there_already_stays(guest: ShellGuest, monitor: Monitor, tmp_path: Path) -> None:
    wanted = machine(disks=[raw_disk(tmp_path, "kept", MIB)])
    await hotplug.rewire(monitor, wanted, no_tap)
    await see(guest, "cat /sys/block/vd*/serial", "kept")  # QEMU opens more when the guest's driver is ready
    before = (await hotplug.look(monitor), guest.files())
    await hotplug.rewire(monitor, wanted, no_tap)
    assert (await hotplug.look(monitor), guest.files()) == before


async def test_another_volume_under_the_same_name_is_another_disk(
    guest: ShellGuest, monitor: Monitor, tmp_path: Path
) -> None:
    (tmp_path / "new").mkdir()
    await hotplug.rewire(monitor, machine(disks=[raw_disk(tmp_path, "same", 4 * MIB)]), no_tap)
    await see(guest, "cat /sys/block/vd*/size", "8192")
    other = raw_disk(tmp_path / "new", "same", 8 * MIB)
    volume = type(other.volume)(id="another", form=VolumeForm.BLOCK, path=other.volume.path, size=8 * MIB)
    await hotplug.rewire(monitor, machine(disks=[type(other)(name="same", volume=volume)]), no_tap)
    await see(guest, "cat /sys/block/vd*/size", "16384")


async def test_nvme_is_the_disk_of_generic_hardware(guest: ShellGuest, monitor: Monitor, tmp_path: Path) -> None:
    generic = machine(board=Board(hardware=Hardware.GENERIC), disks=[raw_disk(tmp_path, "old", 16 * MIB)])
    await hotplug.rewire(monitor, generic, no_tap)
    await see(guest, "cat /sys/block/nvme0n1/size", "32768")
    await see(guest, "cat /sys/class/nvme/nvme0/serial", "old")
    await hotplug.rewire(monitor, machine(), no_tap)
    await see(guest, "ls -d /sys/block/nvme* 2>/dev/null", "")


async def test_every_port_can_be_taken_and_then_none_is_left(
    guest: ShellGuest, monitor: Monitor, tmp_path: Path
) -> None:
    disks = [raw_disk(tmp_path, f"disk{number}", MIB) for number in range(9)]
    with pytest.raises(Unsupported, match="no place left for disk8: this machine started with 8"):
        await hotplug.rewire(monitor, machine(disks=disks), no_tap)
    assert await hotplug.plugged(monitor) == []
    await hotplug.rewire(monitor, machine(disks=disks[:8]), no_tap)
    await see(guest, "ls -d /sys/block/vd* | wc -l", "8")


async def test_a_missing_volume_leaves_nothing_and_stops_no_other(
    guest: ShellGuest, monitor: Monitor, tmp_path: Path
) -> None:
    gone, there = raw_disk(tmp_path, "gone", MIB), raw_disk(tmp_path, "there", MIB)
    gone.volume.path.unlink()
    with pytest.raises(LamellaError, match="of device gone is not there"):
        await hotplug.rewire(monitor, machine(disks=[gone, there]), no_tap)
    found = await hotplug.look(monitor)
    assert (found.names, found.leftovers) == (["there"], frozenset())


async def test_what_a_daemon_left_half_done_is_made_whole(guest: ShellGuest, monitor: Monitor, tmp_path: Path) -> None:
    """A daemon that died between giving the disk's file and plugging it in left a block node; the next begins anew."""
    disk = raw_disk(tmp_path, "half", MIB)
    fd = os.open(disk.volume.path, os.O_RDWR)
    fdset = await monitor.add_fd(fd, "device half volume-half")
    os.close(fd)
    file = {"driver": "file", "filename": f"/dev/fdset/{fdset}"}
    await monitor.execute("blockdev-add", {"driver": "raw", "node-name": "disk-half", "file": file})
    found = await hotplug.look(monitor)
    assert (found.names, found.leftovers) == ([], {"half"})
    await hotplug.rewire(monitor, machine(disks=[disk]), no_tap)
    await see(guest, "cat /sys/block/vd*/serial", "half")


async def test_a_paused_guest_cannot_let_go_and_is_not_waited_for(
    guest: ShellGuest, monitor: Monitor, tmp_path: Path
) -> None:
    wanted = machine(disks=[raw_disk(tmp_path, "held", MIB)])
    await hotplug.rewire(monitor, wanted, no_tap)
    await see(guest, "cat /sys/block/vd*/serial", "held")
    await monitor.stop()
    try:
        async with asyncio.timeout(90):
            with pytest.raises(Conflict, match="does not run and cannot let go of disk held"):
                await hotplug.rewire(monitor, machine(), no_tap)
    finally:
        await monitor.proceed()
    assert await hotplug.plugged(monitor) == ["held"]


# --- NICs


@pytest.mark.parametrize("mac", ["02:00:00:00:09:01"])
async def test_a_nic_appears_with_its_address_and_vanishes(guest: ShellGuest, monitor: Monitor, mac: str) -> None:
    await hotplug.rewire(monitor, machine(nics=[nic("lan", mac)]), tap_of)
    assert await hotplug.plugged(monitor) == ["lan"]
    await see(guest, "cat /sys/class/net/e*/address", mac)
    assert guest.run("cat /sys/class/net/e*/mtu") == "1400"
    # What the guest sends arrives on the TAP: its counters say so.
    assert guest.run("i=$(ls /sys/class/net | grep ^e); ip link set $i up && ip address add 10.9.0.2/24 dev $i") == ""
    guest.run("arping -c 1 -w 1 -I $(ls /sys/class/net | grep ^e) 10.9.0.1")
    assert int(guest.run("cat /sys/class/net/e*/statistics/tx_packets")) > 0
    await hotplug.rewire(monitor, machine(), tap_of)
    await see(guest, "ls -d /sys/class/net/e* 2>/dev/null", "")


async def test_another_address_is_another_nic(guest: ShellGuest, monitor: Monitor) -> None:
    for mac in ("02:00:00:00:09:02", "02:00:00:00:09:03"):
        await hotplug.rewire(monitor, machine(nics=[nic("lan", mac)]), tap_of)
        await see(guest, "cat /sys/class/net/e*/address", mac)


async def test_a_netdev_without_a_nic_is_seen_and_removed(guest: ShellGuest, monitor: Monitor) -> None:
    fd = await tap_of("port")
    async with monitor.named_fd(fd) as name:
        await monitor.execute("netdev_add", {"type": "tap", "id": "net-lost", "fd": name})
    os.close(fd)
    assert (await hotplug.look(monitor)).leftovers == {"lost"}
    await hotplug.rewire(monitor, machine(), no_tap)


# --- CDs


async def test_images_are_put_into_drives_and_taken_out(guest: ShellGuest, monitor: Monitor, tmp_path: Path) -> None:
    first = DriveImage(name="first", path=sparse(tmp_path / "first.iso", MIB), size=MIB)
    second = DriveImage(name="second", path=sparse(tmp_path / "second.iso", MIB), size=MIB)
    await hotplug.rewire(monitor, machine(cdroms=[first]), no_tap)
    assert await hotplug.plugged(monitor) == ["first"]
    with pytest.raises(Unsupported, match="no CD drive left for second: this machine started with 1"):
        await hotplug.rewire(monitor, machine(cdroms=[first, second]), no_tap)
    await hotplug.rewire(monitor, machine(cdroms=[second]), no_tap)
    assert (await hotplug.look(monitor)).drives["drive-0"] is not None
    assert await hotplug.plugged(monitor) == ["second"]
    # Another image under the same name is another image.
    same = DriveImage(name="second", path=first.path, size=MIB)
    await hotplug.rewire(monitor, machine(cdroms=[same]), no_tap)
    drive = (await hotplug.look(monitor)).drives["drive-0"]
    assert drive is not None and drive.identity == str(first.path)


# --- USB


class EmulatedUsb(usb.HostDevice, frozen=True, kw_only=True):
    """This machine has no USB: a stick that QEMU emulates goes the same way, its block node made beforehand."""

    def properties(self, fdset: int) -> dict[str, object]:
        return {"driver": "usb-storage", "drive": "stick"}


async def test_a_usb_device_is_plugged_in_and_out(guest: ShellGuest, monitor: Monitor, tmp_path: Path) -> None:
    await monitor.execute("blockdev-add", {"driver": "null-co", "node-name": "stick", "size": MIB})
    node = sparse(tmp_path / "node", MIB)
    wanted = machine(usb=[Usb(name="key", device="1d6b:0002")])
    await hotplug.rewire(monitor, wanted, no_tap, find_usb=lambda _: EmulatedUsb(path=node))
    assert await hotplug.plugged(monitor) == ["key"]
    tree = await monitor.ask(str, "human-monitor-command", {"command-line": "info usb"})
    assert "QEMU USB MSD" in tree
    await hotplug.rewire(monitor, machine(), no_tap)
    assert await hotplug.plugged(monitor) == []
    await asyncio.sleep(0.5)  # it holds its node for a moment longer
    await monitor.execute("blockdev-del", {"node-name": "stick"})


async def test_a_usb_device_that_this_host_has_not_is_refused(monitor: Monitor) -> None:
    with pytest.raises(Unsupported, match="this host has no USB device ffff:fff0"):
        await hotplug.rewire(monitor, machine(usb=[Usb(name="key", device="ffff:fff0")]), no_tap)


async def test_qemu_itself_refuses_what_is_no_usb_device(memtest: BareQemu, tmp_path: Path) -> None:
    """As far as a host without USB can go: the node's descriptor reaches usb-host, which finds that it is none."""
    monitor = await Monitor.connect(memtest.monitor)
    await monitor.proceed()
    node = sparse(tmp_path / "node", MIB)
    wanted = machine(usb=[Usb(name="key", device="1d6b:0002")])
    with pytest.raises(Unsupported, match="failed to open host usb device"):
        await hotplug.rewire(monitor, wanted, no_tap, find_usb=lambda _: usb.HostDevice(path=node))
    assert (await hotplug.look(monitor)).leftovers == frozenset()
    await monitor.close()


# --- size


async def test_a_machine_grows_and_shrinks(guest: ShellGuest, monitor: Monitor) -> None:
    def total() -> int:
        return int(guest.run("awk '/MemTotal/ {print $2}' /proc/meminfo")) << 10

    start = total()
    current = await sizing.look(monitor)
    assert (current.vcpus, current.most_vcpus, current.memory) == (1, 4, MEMORY)
    assert current.limits == Limits(cpu=4000, memory=1024 * MIB)

    await sizing.resize(monitor, sizing.change(current, Limits(cpu=3000, memory=768 * MIB), "tcg"))
    guest.run(sizing.online(3))
    assert guest.run("grep -c ^processor /proc/cpuinfo") == "3"
    assert total() > start + 400 * MIB

    grown = await sizing.look(monitor)
    assert (grown.vcpus, grown.grown) == (3, 512 * MIB)
    await sizing.resize(monitor, sizing.change(grown, Limits(cpu=1000, memory=MEMORY), "tcg"))
    guest.run(sizing.online(1))
    assert guest.run("grep -c ^processor /proc/cpuinfo") == "1"
    assert total() <= start + 16 * MIB

    await sizing.resize(monitor, sizing.change(await sizing.look(monitor), Limits(cpu=1000, memory=160 * MIB), "tcg"))
    assert total() < start - 80 * MIB
    await sizing.resize(monitor, sizing.change(await sizing.look(monitor), Limits(cpu=1000, memory=MEMORY), "tcg"))
    assert abs(total() - start) <= 16 * MIB


async def test_a_machine_can_start_smaller_processors_and_all(boot: tuple[Path, Path], tmp_path: Path) -> None:
    """vCPUs of the start can be taken too, but for the first."""
    size = sizing.size_of(Limits(cpu=3000, memory=MEMORY))
    guest = ManyThreads(tmp_path, boot, sizing.cold_arguments(size, size))
    try:
        await asyncio.to_thread(guest.wait_shell)
        monitor = await Monitor.connect(guest.monitor)
        current = await sizing.look(monitor)
        assert (current.vcpus, current.room) == (3, 0)
        await sizing.resize(monitor, sizing.change(current, Limits(cpu=1000), "kvm"))
        assert guest.run("grep -c ^processor /proc/cpuinfo") == "1"
        with pytest.raises(Conflict, match="no driver of virtio-balloon"):
            less = sizing.change(current, Limits(cpu=1000, memory=128 * MIB), "kvm")
            await sizing.resize(monitor, less, patience=1)
        await monitor.close()
    finally:
        guest.end()


# --- guests that know nothing of it


@pytest.fixture
def memtest(tmp_path: Path) -> Iterator[BareQemu]:
    """A guest that hears of no hot-plug, from a CD; it runs once the test lets it."""
    size = sizing.size_of(Limits(memory=64 * MIB))
    board = Board(graphics=Graphics.VGA)
    arguments = [
        *hotplug.cold_arguments(machine(board=board)),
        *sizing.cold_arguments(size, sizing.largest_of(size, 8 << 30)),
        *("-device", "virtio-balloon-pci,id=balloon", "-device", "VGA", "-S"),
    ]
    qemu = BareQemu(tmp_path, arguments)
    yield qemu
    qemu.end()


async def test_a_guest_without_hot_plug_keeps_what_it_has_until_it_is_reset(memtest: BareQemu, tmp_path: Path) -> None:
    monitor = await Monitor.connect(memtest.monitor)
    disk = raw_disk(tmp_path, "stuck", MIB)
    drive = DriveImage(name="tester", path=MEMTEST, size=MEMTEST.stat().st_size)
    both = machine(disks=[disk], cdroms=[drive])
    await hotplug.rewire(monitor, both, no_tap)
    await monitor.execute("system_reset")
    await monitor.proceed()
    await asyncio.sleep(3)

    without = machine(cdroms=[drive])
    for _ in range(2):  # the half-removed state is known the second time, too
        with pytest.raises(Conflict, match="did not let go of disk stuck within 2 s"):
            await hotplug.rewire(monitor, without, no_tap, patience=2)
        assert await hotplug.plugged(monitor) == ["stuck", "tester"]
    with pytest.raises(Conflict, match="it needs the driver of virtio-mem"):
        current = await sizing.look(monitor)
        await sizing.resize(monitor, sizing.change(current, Limits(memory=128 * MIB), "tcg"), patience=1)
    assert (await sizing.look(monitor)).grown == 0

    # A reset lets go of it: what stays behind of it is found and removed.
    await monitor.execute("system_reset")
    for _ in range(450):
        if "stuck" not in await hotplug.plugged(monitor):
            break
        await asyncio.sleep(0.2)
    found = await hotplug.look(monitor)
    assert (found.names, found.leftovers) == (["tester"], {"stuck"})
    assert Clear(name="stuck") in hotplug.plan(found, [], {})
    await hotplug.rewire(monitor, without, no_tap)
    assert (await hotplug.look(monitor)).leftovers == frozenset()
    await monitor.close()


@pytest.mark.parametrize("hardware", Hardware)
async def test_each_hardware_has_places_for_everything(tmp_path: Path, hardware: Hardware) -> None:
    """All that a machine may have, with the ROM of a NIC that is booted from; a paused machine takes it as it starts."""
    board = Board(hardware=hardware, boot=["lan"])
    disks = [raw_disk(tmp_path, f"disk{number}", MIB) for number in range(16)]
    cdroms = [DriveImage(name=f"cd{number}", path=sparse(tmp_path / str(number), MIB), size=MIB) for number in range(4)]
    nics = [nic("lan", "02:00:00:00:09:04")]
    stick = [Usb(name="key", device="1d6b:0002")]
    wanted = machine(board=board, disks=disks, cdroms=cdroms, nics=nics, usb=stick)
    qemu = BareQemu(tmp_path, ["-m", "64M", "-S", "-device", "VGA", *hotplug.cold_arguments(wanted)])
    try:
        monitor = await Monitor.connect(qemu.monitor)
        await monitor.execute("blockdev-add", {"driver": "null-co", "node-name": "stick", "size": MIB})
        await hotplug.rewire(monitor, wanted, tap_of, find_usb=lambda _: EmulatedUsb(path=disks[0].volume.path))
        assert await hotplug.plugged(monitor) == wanted.devices
        assert (await hotplug.look(monitor)).boot["dev-lan"] == 1
        await monitor.execute("system_reset")
        await monitor.proceed()
        await monitor.close()
    finally:
        qemu.end()


async def test_the_firmware_is_told_the_boot_order(memtest: BareQemu, tmp_path: Path) -> None:
    """``bootindex`` of each, and the list that the firmware reads, which QEMU writes when the machine is reset."""
    monitor = await Monitor.connect(memtest.monitor)
    disks = [raw_disk(tmp_path, name, MIB) for name in ("one", "two")]
    drive = DriveImage(name="tester", path=MEMTEST, size=1)
    await hotplug.rewire(monitor, machine(disks=disks, cdroms=[drive], board=Board(boot=["two", "tester"])), no_tap)
    boot = (await hotplug.look(monitor)).boot
    assert (boot["dev-two"], boot["drive-0"], boot["dev-one"]) == (1, 2, -1)
    await hotplug.rewire(monitor, machine(disks=disks, cdroms=[drive], board=Board(boot=["tester", "one"])), no_tap)
    boot = (await hotplug.look(monitor)).boot
    assert (boot["drive-0"], boot["dev-one"], boot["dev-two"]) == (1, 2, -1)
    await monitor.close()


def test_qemu_of_these_tests_may_open_nothing(guest: ShellGuest, tmp_path: Path) -> None:
    path = sparse(tmp_path / "secret", MIB)
    denied = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat", path], capture_output=True, timeout=90
    )
    assert denied.returncode != 0
    status = Path(f"/proc/{guest.process.pid}/status").read_text()
    assert "Uid:\t65534\t65534\t65534\t65534" in status and "CapEff:\t0000000000000000" in status
