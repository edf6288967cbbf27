"""The library's faces of what networks are made of, against the real API over the layer in memory."""

import asyncio
from pathlib import Path

import pytest
from fake_layer import FakeLayer

import lamella
from lamella.model.balancer import Check, Target
from lamella.model.errors import Conflict, Invalid, NotFound, StaleRevision
from lamella.model.router import StaticRoute


@pytest.fixture
def url(uds: Path) -> str:
    return f"unix://{uds}"


async def test_routers_are_made_changed_and_removed(url: str) -> None:
    async with lamella.connect(url) as here:
        front = await here.networks.create("front", subnet="10.10.0.0/24", isolated=True)
        made = await here.routers.create(
            "edge", networks=["front"], uplink=True, routes={"10.99.0.0/24": "10.10.0.5"}, labels={"a": "1"}
        )
        assert (made.spec.networks, made.spec.uplink, made.labels) == ([front.id], True, {"a": "1"})
        assert made.spec.routes == [StaticRoute(destination="10.99.0.0/24", via="10.10.0.5")]
        changed = await here.routers.change("edge", uplink=False, labels={"a": None})
        assert (changed.spec.uplink, changed.spec.routes, changed.labels) == (False, made.spec.routes, {})
        changed = await here.routers.change("edge", networks=[], routes={})
        assert (changed.spec.networks, changed.spec.routes) == ([], [])
        assert [one.name for one in await here.routers.list()] == ["edge"]
        assert await here.routers.list(labels={"a": "1"}) == []
        with pytest.raises(Conflict):
            await here.routers.create("edge")
        with pytest.raises(NotFound):
            await here.routers.create("other", networks=["nothing"])
        for asked in (here.routers.change("edge"), here.routers.create("x", networks="front"), here.routers.create("")):
            with pytest.raises(Invalid):
                await asked
        await here.routers.remove("edge")
        with pytest.raises(NotFound):
            await here.routers.get("edge")


async def test_addresses_lead_to_one_and_then_to_nobody(url: str, layer: FakeLayer) -> None:
    web = layer._find("default", "instance", "web")
    async with lamella.connect(url) as here:
        free = await here.addresses.create()
        assert (free.name, free.status.instance) == (free.spec.address, "")
        made = await here.addresses.create(instance="web", name="front", labels={"a": "1"})
        assert (made.name, made.status.instance, made.labels) == ("front", web.id, {"a": "1"})
        assert (await here.addresses.detach("front")).status.instance == ""
        assert (await here.addresses.attach("front", "web")).status.instance == web.id
        with pytest.raises(NotFound):
            await here.addresses.attach("front", "nobody")
        with pytest.raises(Invalid):
            await here.addresses.create("not an address at all")
        await here.addresses.remove(free.name)
        assert [one.id for one in await here.addresses.list()] == [made.id]
        assert (await here.addresses.get("front")).id == made.id


async def test_balancers_are_made_of_texts(url: str) -> None:
    async with lamella.connect(url) as here:
        made = await here.balancers.create(
            "www",
            listen=["http:80", "tcp:81"],
            to=["label:role=web:8080", "w1"],
            routes=["/api=w2:9000"],
            check="http:/healthz",
            check_port=8081,
            interval=2,
            spread="source",
            publish=["127.0.0.1:18080:80"],
            drain=5,
            labels={"a": "1"},
        )
        spec = made.spec
        assert [(one.protocol, one.port) for one in spec.listeners] == [("http", 80), ("tcp", 81)]
        assert spec.targets == [
            Target(path="/api", instance="w2", port=9000),
            Target(labels={"role": "web"}, port=8080),
            Target(instance="w1"),
        ]
        assert spec.check == Check(kind="http", path="/healthz", port=8081, interval=2, timeout=2)
        assert (spec.spread, spec.drain, spec.network, made.labels) == ("source", 5, "default", {"a": "1"})
        assert [(one.host_address, one.host_port, one.port) for one in spec.publish] == [("127.0.0.1", 18080, 80)]

        changed = (await here.balancers.change("www", to=["w1:8080"], draining=["w1"])).spec
        assert (changed.targets, changed.draining) == ([Target(instance="w1", port=8080)], ["w1"])
        assert (changed.listeners, changed.check) == (spec.listeners, spec.check)
        changed = (await here.balancers.change("www", check="none", publish=[], labels={"a": None})).spec
        assert (changed.check.kind, changed.publish) == ("none", [])
        assert await here.balancers.list(labels={"a": "1"}) == []
        for wrong in (
            here.balancers.create("x"),
            here.balancers.create("x", listen="tcp:80"),
            here.balancers.create("x", listen=["tcp:0"]),
            here.balancers.create("x", listen=["udp:53"]),
            here.balancers.create("x", listen=["tcp:80"], drain=-1),
            here.balancers.change("www"),
            here.balancers.change("www", check="maybe"),
            here.balancers.change("www", routes=["/api"]),
        ):
            with pytest.raises(Invalid):
                await wrong
        await here.balancers.remove("www")
        with pytest.raises(NotFound):
            await here.balancers.get("www")


async def test_a_nic_is_bounded_captured_and_mirrored(
    url: str, layer: FakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lamella.connect(url) as here:
        box = await here.instances.create("debian:12", start=False, name="w1", rate_out="50Mbit", publish=["80"])
        await box.set(rate_in="100Mbit", memory="1GiB")
        (nic,) = (await box.refresh()).spec.nics
        assert (nic.rate_in, nic.rate_out, nic.publish[0].port) == (100_000_000, 50_000_000, 80)
        assert box.instance.spec.memory == 1 << 30

        # Whoever was quicker is not written over, and whoever asks is told when that never ends.
        patch, others = layer.patch, 2

        async def late(*words, expected, **more):
            nonlocal others
            if others and expected is not None:
                others -= 1
                layer._put(layer._find("default", "instance", "w1"), "updated")
            return await patch(*words, expected=expected, **more)

        monkeypatch.setattr(layer, "patch", late)
        await box.set(rate_out=None)
        assert (box.instance.spec.nics[0].rate_out, others) == (None, 0)
        others = 99
        with pytest.raises(StaleRevision):
            await box.set(rate_out=64_000)
        with pytest.raises(Invalid):
            await box.set(nic="nic", pids=7)

        file = b"".join([piece async for piece in box.capture(filter="tcp port 80", duration="1s", packets=4)])
        assert file[:4] == b"\xd4\xc3\xb2\xa1" and len(file) == 24
        with pytest.raises(NotFound, match="no NIC 'nic7'"):
            await anext(aiter(box.capture(nic="nic7")))
        with pytest.raises(Invalid, match="duration"):
            await anext(aiter(box.capture(duration="long")))
        web = await here.instances.get("web")
        assert (await box.mirror("web")).spec.mirror == web.id
        assert (await box.mirror(None)).spec.mirror == ""
        with pytest.raises(NotFound):
            await box.mirror("nobody")
        with pytest.raises(NotFound):
            await box.mirror("web", nic="nic7")


async def test_the_synchronous_face_says_the_same(url: str) -> None:
    def all_of_it() -> None:
        with lamella.connect_sync(url) as here:
            front = here.networks.create("front", external=True)
            assert here.routers.create("edge", networks=["front"]).spec.networks == [front.id]
            assert here.routers.change("edge", uplink=True).spec.uplink
            here.routers.remove("edge")
            name = here.addresses.create(instance="web").name
            assert here.addresses.detach(name).status.instance == ""
            here.addresses.attach(name, "web")
            here.addresses.remove(name)
            here.balancers.create("www", listen=["tcp:80"], to=["web:8080"])
            assert here.balancers.change("www", draining=["web"]).spec.draining == ["web"]
            here.balancers.remove("www")
            assert (here.routers.list(), here.addresses.list(), here.balancers.list()) == ([], [], [])
            web = here.instances.create("debian:12", start=False, name="w1")
            assert web.set(rate_in="10Mbit").spec.nics[0].rate_in == 10_000_000
            assert len(b"".join(web.capture())) == 24
            assert web.mirror("web").spec.mirror and not web.mirror(None).spec.mirror

    await asyncio.to_thread(all_of_it)
