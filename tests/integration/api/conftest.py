"""The API on a real Unix socket, over the in-memory layer."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fake_layer import FakeLayer

from lamella.api.app import create_app
from lamella.api.serve import serve


@pytest.fixture
def layer() -> FakeLayer:
    return FakeLayer()


@pytest.fixture
async def uds(layer: FakeLayer, tmp_path: Path) -> AsyncIterator[Path]:
    path = tmp_path / "api.sock"
    ready = asyncio.Event()
    server = asyncio.create_task(serve(create_app(layer), uds=path, ready=ready, deadline=2))
    await asyncio.wait({server, asyncio.ensure_future(ready.wait())}, return_when=asyncio.FIRST_COMPLETED)
    if server.done():
        server.result()
    yield path
    server.cancel()
    await asyncio.gather(server, return_exceptions=True)


@pytest.fixture
async def client(uds: Path) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.AsyncHTTPTransport(uds=str(uds))
    async with httpx.AsyncClient(transport=transport, base_url="http://lamella", timeout=90) as made:
        yield made
