"""A guest's disks against bare QEMU's on the same files: 4 KiB at random places, and how long a writer waits for a snapshot.

Both machines run the same Linux (tests/linux_guest.py) and stand beside each other; they measure in turns, so only one of them works. Bare
QEMU opens the same files as ours, without locks; nothing reads what the other wrote. The disk is measured past the guest's page cache, by a
small program in C (guest_writer.c), eight threads at a time.
"""

import asyncio
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.measure import Row
from tests.linux_guest import build

from lamella.host.compute.driver import DataDisk, Home, Limits, Machine, MountedVolume, Rootfs
from lamella.host.compute.guest.client import GuestClient
from lamella.host.compute.qemu.size import MIB, TRANSLATED
from lamella.host.compute.vm.driver import VmDriver
from lamella.host.linux.cgroup import ROOT, Cgroups
from lamella.host.storage.driver import Layer, VolumeHandle
from lamella.model.board import Board, Graphics, Seed
from lamella.model.ids import new_id
from lamella.model.image import ImageConfig
from lamella.model.storage import VolumeForm
from lamella.model.stream import ExecSpec, Exit, ProcessStream, Stderr, Stdout

SIZE = 256 * MIB
SECONDS = 1.5
DEPTH = 8
SNAPSHOTS = 5
NAMES = ("own", "file", "served")
TITLES = {
    "own": "a disk of its own",
    "file": "a volume as a file (FUSE)",
    "served": "a volume over a socket (NBD)",
}
Execute = Callable[[ExecSpec], Awaitable[ProcessStream]]


def rows(runs: int) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="lamella-bench-", dir="/var/tmp") as scratch:
        return asyncio.run(_rows(Path(scratch), runs))


async def _rows(scratch: Path, runs: int) -> list[Row]:
    linux = await build(_made(scratch / "linux"))
    program = scratch / "writer"
    source = Path(__file__).with_name("guest_writer.c")
    subprocess.run(["gcc", "-O2", "-static", "-pthread", "-o", str(program), str(source)], check=True)
    backing = {name: _full(scratch / f"{name}.raw") for name in NAMES}
    found: list[Row] = []
    async with _ours(scratch, linux, backing) as (driver, machine), _bare(scratch, linux, backing) as bare:

        async def execute(spec: ExecSpec) -> ProcessStream:
            return await driver.exec(machine.id, spec)

        disks = {"own": "/dev/vdb", "file": "/dev/vdc", "served": "/dev/vdd"}
        for each in (execute, bare.exec):
            await _install(each, program)
        where = await _disks(execute)
        for name in NAMES:
            for kind in ("read", "write"):
                ours: list[float] = []
                theirs: list[float] = []
                for number in range(runs + 1):
                    mine = (await _run(execute, f"/tmp/writer {where[name]} {kind} {SECONDS} {DEPTH}"))[0]
                    other = (await _run(bare.exec, f"/tmp/writer {disks[name]} {kind} {SECONDS} {DEPTH}"))[0]
                    if number:
                        ours.append(mine)
                        theirs.append(other)
                found.append(
                    _row(f"guest 4 KiB random {kind}, {TITLES[name]}, against bare QEMU's raw disk", ours, theirs)
                )
        found.append(await _pauses(driver, machine, execute, where["own"], scratch, runs))
    return found


def _row(what: str, ours: list[float], theirs: list[float]) -> Row:
    ratio = statistics.median(ours) / statistics.median(theirs)
    return Row(what, _rate(ours), _rate(theirs), ratio, "0.9 ×", "1.0 ×")


def _rate(values: list[float]) -> str:
    return f"{statistics.median(values):.0f}/s ({min(values):.0f} to {max(values):.0f}, n={len(values)})"


async def _pauses(driver: VmDriver, machine: Machine, execute: Execute, device: str, scratch: Path, runs: int) -> Row:
    """The longest wait of one write while the machine goes over to new layers, and while nothing happens."""
    own = machine.disks[0].volume
    quiet: list[float] = []
    waits: list[float] = []
    for _ in range(runs):
        quiet.append((await _run(execute, f"/tmp/writer {device} pause 1.5"))[1] / 1e3)
    for number in range(SNAPSHOTS * 2):
        path = scratch / f"layer{number}.qcow2"
        options = "cluster_size=128k,extended_l2=on"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(path), str(SIZE)], check=True)
        writer = asyncio.create_task(_run(execute, f"/tmp/writer {device} pause 1.5"))
        await asyncio.sleep(0.8)
        await driver.switch(machine.id, {own.id: Layer(path=path, format="qcow2")})
        waits.append((await writer)[1] / 1e3)
    return Row(
        "snapshot of a running VM: the longest that a write in the guest took, against a run of the same length without",
        _milliseconds(waits),
        _milliseconds(quiet),
        statistics.median(waits) / statistics.median(quiet),
        "50 ms",
        "10 ms",
    )


def _milliseconds(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ms ({min(values):.1f} to {max(values):.1f}, n={len(values)})"


# --- the two machines


@asynccontextmanager
async def _ours(scratch: Path, linux: Path, backing: dict[str, Path]) -> AsyncIterator[tuple[VmDriver, Machine]]:
    home = Home(_made(scratch / "home"), f"lamella-bench-{os.getpid()}")
    for place in (home.state, home.run):
        place.mkdir()
    user = 1_900_000_000
    served = _made(scratch / "served")
    socket, file = _made(scratch / "socket") / "disk", served / "disk"
    file.touch()
    processes = [
        _serve(backing["file"], f"type=fuse,id=e,node-name=n,mountpoint={file},writable=on,allow-other=auto"),
        _serve(
            backing["served"],
            "type=nbd,id=e,node-name=n,name=vol_served,writable=on",
            *("--nbd-server", f"addr.type=unix,addr.path={socket},max-connections=0"),
        ),
    ]
    driver = VmDriver(home, lambda _: None)
    try:
        await _until(lambda: socket.exists() and os.path.ismount(file))
        os.chown(socket, user, user)
        capabilities = await driver.open()
        assert capabilities[0].available, capabilities[0].reason
        machine = Machine(
            id=new_id("instance"), name="bench", project="default", command=[], environment={}, working_directory="/",
            rootfs=Rootfs(digest="sha256:" + "0" * 64, layers=[], config=ImageConfig()), user="", hostname="bench",
            terminal=True, stdin=False, limits=Limits(memory=256 * MIB), id_base=user, nic=None,
            disk=_handle(_copy(linux, scratch / "ours.img")), nameservers=[], stop_signal="SIGTERM",
            board=Board(graphics=Graphics.NONE), seed=Seed(enabled=False),
            disks=[DataDisk(name="own", volume=_handle(backing["own"]))],
            volumes=[_volume("file", file), _volume("served", backing["served"], socket)],
        )  # fmt: skip
        await driver.create(machine)
        await driver.start(machine.id)
        yield driver, machine
    finally:
        for id in await driver.inventory():
            await driver.remove(id)
        await driver.close()
        for process in processes:
            process.terminate()
            process.wait(10)
        Cgroups(ROOT, home.mark).remove()


@asynccontextmanager
async def _bare(scratch: Path, linux: Path, backing: dict[str, Path]) -> AsyncIterator[GuestClient]:
    agent = scratch / "agent"
    root = _copy(linux, scratch / "bare.img")
    words = [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-serial", "null"),
        *("-machine", "q35,vmport=off,smm=off", "-cpu", "max", "-m", "256M"),
        *("-accel", f"{_accelerator()}"),
        *("-blockdev", f"driver=raw,node-name=root,file.driver=file,file.filename={root}"),
        *("-device", "virtio-blk-pci,drive=root,addr=4"),
    ]
    for number, name in enumerate(NAMES):
        file = f"file.driver=file,file.filename={backing[name]},file.locking=off"
        words += ["-blockdev", f"driver=raw,node-name={name},discard=unmap,{file}"]
        words += ["-device", f"virtio-blk-pci,drive={name},addr={5 + number}"]
    words += ["-device", "virtio-serial-pci,id=serial", "-chardev", f"socket,id=agent,path={agent},server=on,wait=off"]
    words += ["-device", "virtserialport,bus=serial.0,chardev=agent,name=org.lamella.agent"]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    # In a group of its own, as ours is: on a busy host a process that is in none gets more than its share.
    group = Cgroups(ROOT, f"lamella-bench-{os.getpid()}").group("bare")
    group.create(Limits())
    for procs in group.procs_files():
        procs.write_text(str(process.pid))
    try:
        await _until(agent.exists)
        client = await GuestClient.connect(agent, timeout=90)
        yield client
        await client.close()
    finally:
        process.kill()
        process.wait(10)


def _accelerator() -> str:
    return f"tcg,thread=single,tb-size={TRANSLATED // MIB}"


def _serve(backing: Path, export: str, *server: str) -> "subprocess.Popen[bytes]":
    node = f"driver=file,node-name=n,filename={backing},discard=unmap"
    words = ["qemu-storage-daemon", "--blockdev", node, *server, "--export", export]
    return subprocess.Popen(words, stdin=subprocess.DEVNULL)


def _handle(path: Path) -> VolumeHandle:
    return VolumeHandle(id=new_id("volume"), form=VolumeForm.BLOCK, path=path, size=path.stat().st_size)


def _volume(device: str, path: Path, socket: Path | None = None) -> MountedVolume:
    return MountedVolume(
        name=device, id=f"vol_{device}", device=device, target="", filesystem="", path=path, size=SIZE, socket=socket
    )


# --- in the guests


async def _install(execute: Execute, program: Path) -> None:
    stream = await execute(
        ExecSpec(command=["/bin/sh", "-c", "base64 -d >/tmp/writer && chmod 755 /tmp/writer"], stdin=True)
    )
    from base64 import b64encode

    from lamella.model.stream import Stdin, StdinEnd

    text = b64encode(program.read_bytes())
    for start in range(0, len(text), 65536):
        await stream.send(Stdin(text[start : start + 65536]))
    await stream.send(StdinEnd())
    while await stream.receive() is not None:
        pass
    await stream.close()


async def _disks(execute: Execute) -> dict[str, str]:
    """Devices by name, which is their serial number."""
    script = "for d in /sys/block/vd*; do echo $(cat $d/serial) /dev/${d##*/}; done"
    lines = (await _said(execute, script)).splitlines()
    known = {line.split()[0]: line.split()[1] for line in lines if len(line.split()) == 2}
    return {name: known[name] for name in NAMES}


async def _run(execute: Execute, command: str) -> tuple[float, float]:
    text = (await _said(execute, command)).split()
    return float(text[0]), float(text[1])


async def _said(execute: Execute, command: str) -> str:
    stream = await execute(ExecSpec(command=["/bin/sh", "-c", command]))
    said = b""
    async with asyncio.timeout(60):
        while (frame := await stream.receive()) is not None:
            match frame:
                case Stdout(data) | Stderr(data):
                    said += data
                case Exit(code=code):
                    assert code == 0, said
                case _:
                    pass
    await stream.close()
    return said.decode()


# --- files


def _made(path: Path) -> Path:
    path.mkdir(mode=0o755, exist_ok=True)
    return path


def _full(path: Path) -> Path:
    """Every block is there: what is read was written, and what is written is in its place."""
    piece = os.urandom(MIB)
    with path.open("wb") as file:
        for _ in range(SIZE // MIB):
            file.write(piece)
    return path


def _copy(source: Path, target: Path) -> Path:
    subprocess.run(["cp", "--sparse=always", str(source), str(target)], check=True)
    return target


async def _until(right: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not right():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
