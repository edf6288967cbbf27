"""What tests say to a process in a guest, and how they hear it out."""

import asyncio

import msgspec

from lamella.host.compute.guest.client import GuestClient
from lamella.model.stream import ExecSpec, Exit, ProcessStream, Stderr, Stdin, StdinEnd, Stdout


class Said(msgspec.Struct):
    """All that a process wrote, and how it ended."""

    out: bytes = b""
    err: bytes = b""
    code: int | None = None
    reason: str = ""


async def hear(stream: ProcessStream) -> Said:
    out, err, said = bytearray(), bytearray(), Said()
    while (frame := await stream.receive()) is not None:
        match frame:
            case Stdout():
                out += frame.data
            case Stderr():
                err += frame.data
            case Exit():
                said.code, said.reason = frame.code, frame.reason
    said.out, said.err = bytes(out), bytes(err)
    return said


async def run(client: GuestClient, *command: str, stdin: bytes | None = None, **options: object) -> Said:
    """Run *command* to its end, *stdin* fed to it."""
    values = {"command": list(command), "stdin": stdin is not None, **options}
    stream = await client.exec(msgspec.convert(values, ExecSpec))

    async def feed() -> None:
        if stdin is not None:
            await stream.send(Stdin(stdin))
            await stream.send(StdinEnd())

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(feed())
        heard = tasks.create_task(hear(stream))
    return heard.result()
