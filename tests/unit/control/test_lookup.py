"""What a request may call an image."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lamella.control.lookup import find_image
from lamella.model.errors import NotFound
from lamella.model.image import Image, ImageSpec, ImageStatus
from lamella.model.resource import new_resource
from lamella.store.database import open_store
from lamella.store.store import Store

SOURCE = "docker://registry.example.org:5000/team/app:1"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = open_store(f"sqlite:///{tmp_path}/lamella.db")
    await store.open()
    yield store
    await store.close()


def image(name: str, source: str, digest: str) -> Image:
    return new_resource("image", name, ImageSpec(source=source), ImageStatus(digest=digest), project="default")


async def test_an_image_is_found_by_the_address_that_it_was_pulled_from(store: Store) -> None:
    await store.write(lambda tx: tx.insert(image("team/app:1", SOURCE, "sha256:1")))
    for said in ("team/app:1", SOURCE, SOURCE.removeprefix("docker://")):
        found = await store.write(lambda tx, said=said: find_image(tx, "default", said))
        assert found.name == "team/app:1"
    with pytest.raises(NotFound) as caught:
        await store.write(lambda tx: find_image(tx, "default", SOURCE + "2"))
    assert caught.value.hint == f"pull it: lamella image pull {SOURCE}2"
    with pytest.raises(NotFound):
        await store.write(lambda tx: find_image(tx, "default", "app:1"))
