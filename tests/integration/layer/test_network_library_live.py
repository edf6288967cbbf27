"""What networks are made of, by the library: a router, a floating address, a balancer; rates, a capture and a mirror of what passes."""

import asyncio
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.house import LayerUnderTest

import lamella
from lamella.client.aio.box import Box

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

SERVER = "while :; do echo $(hostname) | nc -l -p 80; done"


@pytest.fixture
def url(layer: LayerUnderTest) -> str:
    return f"unix://{layer.home}/run/lamellad.sock"


async def becomes(ask: Callable[[], Awaitable[object]], wanted: object, seconds: float = 90) -> None:
    """Hosts hear of a change a moment later."""
    deadline = time.monotonic() + seconds
    while (seen := await ask()) != wanted:
        assert time.monotonic() < deadline, seen
        await asyncio.sleep(0.1)


async def answered(box: Box, address: str) -> str:
    return (await box.exec("sh", "-c", f"nc -w 3 {address} 80 </dev/null")).text.strip()


async def test_what_leads_from_one_network_to_another(url: str, layer: LayerUnderTest) -> None:
    async with lamella.connect(url) as here:
        await here.networks.create("front")
        await here.networks.create("back", isolated=True)
        await here.networks.create("public", subnet="198.51.100.0/28", external=True)
        made = await here.routers.create("edge", networks=["front"])
        async with (
            here.run("busybox", command=["sh", "-c", SERVER], name="db", network="back") as db,
            here.run("busybox", command=["sh", "-c", SERVER], name="w1", network="front") as w1,
        ):
            assert await answered(w1, db.instance.status.address or "") == ""
            both = [*made.spec.networks, "back"]
            changed = await here.routers.change("edge", networks=both, uplink=True)
            assert len(changed.spec.networks) == 2 and changed.spec.uplink
            await becomes(lambda: answered(w1, db.instance.status.address or ""), "db")
            address = await here.addresses.create(instance="w1")
            words = ["nsenter", f"--net=/run/netns/{layer.netns}", "timeout", "3"]
            words += ["bash", "-c", f"cat < /dev/tcp/{address.spec.address}/80"]

            async def outside() -> str:
                done = await asyncio.to_thread(subprocess.run, words, capture_output=True, check=False)
                return done.stdout.decode().strip()

            await becomes(outside, "w1")
            await here.addresses.detach(address.name)
            assert (await here.addresses.attach(address.name, "w1")).status.instance == w1.id
            await here.addresses.detach(address.name)
            await here.addresses.remove(address.name)
        for name in ("public", "front", "back"):
            await here.networks.remove(name)
        await here.routers.remove("edge")
        assert (await here.routers.list(), await here.addresses.list()) == ([], [])


def test_what_passes_is_bounded_spread_seen_and_copied(url: str, tmp_path: Path) -> None:
    with lamella.connect_sync(url) as here, here.run("busybox", command=["sleep", "1000"], name="ids") as ids:
        talk = "while :; do nc -w 1 10.83.0.1 9 </dev/null; sleep 0.1; done"
        with here.run("busybox", command=["sh", "-c", f"({talk}) & {SERVER}"], name="w1") as box:
            box.set(rate_in="100Mbit", rate_out="50Mbit", pids=77)
            limits = {line.subject: line.value for line in box.contract().limits}
            assert limits["rate in"].startswith("100Mbit/s; ") and limits["rate out"].startswith("50Mbit/s; ")
            box.set(rate_out=None)
            assert "rate out" not in {line.subject for line in box.contract().limits}

            file = tmp_path / "w1.pcap"
            with file.open("wb") as written:
                for piece in box.capture(filter="tcp port 9", packets=4, duration="10s"):
                    written.write(piece)
            read = subprocess.run(["tcpdump", "-nr", str(file)], capture_output=True, check=True).stdout.decode()
            assert len(read.splitlines()) == 4

            assert box.mirror("ids").spec.mirror == ids.instance.status.port
            copy = subprocess.run(
                ["tcpdump", "-nr", "-"],
                input=b"".join(ids.capture(filter="tcp port 9", packets=2, duration="10s")),
                capture_output=True,
                check=True,
            )
            assert len(copy.stdout.splitlines()) == 2
            assert box.mirror(None).spec.mirror == ""

            made = here.balancers.create("www", listen=["tcp:80"], to=["w1"])
            address, deadline = made.spec.address, time.monotonic() + 90
            while ids.exec("sh", "-c", f"nc -w 3 {address} 80 </dev/null").text.strip() != "w1":
                assert time.monotonic() < deadline, here.balancers.get("www").status
            here.balancers.change("www", draining=["w1"])
            while [one.state for seen in here.balancers.get("www").status.backends.values() for one in seen] != [
                "draining"
            ]:
                assert time.monotonic() < deadline, here.balancers.get("www").status
                time.sleep(0.1)
            here.balancers.remove("www")
