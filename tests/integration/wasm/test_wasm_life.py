"""A module's life: made, started, heard, fed, paused, ended, looked back at."""

import asyncio
import signal
import subprocess
import sys

import pytest
from wasm_lab import MIB, Lab, logged, phase, read_all, run

from lamella.host.compute.driver import Limits, Rootfs
from lamella.host.compute.wasm.driver import WasmDriver
from lamella.model.board import Directory
from lamella.model.errors import CannotRun, Conflict, Invalid, NotFound, Unsupported
from lamella.model.image import ImageConfig
from lamella.model.instance import Phase
from lamella.model.stream import ExecSpec, Signal, Stdin, StdinEnd, Stdout

pytestmark = pytest.mark.root


async def test_arguments_environment_streams_and_exit_code(lab: Lab, driver: WasmDriver) -> None:
    machine = lab.machine("hello", "42", "two words")
    code, out, errors = await run(driver, machine)
    assert code == 42
    assert out == (b"argument 0: module.wasm\nargument 1: 42\nargument 2: two words\nGREETING is good day")
    assert errors == b"to standard error\n"
    entries = [entry async for entry in driver.logs(machine.id)]
    assert b"".join(entry.data for entry in entries if entry.stream == "stdout") == out
    assert b"".join(entry.data for entry in entries if entry.stream == "stderr") == errors
    seen = await driver.observe(machine.id)
    assert seen is not None and seen.phase == Phase.STOPPED and seen.exit_code == 42
    assert seen.started_at is not None and seen.finished_at is not None and seen.started_at <= seen.finished_at
    assert machine.id in lab.changes


async def test_it_waits_for_its_start_and_every_verb_may_be_said_twice(lab: Lab, driver: WasmDriver) -> None:
    machine = lab.machine("deeds", "sleep", "100")
    assert await driver.observe(machine.id) is None
    await driver.create(machine)
    assert (await phase(driver, machine.id, Phase.STARTING)).started_at is None
    assert await logged(driver, machine.id) == b""
    await driver.create(machine)
    for _ in range(2):
        await driver.start(machine.id)
    seen = await phase(driver, machine.id, Phase.RUNNING)
    assert seen.pid is not None and seen.launched == machine.limits
    for _ in range(2):
        await driver.stop(machine.id, signal="TERM", timeout=60)
    assert (await phase(driver, machine.id, Phase.STOPPED)).exit_code == 143
    for _ in range(2):
        await driver.remove(machine.id)
    assert await driver.observe(machine.id) is None
    assert await driver.inventory() == set()


async def test_standard_input_reaches_it_and_ends(lab: Lab, driver: WasmDriver) -> None:
    machine = lab.machine("deeds", "cat", stdin=True)
    await driver.create(machine)
    stream = await driver.attach(machine.id)
    await driver.start(machine.id)
    text = b"all that is fed comes back\n" * 20_000

    async def feed() -> None:
        await stream.send(Stdin(text))
        await stream.send(StdinEnd())

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(feed())
        read = tasks.create_task(read_all(stream))
    assert read.result() == (5, text, b"")
    await stream.close()


async def test_without_standard_input_it_reads_the_end_at_once(lab: Lab, driver: WasmDriver) -> None:
    assert (await run(driver, lab.machine("deeds", "cat")))[0] == 5


async def test_a_second_run_of_the_same_instance_keeps_the_log_of_the_first(lab: Lab, driver: WasmDriver) -> None:
    machine = lab.machine("hello", "1")
    for _ in range(2):
        assert (await run(driver, machine))[0] == 1
    assert (await logged(driver, machine.id)).count(b"GREETING is good day") == 2


async def test_a_follower_gets_everything_until_the_end(lab: Lab, driver: WasmDriver) -> None:
    machine = lab.machine("deeds", "ticks", "5")
    await driver.create(machine)
    follower = asyncio.create_task(_follow(driver, machine.id))
    await driver.start(machine.id)
    async with asyncio.timeout(90):
        assert await follower == b"".join(b"tick %d\n" % number for number in range(5))


async def _follow(driver: WasmDriver, id: str) -> bytes:
    return b"".join([entry.data async for entry in driver.logs(id, follow=True)])


async def test_paused_it_stands_still_and_goes_on(lab: Lab, driver: WasmDriver) -> None:
    machine = lab.machine("deeds", "spin")
    await driver.create(machine)
    with pytest.raises(Conflict):
        await driver.pause(machine.id)
    await driver.start(machine.id)
    await driver.pause(machine.id)
    await phase(driver, machine.id, Phase.PAUSED)
    before = (await driver.usage(machine.id)).cpu_seconds
    await asyncio.sleep(0.3)
    assert (await driver.usage(machine.id)).cpu_seconds == before
    with pytest.raises(Conflict):
        await driver.kill(machine.id, signal.SIGTERM)
    await driver.resume(machine.id)
    await phase(driver, machine.id, Phase.RUNNING)
    await driver.pause(machine.id)
    await driver.stop(machine.id, signal="TERM", timeout=60)
    assert (await phase(driver, machine.id, Phase.STOPPED)).exit_code == 137


async def test_signals_end_it_or_mean_nothing(lab: Lab, driver: WasmDriver) -> None:
    machine = lab.machine("deeds", "spin")
    await driver.create(machine)
    stream = await driver.attach(machine.id)
    await driver.start(machine.id)
    said = b""
    while not said.endswith(b"\n"):
        frame = await stream.receive()
        assert isinstance(frame, Stdout)
        said += frame.data
    await driver.kill(machine.id, signal.SIGWINCH)
    with pytest.raises(Unsupported, match="pause"):
        await driver.kill(machine.id, signal.SIGSTOP)
    assert (await phase(driver, machine.id, Phase.RUNNING)).exit_code is None
    await stream.send(Signal(int(signal.SIGINT)))
    code, out, errors = await read_all(stream)
    assert (code, said + out) == (130, b"spinning\n") and b"interrupted by signal 2" in errors
    await stream.close()


async def test_cpu_is_changed_while_it_runs_and_memory_is_not(lab: Lab, driver: WasmDriver) -> None:
    machine = lab.machine("deeds", "spin", limits=Limits(cpu=200, memory=64 * MIB, pids=10))
    await driver.create(machine)
    await driver.start(machine.id)
    await driver.update(machine.id, Limits(cpu=100, memory=64 * MIB, pids=10))
    found = {one.name: one.value for one in await driver.mechanisms(machine.id)}
    assert found["limit.cpu"] == "0.1 cores" and found["limit.memory"] == "64MiB"
    with pytest.raises(Unsupported, match="restart"):
        await driver.update(machine.id, Limits(cpu=100, memory=128 * MIB, pids=10))
    usage = await driver.usage(machine.id)
    assert usage.memory is not None and 0 < usage.memory < 64 * MIB and usage.memory_limit == 64 * MIB


async def test_what_there_is_none_of_is_said(lab: Lab, driver: WasmDriver) -> None:
    machine = lab.machine("deeds", "sleep", "100")
    await driver.create(machine)
    with pytest.raises(Unsupported, match="one module"):
        await driver.exec(machine.id, ExecSpec(command=["sh"]))
    for verb in (driver.stat, driver.list_directory, driver.make_directory):
        with pytest.raises(Unsupported, match="no files"):
            await verb(machine.id, "/")
    with pytest.raises(Unsupported, match="no terminal"):
        await driver.create(lab.machine("hello", terminal=True))
    with pytest.raises(NotFound):
        await driver.start("inst_unknown")
    with pytest.raises(Invalid, match="two directories"):
        one = Directory(source="/tmp", target="/data")
        await driver.create(lab.machine("hello", directories=[one, one]))


async def test_what_is_no_module_or_asks_for_more_than_wasi_is_refused(lab: Lab, driver: WasmDriver) -> None:
    text = lab.home.path / "text.wasm"
    text.write_bytes(b"#!/bin/sh\n")
    with pytest.raises(CannotRun, match="no WebAssembly module") as caught:
        await driver.create(lab.machine(text))
    assert caught.value.exit_code == 126
    torn = lab.home.path / "torn.wasm"
    torn.write_bytes((lab.built / "hello.wasm").read_bytes()[:5000])
    with pytest.raises(CannotRun, match="not a module"):
        await driver.create(lab.machine(torn))
    # (import "env" "secret" (func)), and a type for it.
    asks = lab.home.path / "asks.wasm"
    asks.write_bytes(b"\0asm\1\0\0\0\x01\x04\x01\x60\0\0\x02\x0e\x01\x03env\x06secret\0\0")
    with pytest.raises(CannotRun, match="env::secret"):
        await driver.create(lab.machine(asks))
    empty = lab.home.path / "library.wasm"
    empty.write_bytes(b"\0asm\1\0\0\0")
    code, _, errors = await run(driver, lab.machine(empty))
    assert code == 127 and b"_start" in errors
    assert not [id for id in await driver.inventory() if (await driver.observe(id)).phase != Phase.STOPPED]  # type: ignore[union-attr]


async def test_a_module_in_layers_is_found_as_they_lie_upon_each_other(lab: Lab, driver: WasmDriver) -> None:
    lower, upper = lab.home.path / "lower", lab.home.path / "upper"
    (lower / "bin").mkdir(parents=True)
    upper.mkdir()
    (lower / "bin" / "app.wasm").write_bytes((lab.built / "hello.wasm").read_bytes())
    (upper / "app").symlink_to("/etc/passwd")
    rootfs = Rootfs(digest="sha256:" + "1" * 64, layers=[upper, lower], config=ImageConfig(), os="wasi")
    code, out, _ = await run(driver, lab.machine("hello", "/bin/app.wasm", "9", rootfs=rootfs))
    assert code == 9 and out.startswith(b"argument 0: /bin/app.wasm\nargument 1: 9\n")
    with pytest.raises(CannotRun, match="no file"):
        await driver.create(lab.machine("hello", "/app", rootfs=rootfs))


async def test_components_run_and_their_end_is_their_exit_code(lab: Lab, driver: WasmDriver) -> None:
    """Both are as small as a command of WASI preview 2 can be: ``run`` says that it went well, or that it did not."""
    for value, wanted in ((0, 0), (1, 1)):
        path = lab.home.path / f"component{value}.wasm"
        path.write_bytes(component(value))
        code, _, errors = await run(driver, lab.machine(path))
        assert (code, errors) == (wanted, b"")


def component(value: int) -> bytes:
    """Made by wasmtime's own text format, in a process of its own."""
    text = f"""(component
      (core module $m (func (export "run") (result i32) i32.const {value}))
      (core instance $i (instantiate $m))
      (func $run (result (result)) (canon lift (core func $i "run")))
      (instance $command (export "run" (func $run)))
      (export "wasi:cli/run@0.2.0" (instance $command)))"""
    program = "import sys, wasmtime; sys.stdout.buffer.write(wasmtime.wat2wasm(sys.argv[1]))"
    return subprocess.run([sys.executable, "-c", program, text], check=True, capture_output=True).stdout
