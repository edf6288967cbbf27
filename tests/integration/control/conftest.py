"""Control over a real store, with a host whose storage is in memory."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from tests.storage_host import StorageHost

from lamella.control.layer import Layer
from lamella.model.image import Artifact, ArtifactKind, ImageConfig, ImageSpec, ImageStatus
from lamella.model.image import Layer as ImageLayer
from lamella.model.resource import new_resource
from lamella.store.database import open_store

DIGEST = "sha256:" + "a" * 64

Open = Callable[[], Awaitable[Layer]]


@pytest.fixture
def host() -> StorageHost:
    return StorageHost()


@pytest.fixture
async def opened(tmp_path: Path, host: StorageHost) -> AsyncIterator[Open]:
    """Opens control anew on the same store, as a restarted daemon does."""
    stores, layers = [], []

    async def begin() -> Layer:
        store = open_store(f"sqlite:///{tmp_path}/lamella.db")
        await store.open()
        stores.append(store)
        layer = Layer(store, role="all", seed="lamella-test")
        layers.append(layer)
        await layer.open()
        if not (await store.list("image")).items:
            status = ImageStatus(
                digest=DIGEST,
                architecture="amd64",
                config=ImageConfig(command=["sh"]),
                layers=[ImageLayer(diff_id=DIGEST, size=1)],
                artifacts=[
                    Artifact(kind=kind, digest=DIGEST, size=1, stored=1)
                    for kind in (ArtifactKind.DISK, ArtifactKind.KERNEL)
                ],
            )
            await store.write(lambda tx: tx.insert(new_resource("image", "box", ImageSpec(source="box"), status)))
        id = await layer.desk.register(host.name, await host.facts(), "")
        layer.connect_host(id, host)
        await host.stop()
        host.act(layer.desk, id)
        return layer

    yield begin
    await host.stop()
    for layer in layers:
        await layer.close()
    for store in stores:
        await store.close()


@pytest.fixture
async def layer(opened: Open) -> Layer:
    return await opened()
