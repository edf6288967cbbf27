"""A serial line that many people look at: everybody sees all of it, and a slow one is let go of, never waited for."""

import asyncio
from pathlib import Path

import pytest

from lamella.host.compute.qemu.log import Log
from lamella.host.compute.vm.console import MOST_UNREAD, Console
from lamella.model.errors import Unavailable, Unsupported
from lamella.model.stream import Exit, Signal, Stdin, Stdout


@pytest.fixture
def log(tmp_path: Path) -> Log:
    log = Log(tmp_path / "state")
    (tmp_path / "state").mkdir()
    log.open()
    log.begin()
    return log


async def test_everybody_sees_what_comes_and_may_type(tmp_path: Path, log: Log) -> None:
    typed = asyncio.Queue[bytes]()
    guests: list[asyncio.StreamWriter] = []

    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        guests.append(writer)
        while data := await reader.read(100):
            typed.put_nowait(data)

    server = await asyncio.start_unix_server(guest, tmp_path / "console")
    console = Console(log)
    early = console.attach(lambda: 3)
    with pytest.raises(Unavailable):
        await early.send(Stdin(b"too early"))
    running = asyncio.create_task(console.run(tmp_path / "console"))
    await console.ready()
    await early.send(Stdin(b"root\n"))
    assert await typed.get() == b"root\n"
    with pytest.raises(Unsupported):
        await early.send(Signal(2))
    guests[0].write(b"login: ")
    assert await early.receive() == Stdout(b"login: ")
    late = console.attach(lambda: 3)
    guests[0].write(b"more")
    assert await early.receive() == await late.receive() == Stdout(b"more")
    await late.close()
    assert await late.receive() is None
    guests[0].write_eof()
    await running
    console.finish()
    assert [await early.receive(), await early.receive()] == [Exit(3), None]
    server.close()
    assert b"".join([entry.data async for entry in log.read(follow=False, tail=None, since=None)]) == b"login: more"
    log.close()


async def test_who_does_not_read_is_let_go_of(tmp_path: Path, log: Log) -> None:
    console = Console(log)
    slow, quick = console.attach(lambda: None), console.attach(lambda: None)
    piece = b"x" * 65536
    for _ in range(MOST_UNREAD // len(piece) + 1):
        slow.put(piece)
        quick.put(piece)
        assert await quick.receive() == Stdout(piece)
    assert await slow.receive() is None
    log.close()
