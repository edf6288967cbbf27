"""The agent as a service of a machine that has an init of its own: a real kernel, busybox its init, under QEMU."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from guest_busybox import INITTAB, INITTAB_OF_SEED, MAC, BusyboxMachine, make_initramfs
from guest_talk import hear, run

from lamella.host.compute.driver import Limits, Machine, Rootfs
from lamella.host.compute.guest.client import GuestClient
from lamella.host.compute.guest.service import PATH
from lamella.host.compute.guest.setup import GuestIdentity, GuestNetwork, GuestPhase, GuestProcess, GuestSetup
from lamella.host.compute.microvm import initramfs
from lamella.host.compute.microvm.boot import BootFiles
from lamella.host.compute.microvm.kernel import fetch_kernel
from lamella.host.compute.microvm.modules import ModuleTree
from lamella.host.compute.vm import seed
from lamella.host.compute.vm.inside import Agents, Inside
from lamella.host.linux import binaries
from lamella.host.linux.processes import environment
from lamella.host.storage.driver import VolumeHandle
from lamella.model.errors import Conflict, LamellaError, Unsupported
from lamella.model.image import ImageConfig
from lamella.model.resource import now
from lamella.model.storage import VolumeForm
from lamella.model.stream import ExecSpec

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]
REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def tree() -> ModuleTree:
    return ModuleTree(fetch_kernel(REPOSITORY / ".lamella" / "boot" / "kernel").modules)


@pytest.fixture
def vm_machine(tmp_path: Path) -> Machine:
    volume = VolumeHandle(id="v", form=VolumeForm.BLOCK, path=tmp_path, size=1)
    return Machine(
        id="inst_1",
        name="box",
        project="p",
        rootfs=Rootfs(digest="sha256:0", layers=[], config=ImageConfig()),
        command=[],
        environment={},
        working_directory="/",
        user="",
        hostname="box",
        terminal=False,
        stdin=False,
        limits=Limits(),
        id_base=0,
        disk=volume,
        nic=None,
        nameservers=[],
        stop_signal="SIGTERM",
    )


def start(boot: BootFiles, archive: bytes, disk: Path, directory: Path) -> BusyboxMachine:
    tsc = subprocess.run([binaries.own("lamella-tsc")], capture_output=True, text=True, check=True, timeout=90)
    return BusyboxMachine(boot.kernel, archive, disk, directory, tsc_khz=int(tsc.stdout))


@pytest.fixture(scope="module")
def box(
    agent: Path, boot: BootFiles, tree: ModuleTree, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BusyboxMachine]:
    """One boot for all tests of this file; the last one ends it."""
    directory = tmp_path_factory.mktemp("box")
    disk = directory / "disk"
    with disk.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", disk], check=True, timeout=90)
    files = [
        initramfs.file("etc/inittab", INITTAB.encode()),
        initramfs.file(PATH.removeprefix("/"), agent.read_bytes(), 0o755),
    ]
    machine = start(boot, make_initramfs(tree, files), disk, directory)
    yield machine
    machine.end()


@pytest.fixture
async def guest(box: BusyboxMachine) -> AsyncIterator[GuestClient]:
    client = await GuestClient.connect(box.agent, timeout=90)
    yield client
    await client.close()


@contextlib.asynccontextmanager
async def inside_of(box: BusyboxMachine) -> AsyncIterator[Inside]:
    inside = Inside(box.agent, box.qga)
    inside.open()
    try:
        yield inside
    finally:
        await inside.close()


async def test_it_says_what_it_is(guest: GuestClient) -> None:
    assert guest.hello.mode == "service"
    assert guest.hello.kernel.endswith("-cloud-amd64")
    state = await guest.state()
    assert state.phase is GuestPhase.MACHINE
    assert state.pid is None


async def test_it_leaves_the_machine_as_it_is(guest: GuestClient) -> None:
    said = await run(guest, "sh", "-c", "hostname; cat /proc/1/comm; ls /sys/class/net; [ -e /etc/hosts ] || echo none")
    assert said.out.decode().split() == ["untouched", "init", "enp0s3", "lo", "none"]
    with pytest.raises(Unsupported, match="its own system"):
        await guest.set_hostname("other")


@pytest.mark.parametrize("verb", ["configure", "start", "attach", "logs", "signal", "wait", "acknowledge"])
async def test_verbs_of_a_command_are_refused(guest: GuestClient, verb: str) -> None:
    async def logs() -> None:
        async for _ in guest.logs():
            pass

    asked = {
        "configure": lambda: guest.configure(GuestSetup(hostname="x")),
        "start": lambda: guest.start(GuestProcess(command=["true"])),
        "attach": guest.attach,
        "logs": logs,
        "signal": lambda: guest.signal(15),
        "wait": guest.wait_exit,
        "acknowledge": guest.acknowledge_exit,
    }
    with pytest.raises(Unsupported, match="an init of its own"):
        await asked[verb]()


async def test_exec_has_a_terminal_a_user_and_its_input(guest: GuestClient) -> None:
    said = await run(guest, "sh", "-c", "id -u; tty", terminal=True, user="ann")
    assert said.out.split() == [b"1000", b"/dev/pts/0"]
    assert (await run(guest, "cat", stdin=b"x" * 100_000)).out == b"x" * 100_000
    assert (await run(guest, "no-such-thing")).code == 127
    assert (await run(guest, "sleep", "60", timeout=0.2)).code == 124
    said = await run(guest, "sh", "-c", "cat /proc/self/oom_score_adj /proc/$PPID/oom_score_adj")
    assert said.out.split() == [b"0", b"-1000"]


async def test_files_and_usage(guest: GuestClient) -> None:
    async def content() -> AsyncIterator[bytes]:
        yield b"hello "
        yield b"there"

    await guest.make_directory("/data/deep/down")
    await guest.write_file("/data/deep/down/file", content(), mode=0o600, uid=1000)
    info = await guest.stat("/data/deep/down/file")
    assert (info.size, info.mode, info.uid) == (11, 0o600, 1000)
    assert [entry.path for entry in await guest.list_directory("/data/deep")] == ["/data/deep/down"]
    assert b"".join([piece async for piece in guest.read_file("/data/deep/down/file")]) == b"hello there"
    usage = await guest.usage()
    assert usage.processes is not None
    assert usage.processes >= 1  # init, which is not ours here


async def test_every_writable_disk_is_frozen_and_thaws_by_itself(guest: GuestClient) -> None:
    await guest.freeze(30)
    stream = await guest.exec(ExecSpec(command=["touch", "/data/frozen"]))
    ended = asyncio.create_task(hear(stream))
    await asyncio.sleep(0.5)
    assert not ended.done()
    await guest.freeze(0.5)  # asked again, it moves the deadline
    async with asyncio.timeout(90):
        assert (await ended).code == 0
    await guest.thaw()


async def test_randomness_and_clock_are_taken(guest: GuestClient) -> None:
    await guest.reseed(bytes(range(64)))
    await guest.set_time()


async def test_a_host_that_goes_takes_its_processes_along_and_may_come_again(box: BusyboxMachine) -> None:
    first = await GuestClient.connect(box.agent, timeout=90)
    await first.exec(ExecSpec(command=["sleep", "7777"]))
    await first.close()
    second = await GuestClient.connect(box.agent, timeout=90)
    try:
        said = await run(second, "sh", "-c", "while ps | grep -q '[s]leep 7777'; do sleep 0.2; done", timeout=90.0)
        assert said.code == 0
    finally:
        await second.close()


async def test_a_port_that_is_taken_away_and_comes_back_is_found_again(box: BusyboxMachine) -> None:
    async with inside_of(box) as inside:
        assert (await hear(await inside.exec(ExecSpec(command=["echo", "one"])))).out == b"one\n"
        said = b""
        # A guest that has yet to see that the port is gone does not see it come: a slow one gets longer.
        for pause in (1, 5, 30):
            box.tell("device_del", id="port")
            await asyncio.sleep(pause)
            box.tell("device_add", driver="virtserialport", id="port", nr=1, chardev="agent", name="org.lamella.agent")
            await inside.port_changed(ours=True, opened=False)
            with contextlib.suppress(LamellaError):
                said = (await hear(await inside.exec(ExecSpec(command=["echo", "two"])))).out
                break
        assert said == b"two\n"


async def test_only_ours_answers_here(box: BusyboxMachine) -> None:
    async with inside_of(box) as inside:
        await inside.stat("/")
        assert inside.agents == Agents(ours=True, qga=False)


async def test_an_agent_that_is_killed_is_met_again(box: BusyboxMachine) -> None:
    async with inside_of(box) as inside:
        whose = ExecSpec(command=["sh", "-c", "echo $PPID"])
        first = (await hear(await inside.exec(whose))).out
        await inside.exec(ExecSpec(command=["sh", "-c", "kill -9 $PPID"]))
        async with asyncio.timeout(180):
            while True:
                await asyncio.sleep(2.5)
                # What was asked of the one that died is answered by nobody.
                with contextlib.suppress(LamellaError, TimeoutError):
                    async with asyncio.timeout(20):
                        if (await hear(await inside.exec(whose))).out not in (first, b""):
                            break


COUNT = "i=0; while :; do i=$((i+1)); printf %08d $i 1<>/tmp/count; sleep 0.01; done"


async def content(guest: GuestClient, path: str) -> str:
    return b"".join([piece async for piece in guest.read_file(path)]).decode()


async def stands_still(guest: GuestClient) -> str:
    """What is counted to, while half a second of the guest's own time goes by."""
    counted, began = await content(guest, "/tmp/count"), float((await content(guest, "/proc/uptime")).split()[0])
    async with asyncio.timeout(90):
        while float((await content(guest, "/proc/uptime")).split()[0]) < began + 0.5:
            assert await content(guest, "/tmp/count") == counted
    return counted


async def goes_on(guest: GuestClient, counted: str) -> None:
    async with asyncio.timeout(90):
        while await content(guest, "/tmp/count") == counted:
            pass


async def test_all_but_the_agent_is_held_where_nobody_manages_groups(guest: GuestClient) -> None:
    await run(guest, "sh", "-c", f"setsid sh -c '{COUNT}' >/dev/null 2>&1 & echo $! >/tmp/counter")
    counter = (await content(guest, "/tmp/counter")).strip()
    await guest.hold(None)
    counted = await stands_still(guest)
    for pid in ("1", counter):
        assert await content(guest, f"/proc/{pid}/cgroup") == "0::/lamella-held\n"
    with pytest.raises(Conflict, match="held still"):
        await guest.power()
    with pytest.raises(Conflict, match="bounded by that"):
        await guest.renew(GuestIdentity(entropy=bytes(range(32)), pids=10))
    await guest.hold(1)
    await goes_on(guest, counted)  # by itself
    await guest.hold(30)
    counted = await stands_still(guest)
    await guest.release()
    await goes_on(guest, counted)
    for pid in ("1", counter):
        assert await content(guest, f"/proc/{pid}/cgroup") == "0::/\n"
    await run(guest, "kill", counter)


async def test_a_held_machine_becomes_another(guest: GuestClient) -> None:
    await guest.write_file("/etc/machine-id", _one(b"0123456789abcdef0123456789abcdef\n"))
    boot = await content(guest, "/proc/sys/kernel/random/boot_id")
    network = GuestNetwork(mac="02:00:00:00:00:98", address="10.0.4.4/24", gateway="10.0.4.1")
    await guest.hold(None)
    await guest.renew(
        GuestIdentity(entropy=bytes(range(32)), hostname="another", network=network, former_mac=MAC, time=now())
    )
    said = await run(guest, "sh", "-c", "hostname; ip addr show enp0s3; ip route; [ -e /etc/hosts ] || echo none")
    words = said.out.decode()
    assert words.startswith("another\n") and words.endswith("none\n"), "what it does not have is not made"
    assert "02:00:00:00:00:98" in words and "inet 10.0.4.4/24" in words and "default via 10.0.4.1" in words
    assert "10.0.2." not in words
    assert await content(guest, "/etc/hostname") == "another\n"
    assert await content(guest, "/etc/machine-id") != "0123456789abcdef0123456789abcdef\n"
    assert await content(guest, "/proc/sys/kernel/random/boot_id") != boot


async def test_reboot_and_power_off_are_asked_of_the_init(box: BusyboxMachine) -> None:
    async with inside_of(box) as inside:
        await inside.write_file("/tmp/mark", _one(b"x"))
        await inside.shutdown(reboot=True)
        async with asyncio.timeout(180):
            while True:
                await asyncio.sleep(3)
                with contextlib.suppress(LamellaError, TimeoutError):
                    async with asyncio.timeout(20):
                        there = [
                            entry.path for place in ("/data", "/tmp") for entry in await inside.list_directory(place)
                        ]
                    if "/data/shut-down" in there and "/tmp/mark" not in there:
                        break
        await inside.shutdown()
        async with asyncio.timeout(90):
            assert await asyncio.to_thread(box.qemu.wait) == 0


async def test_the_seed_brings_the_agent_to_an_image_that_has_none(
    boot: BootFiles, tree: ModuleTree, vm_machine: Machine, tmp_path: Path
) -> None:
    drive = tmp_path / "drive"
    await seed.make_seed(vm_machine, drive, environment("lamella-test"))
    script = seed.vendor_data().removeprefix("#cloud-boothook\n")  # as cloud-init does before it runs it
    files = [
        initramfs.file("etc/inittab", INITTAB_OF_SEED.encode()),
        initramfs.file("boothook", script.encode(), 0o755),
    ]
    machine = start(boot, make_initramfs(tree, files), drive, tmp_path)
    try:
        async with inside_of(machine) as inside:
            inside.started = now()
            assert (await inside.stat(PATH)).mode == 0o755
            assert inside.agents == Agents(ours=True)
            # Nothing of the drive stays mounted.
            said = await hear(await inside.exec(ExecSpec(command=["cat", "/proc/mounts"])))
            assert b"vfat" not in said.out
    finally:
        machine.end()


async def _one(data: bytes) -> AsyncIterator[bytes]:
    yield data


def test_without_a_port_it_waits_and_ends_when_it_is_told(agent: Path) -> None:
    if Path("/sys/class/virtio-ports").is_dir() and any(Path("/sys/class/virtio-ports").iterdir()):
        pytest.skip("this machine has ports of its own")
    with subprocess.Popen([agent, "--service"]) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.8)
        spent = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        assert int(spent[11]) + int(spent[12]) < 10  # ticks of 10 ms: it sleeps
        process.terminate()
        assert process.wait(90) == 0
