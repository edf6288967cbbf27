"""Attach, exec and logs of a container: every byte, every code, and nobody who waits for ever."""

import asyncio
import os
import signal
from datetime import UTC, datetime

import pytest
from oci_lab import Lab, collect, md5, run

from lamella.host.compute.oci.driver import OciDriver
from lamella.host.compute.oci.layout import LOG_BOUND
from lamella.host.linux.processes import marked
from lamella.model.errors import Conflict
from lamella.model.instance import Phase
from lamella.model.stream import ExecSpec, Exit, Resize, Signal, Stdin, StdinEnd, Stdout

pytestmark = pytest.mark.root


async def sleeper(lab: Lab, driver: OciDriver) -> str:
    machine = lab.machine("sleep", "1000", environment={"OWN": "1"})
    await driver.create(machine)
    await driver.start(machine.id)
    return machine.id


async def test_a_slow_reader_gets_every_byte(lab: Lab, driver: OciDriver) -> None:
    """64 MiB through the attach socket while the log is rotated many times."""
    machine = lab.machine("seq", "1", "8600000")
    await driver.create(machine)
    stream = await driver.attach(machine.id)
    await driver.start(machine.id)
    await asyncio.sleep(0.5)
    whole = bytearray()
    pauses = 0
    while (frame := await stream.receive()) is not None:
        if isinstance(frame, Stdout):
            whole += frame.data
            if len(whole) // (8 << 20) > pauses:
                pauses += 1
                await asyncio.sleep(0.05)
    await stream.close()
    expected = "".join(f"{number}\n" for number in range(1, 8_600_001)).encode()
    assert len(whole) > 64 << 20
    assert md5(bytes(whole)) == md5(expected)
    size = (lab.home.state / "oci-logs" / machine.id).stat().st_size
    assert size <= LOG_BOUND // 2 + 8192


async def test_a_reader_that_sleeps_does_not_keep_it_from_being_stopped(lab: Lab, driver: OciDriver) -> None:
    machine = lab.machine("yes")
    await driver.create(machine)
    stream = await driver.attach(machine.id)
    await driver.start(machine.id)
    await asyncio.sleep(0.3)
    async with asyncio.timeout(90):
        await driver.stop(machine.id, signal="TERM", timeout=0.1)
    seen = await driver.observe(machine.id)
    assert seen is not None
    assert seen.phase == Phase.STOPPED
    await stream.close()


async def test_input_reaches_it_and_ends(lab: Lab, driver: OciDriver) -> None:
    machine = lab.machine("md5sum", stdin=True)
    await driver.create(machine)
    stream = await driver.attach(machine.id)
    await driver.start(machine.id)
    data = os.urandom(3 << 20)
    await stream.send(Stdin(data))
    await stream.send(StdinEnd())
    assert await collect(stream) == (0, f"{md5(data)}  -\n".encode(), b"")


async def test_an_own_terminal(lab: Lab, driver: OciDriver) -> None:
    resized = 'until [ "$(stty size)" = "41 117" ]; do sleep 0.05; done; stty size'
    machine = lab.machine("sh", "-c", f"stty size; {resized}; read x; echo got $x; tty", terminal=True, stdin=True)
    await driver.create(machine)
    stream = await driver.attach(machine.id)
    await driver.start(machine.id)
    first = await stream.receive()
    assert isinstance(first, Stdout)
    assert first.data.startswith(b"24 80")
    await stream.send(Resize(rows=41, columns=117))
    await stream.send(Stdin(b"word\n"))
    async with asyncio.timeout(90):
        code, output, _ = await collect(stream)
    assert code == 0
    assert b"41 117\r\n" in output
    assert b"got word\r\n/dev/pts/0\r\n" in output


async def test_attach_needs_something_that_lives(lab: Lab, driver: OciDriver) -> None:
    machine = lab.machine("true")
    await run(driver, machine)
    with pytest.raises(Conflict):
        await driver.attach(machine.id)


async def test_a_signal_through_the_stream(lab: Lab, driver: OciDriver) -> None:
    machine = lab.machine("sh", "-c", "trap 'exit 9' USR2; echo ready; while :; do sleep 0.05; done")
    await driver.create(machine)
    stream = await driver.attach(machine.id)
    await driver.start(machine.id)
    await stream.receive()
    await stream.send(Signal(signal.SIGUSR2))
    assert (await collect(stream))[0] == 9


async def test_exec_streams_code_and_environment(lab: Lab, driver: OciDriver) -> None:
    id = await sleeper(lab, driver)
    spec = ExecSpec(
        command=["sh", "-c", "id -un; pwd; echo $OWN$MORE $HOME; cat; echo no >&2; exit 9"],
        stdin=True,
        user="ann",
        working_directory="/tmp",
        environment={"MORE": "2"},
    )
    stream = await driver.exec(id, spec)
    await stream.send(Stdin(b"typed\n"))
    await stream.send(StdinEnd())
    assert await collect(stream) == (9, b"ann\n/tmp\n12 /home/ann\ntyped\n", b"no\n")
    assert not list((lab.home.run / "oci" / id / "exec").iterdir())


async def test_exec_carries_much_both_ways(lab: Lab, driver: OciDriver) -> None:
    id = await sleeper(lab, driver)
    stream = await driver.exec(id, ExecSpec(command=["cat"], stdin=True))
    data = os.urandom(8 << 20)

    async def feed() -> None:
        await stream.send(Stdin(data))
        await stream.send(StdinEnd())

    async with asyncio.TaskGroup() as group:
        group.create_task(feed())
        reading = group.create_task(collect(stream))
    code, output, _ = reading.result()
    assert (code, md5(output)) == (0, md5(data))


async def test_exec_on_a_terminal(lab: Lab, driver: OciDriver) -> None:
    id = await sleeper(lab, driver)
    command = ["sh", "-c", "stty size; read x; stty size; echo got $x; cat"]
    stream = await driver.exec(id, ExecSpec(command=command, terminal=True, stdin=True, rows=30, columns=100))
    first = await stream.receive()
    assert isinstance(first, Stdout)
    assert first.data.startswith(b"30 100")
    await stream.send(Resize(rows=50, columns=132))
    await stream.send(Stdin(b"word\n"))
    await stream.send(StdinEnd())
    code, output, _ = await collect(stream)
    assert code == 0
    assert b"50 132\r\ngot word\r\n" in output


async def test_exec_takes_signals_and_dies_with_its_stream(lab: Lab, driver: OciDriver) -> None:
    id = await sleeper(lab, driver)
    stream = await driver.exec(
        id, ExecSpec(command=["sh", "-c", "trap 'exit 4' HUP; echo up; while :; do sleep 0.05; done"])
    )
    await stream.receive()
    await stream.send(Signal(signal.SIGHUP))
    assert (await collect(stream))[0] == 4
    before = marked(lab.home.mark)
    stream = await driver.exec(id, ExecSpec(command=["sh", "-c", "echo up; sleep 1000"]))
    await stream.receive()
    assert marked(lab.home.mark) != before
    await stream.close()
    await stream.close()
    assert await stream.receive() is None
    assert (await driver.usage(id)).processes == 1


async def test_exec_ends_when_its_time_is_up(lab: Lab, driver: OciDriver) -> None:
    id = await sleeper(lab, driver)
    # It is given longer where it did not come to say anything.
    for seconds in (0.5, 5, 30):
        async with asyncio.timeout(90):
            stream = await driver.exec(id, ExecSpec(command=["sh", "-c", "echo before; sleep 1000"], timeout=seconds))
            code, said, errors = await collect(stream)
        assert (code, errors) == (124, b"")
        if said:
            break
    assert said == b"before\n"
    assert (await driver.usage(id)).processes == 1


async def test_exec_does_not_wait_for_what_is_left_behind(lab: Lab, driver: OciDriver) -> None:
    id = await sleeper(lab, driver)
    async with asyncio.timeout(90):
        stream = await driver.exec(id, ExecSpec(command=["sh", "-c", "sleep 1000 & echo gone"]))
        assert await collect(stream) == (0, b"gone\n", b"")


@pytest.mark.parametrize(("command", "code"), [("nope", 127), ("/etc/passwd", 126), ("/etc", 126)])
@pytest.mark.parametrize("terminal", [False, True])
async def test_exec_of_what_cannot_run(lab: Lab, driver: OciDriver, command: str, code: int, terminal: bool) -> None:
    id = await sleeper(lab, driver)
    stream = await driver.exec(id, ExecSpec(command=[command], terminal=terminal))
    last = None
    while (frame := await stream.receive()) is not None:
        last = frame
    await stream.close()
    assert isinstance(last, Exit)
    assert last.code == code
    assert last.reason


async def test_a_process_that_reads_nothing_is_no_error(lab: Lab, driver: OciDriver) -> None:
    id = await sleeper(lab, driver)
    stream = await driver.exec(id, ExecSpec(command=["true"], stdin=True))
    await stream.send(Stdin(bytes(4 << 20)))
    assert (await collect(stream))[0] == 0


async def test_a_dead_daemons_exec_is_ended_by_the_next(lab: Lab, driver: OciDriver) -> None:
    id = await sleeper(lab, driver)
    stream = await driver.exec(id, ExecSpec(command=["sh", "-c", "echo up; sleep 1000"]))
    await stream.receive()
    fresh = lab.driver()
    await fresh.open()
    assert (await collect(stream))[0] == 137
    assert (await fresh.usage(id)).processes == 1
    await fresh.close()


async def test_logs_by_line_by_time_and_as_they_come(lab: Lab, driver: OciDriver) -> None:
    machine = lab.machine("sh", "-c", "echo one; echo two >&2; sleep 0.3; echo three; sleep 0.3; printf four")
    await driver.create(machine)
    await driver.start(machine.id)
    async with asyncio.timeout(90):
        seen = [(entry.stream, entry.data) async for entry in driver.logs(machine.id, follow=True)]
    assert sorted(seen[:2]) == [("stderr", b"two\n"), ("stdout", b"one\n")]
    assert seen[2:] == [("stdout", b"three\n"), ("stdout", b"four")]
    whole = [entry async for entry in driver.logs(machine.id)]
    assert [entry.data async for entry in driver.logs(machine.id, tail=2)] == [b"three\n", b"four"]
    assert [entry.data async for entry in driver.logs(machine.id, since=whole[2].at)] == [b"three\n", b"four"]
    assert [entry async for entry in driver.logs(machine.id, since=datetime.now(UTC))] == []


async def test_following_goes_on_through_a_rotation(lab: Lab, driver: OciDriver) -> None:
    machine = lab.machine("sh", "-c", "for i in $(seq 1 60); do seq 1 20000; sleep 0.02; done; echo the end")
    await driver.create(machine)
    await driver.start(machine.id)
    last = b""
    async with asyncio.timeout(90):
        async for entry in driver.logs(machine.id, follow=True):
            last = entry.data
    assert last == b"the end\n"
