"""Hostile modules: what each tries, and what it gets."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from wasm_lab import MIB, Lab, logged, phase, read_all, run

from lamella.host.compute.driver import Limits
from lamella.host.compute.wasm.driver import WasmDriver
from lamella.model.board import Directory
from lamella.model.errors import CannotRun, Invalid
from lamella.model.instance import Phase

pytestmark = pytest.mark.root

LIMITS = Limits(cpu=1000, memory=32 * MIB, pids=64)


@pytest.fixture
def data(lab: Lab) -> Path:
    """A directory of somebody's, with a secret beside it, links that lead there, and a file that its owner alone may read."""
    directory = lab.home.path / "data"
    (directory / "sub").mkdir(parents=True)
    (directory / "note").write_text("a note")
    (directory / "note").chmod(0o600)
    (directory / "foreign").write_text("another user's")
    (directory / "foreign").chmod(0o600)
    (lab.home.path / "secret").write_text("not for modules")
    (directory / "up").symlink_to("../secret")
    (directory / "absolute").symlink_to("/etc/passwd")
    (directory / "parent").symlink_to("..")
    for path in (directory, directory / "sub", directory / "note"):
        os.chown(path, 5001, 5002)
    return directory


async def test_it_is_confined_by_everything_that_is_promised(lab: Lab, driver: WasmDriver, data: Path) -> None:
    directories = [
        Directory(source=str(data), target="/data"),
        Directory(source=str(data / "sub"), target="/sub", read_only=True),
    ]
    machine = lab.machine("deeds", "sleep", "100", directories=directories, fuel=10**9, deadline=100.0)
    await driver.create(machine)
    await driver.start(machine.id)
    found = {one.name: one for one in await driver.mechanisms(machine.id)}
    assert all(one.in_force for one in found.values()), [one for one in found.values() if not one.in_force]
    assert {
        "user",
        "capabilities",
        "no-new-privileges",
        "seccomp",
        "namespaces",
        "root",
        "landlock",
        "control group",
    } <= set(found)
    assert {"limit.cpu", "limit.memory", "limit.pids", "fuel", "deadline"} <= set(found)
    assert found["root"].value == "a room that shows /d0, /d1, /module; /d0 may be written"
    seen = await driver.observe(machine.id)
    assert seen is not None and seen.pid is not None
    status = Path(f"/proc/{seen.pid}/status").read_text()
    assert f"Uid:\t{machine.id_base}\t{machine.id_base}" in status and "Groups:\t \n" in status
    maps = Path(f"/proc/{seen.pid}/maps").read_text()
    assert "libpython" not in maps and "/bin/python" not in maps
    # It holds its streams and what the library opened, and nothing of the daemon's.
    held = {str(path.readlink()) for path in Path(f"/proc/{seen.pid}/fd").iterdir()}
    assert not [name for name in held if name.startswith("/") and name not in ("/d0", "/d1", "/module")], held


async def test_a_directory_is_used_as_its_owner_and_nothing_beside_it(lab: Lab, driver: WasmDriver, data: Path) -> None:
    directories = [Directory(source=str(data), target="/data")]
    code, out, _ = await run(driver, lab.machine("deeds", "read", "/data/note", directories=directories))
    assert (code, out) == (0, b"/data/note: read a note\n")
    code, out, _ = await run(driver, lab.machine("deeds", "write", "/data/sub/new", directories=directories))
    assert (code, out) == (0, b"")
    made = (data / "sub" / "new").stat()
    assert (made.st_uid, made.st_gid) == (5001, 5002)
    assert (data / "sub" / "new").read_text() == "written inside\n"
    paths = [
        "/etc/passwd", "/data/../secret", "/data/up", "/data/absolute", "/data/parent/secret", "../secret", "/proc/self/status",
        "/data/sub/../../secret", "/module", "/data/foreign",
    ]  # fmt: skip
    code, out, _ = await run(driver, lab.machine("deeds", "read", *paths, directories=directories))
    assert code == 1 and b"read" not in out, out
    assert out.count(b"\n") == len(paths)


async def test_links_made_inside_lead_nowhere(lab: Lab, driver: WasmDriver, data: Path) -> None:
    directories = [Directory(source=str(data), target="/data")]
    for number, target in enumerate(("/etc/passwd", "../../../../../../etc/passwd", "../secret")):
        code, out, _ = await run(
            driver, lab.machine("deeds", "link", target, f"/data/l{number}", directories=directories)
        )
        assert code == 1 and b"read" not in out, out


async def test_a_read_only_directory_is_not_written(lab: Lab, driver: WasmDriver, data: Path) -> None:
    directories = [Directory(source=str(data), target="/data", read_only=True)]
    code, out, _ = await run(driver, lab.machine("deeds", "write", "/data/new", directories=directories))
    assert code == 1 and not (data / "new").exists(), out
    assert (await run(driver, lab.machine("deeds", "read", "/data/note", directories=directories)))[0] == 0
    with pytest.raises(Invalid, match="cannot be used"):
        await driver.create(lab.machine("hello", directories=[Directory(source="/nowhere/at/all", target="/data")]))


async def test_a_loop_without_an_end_is_ended_by_a_stop(lab: Lab, driver: WasmDriver) -> None:
    machine = lab.machine("deeds", "spin", limits=Limits())
    await driver.create(machine)
    await driver.start(machine.id)
    await asyncio.sleep(0.1)
    began = time.monotonic()
    await driver.stop(machine.id, signal="TERM", timeout=100)
    assert time.monotonic() - began < 90
    assert (await phase(driver, machine.id, Phase.STOPPED)).exit_code == 143


@pytest.mark.parametrize("deed", ["spin", "sleep"])
async def test_a_deadline_ends_what_computes_and_what_waits(lab: Lab, driver: WasmDriver, deed: str) -> None:
    began = time.monotonic()
    code, _, errors = await run(driver, lab.machine("deeds", deed, "100", deadline=0.3))
    assert code == 124 and time.monotonic() - began < 90
    assert b"deadline of 0.3 s" in errors


async def test_fuel_ends_it(lab: Lab, driver: WasmDriver) -> None:
    code, _, errors = await run(driver, lab.machine("deeds", "spin", fuel=10_000_000))
    assert code == 134 and b"fuel" in errors
    assert (await run(driver, lab.machine("hello", "4", fuel=10_000_000)))[0] == 4


async def test_memory_ends_at_the_limit_and_the_module_is_told(lab: Lab, driver: WasmDriver) -> None:
    code, out, _ = await run(driver, lab.machine("deeds", "bomb", limits=LIMITS))
    assert code == 3
    got = int(out.split()[0])
    assert 24 <= got <= 32


async def test_the_stack_ends_with_a_trap(lab: Lab, driver: WasmDriver) -> None:
    for deed in ("dive", "trap", "abort"):
        machine = lab.machine("deeds", deed)
        code, _, errors = await run(driver, machine)
        assert code == 134 and errors.startswith(b"lamella: "), errors
        assert (await phase(driver, machine.id, Phase.STOPPED)).exit_code == 134


async def test_exit_codes_pass_through(lab: Lab, driver: WasmDriver) -> None:
    for code in (0, 1, 125, 126, 255):
        assert (await run(driver, lab.machine("deeds", "exit", str(code))))[0] == code


async def test_a_flood_fills_neither_disk_nor_memory(lab: Lab, driver: WasmDriver) -> None:
    """80 MiB of output that nobody reads."""
    machine = lab.machine("deeds", "flood", "20000")
    await driver.create(machine)
    await driver.start(machine.id)
    await phase(driver, machine.id, Phase.STOPPED)
    kept = sum(path.stat().st_size for path in (lab.home.state / "wasm" / machine.id).glob("log.*"))
    assert 4 * MIB < kept <= 8 * MIB
    text = await logged(driver, machine.id)
    assert set(text) == {ord("x"), ord("\n")} and len(text) > 4 * MIB - 4096 * 17


async def test_who_does_not_read_holds_the_module_up_and_nothing_else(lab: Lab, driver: WasmDriver) -> None:
    machine = lab.machine("deeds", "flood", "20000")
    await driver.create(machine)
    stream = await driver.attach(machine.id)
    await driver.start(machine.id)
    await asyncio.sleep(0.5)
    assert (await phase(driver, machine.id, Phase.RUNNING)).exit_code is None
    process = driver._sessions[machine.id].process  # pyright: ignore[reportPrivateUsage]
    assert process is not None
    resident = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * 4096
    assert resident < 32 * MIB
    code, out, _ = await read_all(stream)
    assert code == 0 and len(out) == 20000 * 4096
    await stream.close()


async def test_one_that_dies_takes_no_other_with_it(lab: Lab, driver: WasmDriver) -> None:
    first, second = lab.machine("deeds", "spin"), lab.machine("deeds", "ticks", "10")
    for machine in (first, second):
        await driver.create(machine)
        await driver.start(machine.id)
    seen = await phase(driver, first.id, Phase.RUNNING)
    assert seen.pid is not None
    os.kill(seen.pid, signal.SIGKILL)
    assert (await phase(driver, first.id, Phase.STOPPED)).exit_code == 137
    assert (await phase(driver, second.id, Phase.STOPPED)).exit_code == 6


async def test_it_cannot_make_a_thread_or_a_process(lab: Lab, driver: WasmDriver) -> None:
    """Threads of WASI are an import that nobody answers, and shared memory is not taken; processes WASI never had."""
    spawns = b"\0asm\1\0\0\0" + b"\x01\x06\x01\x60\x01\x7f\x01\x7f" + b"\x02\x15\x01\x04wasi\x0cthread-spawn\0\0"
    shares = b"\0asm\1\0\0\0" + b"\x05\x04\x01\x03\x01\x02"
    for number, (module, word) in enumerate(((spawns, "thread-spawn"), (shares, "threads"))):
        path = lab.home.path / f"threads{number}.wasm"
        path.write_bytes(module)
        with pytest.raises(CannotRun, match=word):
            await driver.create(lab.machine(path))


async def test_a_group_that_is_full_kills_that_worker_alone(lab: Lab, driver: WasmDriver) -> None:
    """A module whose own bound is higher than what its group may have: the kernel ends it, and it is told as killed."""
    machine = lab.machine("deeds", "bomb", limits=LIMITS)
    await driver.create(machine)
    group = driver._group(machine.id)  # pyright: ignore[reportPrivateUsage]
    group.update(Limits(cpu=1000, memory=16 * MIB, pids=32))
    await driver.start(machine.id)
    assert (await phase(driver, machine.id, Phase.STOPPED)).exit_code == 137
