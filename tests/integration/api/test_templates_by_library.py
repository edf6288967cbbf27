"""Templates through the library, on the layer in memory: what is said in Python is what the API hears."""

import asyncio
from pathlib import Path

import pytest

import lamella
from lamella.client import template_calls, warm_calls
from lamella.model.errors import Invalid, NotFound, Unsupported


@pytest.fixture
def url(uds: Path) -> str:
    return f"unix://{uds}"


async def test_a_template_is_made_of_what_people_write(url: str) -> None:
    async with lamella.connect(url) as here:
        made = await here.templates.create(
            "py",
            "debian:12",
            memory="512MiB",
            cpu=1.5,
            warmup="import numpy",
            environment={"A": "1"},
            warm=4,
            by_rate=True,
            idle="1h",
            labels={"a": "1"},
        )
        spec = made.spec
        assert (spec.image, spec.memory, spec.cpu, spec.warm, spec.by_rate) == ("debian:12", 512 << 20, 1500, 4, True)
        assert spec.warmup == ["/bin/sh", "-c", "import numpy"] and spec.idle == 3600 and made.labels == {"a": "1"}
        changed = await here.templates.change("py", warm=2, warmup=["true"], idle=None, labels={"a": None})
        assert (changed.spec.warm, changed.spec.warmup, changed.spec.idle) == (2, ["true"], None) and not changed.labels
        assert (await here.templates.rebuild("py")).spec.epoch == 1
        assert [item.name for item in await here.templates.list()] == ["py"]
        with pytest.raises(Unsupported):
            await here.templates.create("x", "debian:12", isolation="container")
        with pytest.raises(Invalid):
            await here.templates.create("x", "debian:12", memory="much")
        with pytest.raises(Invalid, match="nothing to change"):
            await here.templates.change("py")
        await here.templates.remove("py")
        with pytest.raises(NotFound):
            await here.templates.get("py")


async def test_a_pool_leaves_a_template_as_it_was_and_its_own_not_at_all(url: str) -> None:
    async with lamella.connect(url) as here:
        await here.templates.create("py", "debian:12", warm=1)
        async with here.warm("py", size=3) as boxes:
            assert boxes.template.name == "py" and (await here.templates.get("py")).spec.warm == 3
        assert (await here.templates.get("py")).spec.warm == 1
        with pytest.raises(Invalid, match="is what it is"):
            async with here.warm("py", size=3, memory="1GiB"):
                pass
        with pytest.raises(ZeroDivisionError):
            async with here.warm("debian:12", size=2, memory="1GiB") as boxes:
                own = await here.templates.get(boxes.template.name)
                assert (own.spec.image, own.spec.warm, own.spec.memory, own.spec.idle) == (
                    "debian:12",
                    2,
                    1 << 30,
                    3600,
                )
                raise ZeroDivisionError
        assert [item.name for item in await here.templates.list()] == ["py"]


async def test_the_synchronous_face_says_the_same(url: str) -> None:
    def all_of_it() -> None:
        with lamella.connect_sync(url) as here:
            with here.warm("debian:12", size=2) as boxes:
                assert here.templates.get(boxes.template.name).spec.warm == 2
            assert here.templates.list() == []

    await asyncio.to_thread(all_of_it)


def test_an_item_goes_where_its_place_is() -> None:
    assert warm_calls.filled(["job"], "a") == ["job", "a"]
    assert warm_calls.filled(["job", "{}", "-v"], ["a", "b"]) == ["job", "a", "b", "-v"]
    assert warm_calls.filled("cat $0", "x") == ["/bin/sh", "-c", "cat $0", "x"]
    with pytest.raises(Invalid):
        warm_calls.filled([], "a")
    assert template_calls.shell("") == []
