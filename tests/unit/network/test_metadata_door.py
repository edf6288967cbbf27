"""How many come in where metadata are told: real connections on loopback."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from lamella.host.network.services.metadata import Answer, Request
from lamella.host.network.services.speaking import Crowd, Door

QUESTION = b"GET /latest/meta-data/ HTTP/1.1\r\nHost: x\r\n\r\n"


def tell(guest: str, request: Request) -> Answer:
    return Answer(status=200, body=request.path)


@pytest.fixture
async def doors() -> AsyncIterator[tuple[Crowd, list[int]]]:
    """Ports of two doors that share a crowd of three."""
    crowd, made, ports = Crowd(3), list[Door](), list[int]()
    for _ in range(2):
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)
        ports.append(listening.getsockname()[1])
        made.append(Door(tell, crowd))
        await made[-1].open(listening)
    yield crowd, ports
    for door in made:
        door.close()


async def ask(port: int) -> bytes:
    """The whole answer; empty when nobody answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(QUESTION)
        async with asyncio.timeout(90):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_all_doors_together_have_a_bound_and_whoever_goes_makes_room(
    doors: tuple[Crowd, list[int]],
) -> None:
    crowd, (first, second) = doors
    idle = [await asyncio.open_connection("127.0.0.1", (first, second)[number % 2]) for number in range(3)]
    async with asyncio.timeout(90):
        while crowd.here < 3:
            await asyncio.sleep(0.01)
    assert await ask(first) == b"" and await ask(second) == b""
    for _, writer in idle:
        writer.close()
    async with asyncio.timeout(90):
        while not (await ask(first)).startswith(b"HTTP/1.1 200"):
            await asyncio.sleep(0.01)
    assert (await ask(second)).endswith(b"/latest/meta-data/")
