"""The agent as the init of a real microVM under QEMU: set-up, the instance's own process, its log, and its end."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator

import pytest
from guest_machine import SETUP, Machine
from guest_talk import Said, hear, run

from lamella.host.compute.guest.client import GuestClient
from lamella.host.compute.guest.setup import GuestPhase, GuestProcess, GuestState
from lamella.model.errors import Conflict, Invalid
from lamella.model.stream import Exit, Resize, Stderr, Stdin, StdinEnd, Stdout

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]


def shell(script: str, **options: object) -> GuestProcess:
    return GuestProcess(command=["sh", "-c", script], **options)  # type: ignore[arg-type]


async def until_off(machine: Machine, client: GuestClient) -> None:
    await client.acknowledge_exit()
    async with asyncio.timeout(90):
        await client.closed.wait()
        assert await asyncio.to_thread(machine.qemu.wait) == 0
    await client.close()


async def test_a_guest_becomes_the_instance(machine: Machine) -> None:
    client = await machine.connect()
    assert client.hello.mode == "init"
    assert (await client.state()).phase is GuestPhase.WAITING
    with pytest.raises(Conflict, match="not configured"):
        await client.start(shell("true"))
    await client.close()
    client = await machine.configured()
    with pytest.raises(Conflict, match="before"):
        await client.configure(SETUP)
    state = await client.start(
        shell("exec sleep 600", user="ann:wheel", working_directory="/made/for/it", environment={"A": "b"})
    )
    assert state.phase is GuestPhase.RUNNING

    said = await run(
        client, "sh", "-c", "hostname; id -u; id -g; pwd; echo $A; cat /etc/resolv.conf; tail -n2 /etc/hosts"
    )
    assert said.out.decode().split("\n") == [
        "box",
        "1000",
        "10",
        "/made/for/it",
        "b",
        "nameserver 10.0.2.3",
        "10.0.2.15\tbox",
        "fd02::15\tbox",
        "",
    ]
    said = await run(
        client,
        "sh",
        "-c",
        "ip addr show eth0; ip route; ip -6 route; cat /sys/fs/cgroup/instance/pids.max; df -T / | tail -n1",
        user="root",
    )
    words = said.out.decode()
    assert "inet 10.0.2.15/24" in words
    assert "mtu 1400" in words
    assert "02:00:00:00:00:07" in words
    assert "default via 10.0.2.2" in words
    assert "inet6 fd02::15/64 scope global" in words and "tentative" not in words
    assert "default via fd02::2 dev eth0" in words
    assert "\n100\n" in words
    assert "overlay" in words
    assert (await run(client, "id", "-G", user="ann")).out == b"1001 10\n"
    clock = int((await run(client, "date", "+%s")).out)
    assert abs(clock - (state.started_at.timestamp() if state.started_at else 0)) < 60
    forks = await run(client, "sh", "-c", "for i in $(seq 200); do sleep 60 & done; echo all", timeout=90.0)
    assert forks.out == b"", "the bound on processes holds"
    usage = await client.usage()
    assert usage.processes
    assert usage.memory
    assert usage.disk_used is not None
    assert usage.cpu_seconds

    await files(client)
    await freezing(client)
    await client.reseed(os.urandom(64))
    await client.set_hostname("other")
    assert (await run(client, "cat", "/etc/hostname")).out == b"other\n"

    final = await client.shutdown(15, 0.5)
    assert (final.phase, final.exit_code) == (GuestPhase.EXITED, 143)
    await until_off(machine, client)


async def files(client: GuestClient) -> None:
    blob = os.urandom(3 << 20)

    async def data() -> AsyncIterator[bytes]:
        yield blob

    await client.make_directory("/var/lib/x", uid=1000, gid=1001)
    await client.write_file("/var/lib/x/blob", data(), mode=0o600, uid=1000, gid=1001)
    assert b"".join([piece async for piece in client.read_file("/var/lib/x/blob")]) == blob
    info = await client.stat("/var/lib/x/blob")
    assert (info.size, info.mode, info.uid, info.gid) == (3 << 20, 0o600, 1000, 1001)
    said = await run(client, "sha256sum", "/var/lib/x/blob")
    assert said.out.split()[0].decode() == hashlib.sha256(blob).hexdigest()
    assert [entry.path for entry in await client.list_directory("/var/lib/x")] == ["/var/lib/x/blob"]


async def freezing(client: GuestClient) -> None:
    async def data() -> AsyncIterator[bytes]:
        yield b"x"

    loop = asyncio.get_running_loop()
    await client.freeze(60.0)
    with pytest.raises(Conflict, match="frozen"):
        await client.write_file("/frozen", data())
    began = loop.time()
    await client.freeze(2.0)  # asked again, it moves the deadline
    touched = await run(client, "touch", "/held", user="root")
    assert touched.code == 0
    assert loop.time() - began > 0.8, "the write waited for the deadline"
    await client.freeze(60.0)
    await client.thaw()
    assert (await run(client, "touch", "/thawed", user="root")).code == 0


async def test_nothing_that_the_instance_says_to_who_listens_is_lost(machine: Machine) -> None:
    client = await machine.configured()
    stream = await client.attach()
    await client.start(
        shell(
            "read line; dd if=/dev/zero bs=64k count=800 2>/dev/null | tr '\\0' x; echo $line >&2; exit 3", stdin=True
        )
    )
    await stream.send(Stdin(b"the end\n"))
    await stream.send(StdinEnd())
    digest, size, rest = hashlib.sha256(), 0, Said()
    while (frame := await stream.receive()) is not None:
        match frame:
            case Stdout():
                digest.update(frame.data)
                size += len(frame.data)
                if size < 2 << 20:
                    await asyncio.sleep(0.01)  # a reader that is slower than the writer
            case Stderr():
                rest.err += frame.data
            case Exit():
                rest.code = frame.code
    assert size == 50 << 20
    assert digest.hexdigest() == hashlib.sha256(b"x" * (50 << 20)).hexdigest()
    assert (rest.err, rest.code) == (b"the end\n", 3)
    state = await client.wait_exit()
    assert state.log_end == (50 << 20) + 8
    assert state.log_end - state.log_start <= 1 << 20, "the guest keeps a bounded tail"
    await until_off(machine, client)


async def test_exit_code_and_log_wait_for_a_host_that_comes_back(machine: Machine) -> None:
    client = await machine.configured()
    await client.start(shell("echo one; read x; echo two; exit 42", stdin=True))
    offset = await log_until(client, b"one\n")
    await client.acknowledge_logs(offset)
    attached = await client.attach()
    with pytest.raises(Conflict, match="not ended"):
        await client.acknowledge_exit()
    await attached.send(Stdin(b"go\n"))
    await client.state()
    await client.close()
    assert (await hear(attached)).out in (b"", b"two\n")  # what had come by then, and an end

    await asyncio.sleep(0.5)
    client = await machine.connect()
    state = await client.wait_exit()
    assert (state.phase, state.exit_code, state.log_acknowledged) == (GuestPhase.EXITED, 42, 4)
    pieces = [(at, entry.data) async for at, entry in client.logs(state.log_acknowledged)]
    assert pieces == [(4, b"two\n")]
    late = await client.attach()
    assert (await hear(late)).code == 42
    await until_off(machine, client)


async def log_until(client: GuestClient, text: bytes) -> int:
    """Read the log until it holds *text*; returns the offset after it."""
    seen = b""
    async for at, entry in client.logs():
        seen += entry.data
        if text in seen:
            return at + len(entry.data)
    raise AssertionError(seen)


async def test_without_a_host_the_log_forgets_its_oldest_and_counts_it(machine: Machine) -> None:
    client = await machine.configured()
    await client.start(
        shell("i=0; while [ $i -lt 40 ]; do dd if=/dev/zero bs=64k count=1 2>/dev/null; i=$((i+1)); done; echo end")
    )
    await client.close()
    client = await machine.connect()
    state: GuestState = await client.wait_exit()
    assert state.log_end == 40 * 65536 + 4
    pieces = [(at, entry.data) async for at, entry in client.logs()]
    assert pieces[0][0] == state.log_start > 0
    assert sum(len(data) for _, data in pieces) == state.log_end - state.log_start
    assert pieces[-1][1].endswith(b"end\n")
    await until_off(machine, client)


async def test_a_terminal_of_the_instance_is_resized_and_interrupted(machine: Machine) -> None:
    client = await machine.configured()
    stream = await client.attach()
    await client.start(
        shell("trap 'stty size; exit 6' WINCH; stty size; while :; do sleep 0.05; done", terminal=True, stdin=True)
    )
    first = await stream.receive()
    assert isinstance(first, Stdout)
    assert first.data.startswith(b"24 80")
    await stream.send(Resize(50, 132))
    said = await hear(stream)
    assert b"50 132" in said.out
    assert said.code == 6
    await until_off(machine, client)


async def test_a_command_that_cannot_run_ends_with_its_reason(machine: Machine) -> None:
    client = await machine.configured()
    with pytest.raises(Invalid, match="no command nothing"):
        await client.start(GuestProcess(command=["nothing"]))
    state = await client.state()
    assert (state.phase, state.exit_code) == (GuestPhase.EXITED, 127)
    assert "nothing" in state.reason
    await until_off(machine, client)
