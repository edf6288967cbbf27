"""The agent's end of the wire: served by every host, called by control alone."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, cast

from lamella.model.assignment import HostAgent
from lamella.model.stream import ProcessStream
from lamella.wire import listener, verbs
from lamella.wire.certificates import Bundle
from lamella.wire.pump import converse, encode
from lamella.wire.service import Call, Ends, Service, Stream, call, receive_chunks, send_items, stream

PIECE = 1 << 20


async def serve_agent(
    agent: HostAgent, sock: socket.socket, bundle: Bundle, *, ready: asyncio.Event | None = None
) -> None:
    """Serve *agent* on the bound *sock* (``listener.bind_tcp``) until cancelled, to holders of a control's certificate."""
    service = Service("control", calls=_calls(agent), streams=_streams(agent))
    await listener.serve(service, sock, tls=bundle.server_context(), ready=ready)


def _calls(agent: HostAgent) -> dict[str, Call]:
    async def wake(_: str, asked: verbs.Wake) -> Any:
        await agent.wake(asked.revision)
        return verbs.Nothing()

    async def kill(_: str, asked: verbs.Kill) -> Any:
        await agent.kill(asked.id, asked.signal)
        return verbs.Nothing()

    async def stat(_: str, asked: verbs.AtPath) -> Any:
        return await agent.stat(asked.id, asked.path)

    async def list_directory(_: str, asked: verbs.AtPath) -> Any:
        return await agent.list_directory(asked.id, asked.path)

    async def make_directory(_: str, asked: verbs.MakeAtPath) -> Any:
        await agent.make_directory(asked.id, asked.path, mode=asked.mode, uid=asked.uid, gid=asked.gid)
        return verbs.Nothing()

    async def usage(_: str, asked: verbs.AskUsage) -> Any:
        return await agent.usage(asked.ids)

    async def mechanisms(_: str, asked: verbs.AskMechanisms) -> Any:
        return await agent.mechanisms(asked.id)

    async def judgements(_: str, asked: verbs.AskJudgements) -> Any:
        return await agent.judgements(asked.ids)

    async def reset(_: str, asked: verbs.Machine) -> Any:
        await agent.reset(asked.id)
        return verbs.Nothing()

    async def screenshot(_: str, asked: verbs.Machine) -> Any:
        return await agent.screenshot(asked.id)

    async def input(_: str, asked: verbs.Hands) -> Any:
        await agent.input(asked.id, asked.input)
        return verbs.Nothing()

    async def desktop(_: str, asked: verbs.Screen) -> Any:
        return await agent.desktop(asked.id, asked.kind)

    async def collect_images(_: str, asked: verbs.CollectImages) -> Any:
        return await agent.collect_images(asked.keep)

    async def facts(_: str, __: verbs.Nothing) -> Any:
        return await agent.facts()

    return {
        "wake": call(verbs.Wake, wake),
        "kill": call(verbs.Kill, kill),
        "stat": call(verbs.AtPath, stat),
        "list_directory": call(verbs.AtPath, list_directory),
        "make_directory": call(verbs.MakeAtPath, make_directory),
        "usage": call(verbs.AskUsage, usage),
        "mechanisms": call(verbs.AskMechanisms, mechanisms),
        "judgements": call(verbs.AskJudgements, judgements),
        "reset": call(verbs.Machine, reset),
        "screenshot": call(verbs.Machine, screenshot),
        "input": call(verbs.Hands, input),
        "desktop": call(verbs.Screen, desktop),
        "collect_images": call(verbs.CollectImages, collect_images),
        "facts": call(verbs.Nothing, facts),
    }


def _streams(agent: HostAgent) -> dict[str, Stream]:
    async def exec(asked: verbs.Exec, ends: Ends) -> None:
        await _process(ends, await agent.exec(asked.id, asked.spec))

    async def attach(asked: verbs.Attach, ends: Ends) -> None:
        await _process(ends, await agent.attach(asked.id, start=asked.start))

    async def logs(asked: verbs.Logs, ends: Ends) -> None:
        entries = agent.logs(asked.id, follow=asked.follow, tail=asked.tail, since=asked.since)
        await send_items(ends, _encoded(entries))

    async def read_file(asked: verbs.AtPath, ends: Ends) -> None:
        await send_items(ends, _pieces(agent.read_file(asked.id, asked.path)))

    async def write_file(asked: verbs.MakeAtPath, ends: Ends) -> None:
        chunks = receive_chunks(ends.receive)
        await agent.write_file(asked.id, asked.path, chunks, mode=asked.mode, uid=asked.uid, gid=asked.gid)
        await ends.send({"type": "websocket.close", "code": 1000, "reason": ""})

    async def screen(asked: verbs.Screen, ends: Ends) -> None:
        await _process(ends, await agent.screen(asked.id, asked.kind))

    async def dump(asked: verbs.Dump, ends: Ends) -> None:
        await send_items(ends, _pieces(agent.dump(asked.id, crash=asked.crash)))

    async def capture(asked: verbs.Capture, ends: Ends) -> None:
        await send_items(ends, _pieces(agent.capture(asked.id, asked.wish)))

    async def export_image(asked: verbs.ExportImage, ends: Ends) -> None:
        await send_items(ends, _pieces(agent.export_image(asked.digest, asked.format)))

    async def image(asked: verbs.BringImage, ends: Ends) -> None:
        await send_items(ends, _encoded(agent.image(asked.request)))

    async def storage(asked: verbs.Storage, ends: Ends) -> None:
        await send_items(ends, _encoded(agent.storage(asked.request)))

    async def export_volume(asked: verbs.ExportVolume, ends: Ends) -> None:
        await send_items(ends, _pieces(agent.export_volume(asked.volume, asked.snapshot, asked.format)))

    return {
        "exec": stream(verbs.Exec, exec),
        "attach": stream(verbs.Attach, attach),
        "logs": stream(verbs.Logs, logs),
        "read_file": stream(verbs.AtPath, read_file),
        "write_file": stream(verbs.MakeAtPath, write_file),
        "screen": stream(verbs.Screen, screen),
        "dump": stream(verbs.Dump, dump),
        "capture": stream(verbs.Capture, capture),
        "export_image": stream(verbs.ExportImage, export_image),
        "image": stream(verbs.BringImage, image),
        "storage": stream(verbs.Storage, storage),
        "export_volume": stream(verbs.ExportVolume, export_volume),
    }


async def _process(ends: Ends, process: ProcessStream) -> None:
    try:
        await ends.send({"type": "websocket.send", "bytes": b""})
    except BaseException:
        await process.close()
        raise
    await converse(ends.receive, ends.send, process, ends.gone)


async def _pieces(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """*chunks*, none of them larger than a message may be."""
    async with contextlib.aclosing(cast("AsyncGenerator[bytes, None]", chunks)):
        async for chunk in chunks:
            for start in range(0, len(chunk), PIECE):
                yield chunk[start : start + PIECE]


async def _encoded(items: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    # Ending the reader of a generator does not end the one below it by itself.
    async with contextlib.aclosing(cast("AsyncGenerator[Any, None]", items)):
        async for item in items:
            yield encode(item)
