"""One microVM from its making to its removal: few boots, many questions."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from microvm_lab import MIB, Lab, drain, run, until_stopped

from lamella.host.compute.driver import Limits
from lamella.host.compute.microvm.driver import MicrovmDriver
from lamella.model.contract import LIMIT
from lamella.model.errors import Conflict, LamellaError, NotFound, Unsupported
from lamella.model.files import FileType
from lamella.model.instance import Phase
from lamella.model.stream import ExecSpec

pytestmark = pytest.mark.root


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


async def test_a_whole_life(lab: Lab, driver: MicrovmDriver) -> None:
    script = "echo begins; echo aside >&2; trap 'echo asked; exit 3' TERM; while :; do sleep 0.1; done"
    machine = lab.machine("/bin/sh", "-c", script)
    id = machine.id
    await driver.create(machine)
    seen = await driver.observe(id)
    assert seen is not None and seen.phase is Phase.STARTING and seen.started_at is None
    assert await driver.inventory() == {id}
    attached = asyncio.create_task(drain(await driver.attach(id)))
    await driver.start(id)
    await driver.start(id)
    seen = await driver.observe(id)
    assert seen is not None and seen.phase is Phase.RUNNING and seen.pid is not None
    assert seen.launched == Limits(cpu=1000, memory=256 * MIB)
    assert seen.accelerator in ("kvm", "tcg") and seen.accelerator_reason

    await the_image_is_the_same(driver, id)
    await the_room_is_empty(driver, id, seen.pid, machine.id_base)
    await files_go_in_and_out(driver, id)
    await memory_and_cpu_change(driver, id)
    await a_pause_is_a_pause(driver, id)

    usage = await driver.usage(id)
    assert usage.cpu_seconds and usage.memory and usage.disk_used and usage.processes
    await driver.stop(id, signal="SIGTERM", timeout=90)
    seen = await driver.observe(id)
    assert seen is not None and seen.phase is Phase.STOPPED and seen.exit_code == 3
    assert seen.started_at and seen.finished_at and seen.started_at <= seen.finished_at
    out, err, end = await attached
    assert out == b"begins\nasked\n" and err == b"aside\n" and end is not None and end.code == 3
    assert [entry.data async for entry in driver.logs(id, tail=1)] == [b"asked\n"]
    written = [(entry.stream, entry.data) async for entry in driver.logs(id)]
    assert b"".join(data for stream, data in written if stream == "stdout") == out
    assert b"".join(data for stream, data in written if stream == "stderr") == err
    assert lab.changes == [id]
    assert await driver.mechanisms(id) == []
    with pytest.raises(Conflict):
        await driver.exec(id, ExecSpec(command=["/bin/true"]))

    # Again, on the same disk: what was written is there, and so is the log.
    await driver.create(machine)
    assert (await driver.observe(id)).exit_code is None  # type: ignore[union-attr]
    assert b"".join([piece async for piece in driver.read_file(id, "/tmp/new")]) == b"some bytes"
    assert b"asked\n" in [entry.data async for entry in driver.logs(id)]
    await driver.remove(id)
    await driver.remove(id)
    assert await driver.observe(id) is None
    assert machine.disk.path.exists()


async def the_image_is_the_same(driver: MicrovmDriver, id: str) -> None:
    """Whiteouts, opaque directories, owners, modes and attributes mean what they mean to overlayfs."""
    assert await run(driver, id, "cat", "/etc/hello") == (0, "from the upper layer\n")
    assert (await run(driver, id, "ls", "/old"))[1] == "seen\n"
    there = (await run(driver, id, "ls", "/etc"))[1].split()
    assert "hello" in there and "gone" not in there and "never" not in there
    assert (await run(driver, id, "stat", "-c", "%u %g %a", "/owned"))[1] == "1000 1001 4750\n"
    assert await run(driver, id, "sh", "-c", "exit 7") == (7, "")
    assert (await run(driver, id, "sh", "-c", "echo $GREETING; pwd; id -u", user="ann", working_directory="/tmp")) == (
        0,
        "good day\n/tmp\n1000\n",
    )
    assert (await run(driver, id, "hostname"))[1] == "box\n"
    ours = os.uname().release
    assert (await run(driver, id, "uname", "-r"))[1].strip() != ours
    # The image below is one for all: what one writes goes to its own disk.
    assert (await run(driver, id, "sh", "-c", "echo mine > /etc/hello; cat /etc/hello"))[1] == "mine\n"


async def the_room_is_empty(driver: MicrovmDriver, id: str, pid: int, uid: int) -> None:
    """What the mechanisms say is what the kernel says, read here in another way."""
    found = {mechanism.name: mechanism for mechanism in await driver.mechanisms(id)}
    assert all(mechanism.in_force for mechanism in found.values()), found
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert status["Uid"].split() == [str(uid)] * 4 and status["Gid"].split() == [str(uid)] * 4
    assert status["Groups"].split() in ([], [str(Path("/dev/kvm").stat().st_gid) if Path("/dev/kvm").exists() else ""])
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0
    assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
    for name in ("mnt", "net", "pid", "ipc", "uts", "cgroup"):
        assert Path(f"/proc/{pid}/ns/{name}").stat().st_ino != Path(f"/proc/self/ns/{name}").stat().st_ino
    room = Path(f"/proc/{pid}/root")
    assert {path.name for path in room.iterdir()} <= {"usr", "lib64", "boot", "dev"}
    assert {path.name for path in (room / "usr").iterdir()} <= {"bin", "lib", "share"}
    with pytest.raises(OSError):
        (room / "made").write_text("x")
    assert Path(f"/proc/{pid}/fd/0").readlink() == Path("/dev/null")
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"LAMELLA_MARK=" in environment and b"HOME=" not in environment
    assert found[f"{LIMIT}memory"].value == "256MiB" and found[f"{LIMIT}cpu"].value == "1 cores"


async def files_go_in_and_out(driver: MicrovmDriver, id: str) -> None:
    await driver.make_directory(id, "/srv/a/b")
    await driver.write_file(id, "/tmp/new", pieces(b"some ", b"bytes"), mode=0o640, uid=5, gid=6)
    info = await driver.stat(id, "/tmp/new")
    assert (info.type, info.size, info.mode, info.uid, info.gid) == (FileType.FILE, 10, 0o640, 5, 6)
    assert b"".join([piece async for piece in driver.read_file(id, "/tmp/new")]) == b"some bytes"
    assert b"".join([piece async for piece in driver.read_file(id, "/escape")]).startswith(
        b"root:x:0:0::/root:/bin/sh\nann:"
    )
    assert {entry.path.rpartition("/")[2] for entry in await driver.list_directory(id, "/srv/a")} == {"b"}
    with pytest.raises(NotFound):
        await driver.stat(id, "/nowhere")


async def memory_and_cpu_change(driver: MicrovmDriver, id: str) -> None:
    """Within the size that it booted with, and enforced; beyond it a sentence that names restart."""
    for limits in (Limits(cpu=1000, memory=512 * MIB), Limits(cpu=1500, memory=256 * MIB)):
        with pytest.raises(Unsupported, match="restart"):
            await driver.update(id, limits)
    # Beyond its memory the guest's own kernel ends whoever asks for it; the instance lives on.
    hog = "dd if=/dev/zero of=/dev/null bs=150M count=4"
    _, said = await run(driver, id, "sh", "-c", f"{hog} & first=$!; {hog}; echo $?; wait $first; echo $?", timeout=60)
    assert "137" in said.split(), said
    before = int((await run(driver, id, "sh", "-c", "grep MemTotal /proc/meminfo"))[1].split()[1])
    await driver.update(id, Limits(cpu=500, memory=192 * MIB))
    after = int((await run(driver, id, "sh", "-c", "grep MemTotal /proc/meminfo"))[1].split()[1])
    assert before - after == 64 * 1024
    found = {mechanism.name: mechanism.value for mechanism in await driver.mechanisms(id)}
    assert found["limit.cpu"] == "0.5 cores" and found["limit.memory"] == "192MiB"
    before_spin = await driver.usage(id)
    code, _ = await run(driver, id, "sh", "-c", "i=0; while [ $i -lt 1000000000 ]; do i=$((i+1)); done", timeout=2)
    assert code == 124
    after_spin = await driver.usage(id)
    elapsed = (after_spin.at - before_spin.at).total_seconds()
    assert (after_spin.cpu_seconds or 0) - (before_spin.cpu_seconds or 0) < 0.65 * elapsed
    await driver.update(id, Limits(cpu=1000, memory=256 * MIB))
    assert int((await run(driver, id, "sh", "-c", "grep MemTotal /proc/meminfo"))[1].split()[1]) == before


async def a_pause_is_a_pause(driver: MicrovmDriver, id: str) -> None:
    await driver.pause(id)
    await driver.pause(id)
    seen = await driver.observe(id)
    assert seen is not None and seen.phase is Phase.PAUSED
    with pytest.raises(Conflict, match="resume"):
        await driver.exec(id, ExecSpec(command=["/bin/true"]))
    used = (await driver.usage(id)).cpu_seconds or 0
    await asyncio.sleep(0.5)
    assert ((await driver.usage(id)).cpu_seconds or 0) - used < 0.1
    await driver.resume(id)
    assert (await run(driver, id, "echo", "back"))[1] == "back\n"


async def test_a_command_that_does_not_listen_is_forced(lab: Lab, driver: MicrovmDriver) -> None:
    machine = lab.machine("/bin/sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.1; done")
    await driver.create(machine)
    await driver.start(machine.id)
    followed = asyncio.create_task(collect(driver, machine.id))
    async for _ in driver.logs(machine.id, follow=True):
        break
    await driver.stop(machine.id, signal="TERM", timeout=0.5)
    seen = await driver.observe(machine.id)
    assert seen is not None and seen.phase is Phase.STOPPED and seen.exit_code == 137
    async with asyncio.timeout(90):
        assert await followed == b"deaf\n"

    # Whoever kills QEMU itself is seen at once, and what it ran has no exit code of its own.
    await driver.create(machine)
    await driver.start(machine.id)
    pid = (await driver.observe(machine.id)).pid  # type: ignore[union-attr]
    assert pid is not None
    os.kill(pid, 9)
    seen = await until_stopped(driver, machine.id)
    assert seen.exit_code == 137
    assert lab.changes == [machine.id] * 2


async def collect(driver: MicrovmDriver, id: str) -> bytes:
    return b"".join([entry.data async for entry in driver.logs(id, follow=True)])


async def test_what_cannot_be_made_leaves_nothing(lab: Lab, driver: MicrovmDriver) -> None:
    with pytest.raises(Unsupported, match="container"):
        await driver.create(lab.machine("/bin/true", limits=Limits(memory=16 * MIB)))
    assert await driver.inventory() == set()
    with pytest.raises(NotFound):
        await driver.exec("inst_00000000000000000000000000", ExecSpec(command=["/bin/true"]))
    with pytest.raises(LamellaError):
        await driver.start("inst_00000000000000000000000000")
    await driver.stop("inst_00000000000000000000000000", signal="TERM", timeout=1)
    await driver.remove("inst_00000000000000000000000000")
    assert await driver.observe("inst_00000000000000000000000000") is None

    # The smallest that is allowed boots; a command that is not there is 127, as a shell would say.
    machine = lab.machine("/bin/nowhere", limits=Limits(memory=128 * MIB))
    await driver.create(machine)
    with pytest.raises(LamellaError, match="nowhere"):
        await driver.start(machine.id)
    assert (await until_stopped(driver, machine.id)).exit_code == 127
