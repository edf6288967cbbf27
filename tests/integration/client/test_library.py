"""The library's two faces against the real API: the same things, the same answers."""

import asyncio
import inspect
import os
from pathlib import Path

import pytest

import lamella
from conftest import Served
from lamella.client.aio import backups as aio_backups
from lamella.client.aio import balancers as aio_balancers
from lamella.client.aio import box as aio_box
from lamella.client.aio import firewalls as aio_firewalls
from lamella.client.aio import hosts as aio_hosts
from lamella.client.aio import images as aio_images
from lamella.client.aio import instances as aio_instances
from lamella.client.aio import layer as aio_layer
from lamella.client.aio import machine as aio_machine
from lamella.client.aio import networks as aio_networks
from lamella.client.aio import routers as aio_routers
from lamella.client.aio import storage as aio_storage
from lamella.client.blocking import (
    backups,
    balancers,
    box,
    firewalls,
    hosts,
    images,
    instances,
    layer,
    machine,
    networks,
    routers,
    storage,
)
from lamella.client.result import CommandFailed
from lamella.model.board import Input, Pointer
from lamella.model.errors import (
    Conflict,
    Corrupt,
    DeadlineExceeded,
    Invalid,
    NotFound,
    StaleRevision,
    Unavailable,
    Unsupported,
)
from lamella.model.instance import Phase
from lamella.model.stream import Exit, Resize, Stdin, Stdout


async def test_run_exec_wait(served: Served) -> None:
    async with lamella.connect(served.url) as here:
        async with here.run("debian:12", command=["sleep", "100"], memory="512MiB", cpu=1.5, name="web") as box:
            assert (box.instance.spec.memory, box.instance.spec.cpu) == (512 << 20, 1500)
            result = await box.exec("sh", "-c", "cat; echo err >&2; exit 3", input=b"in")
            assert (result.exit_code, result.stdout, result.stderr, result.text) == (3, b"in", b"err\n", "in")
            with pytest.raises(CommandFailed) as caught:
                await box.exec("false", check=True)
            assert caught.value.result.exit_code == 1
            assert (await box.exec("sleep", "100", timeout=0.3)).exit_code == 124
            with pytest.raises(DeadlineExceeded):
                await box.wait(timeout=0.1)
            await box.kill("TERM")
            assert await box.wait() == 143
            with pytest.raises(Conflict):
                await box.exec("true")
        with pytest.raises(NotFound):
            await here.instances.get("web")


async def test_what_fails_is_an_error_and_leaves_nothing(served: Served) -> None:
    async with lamella.connect(served.url) as here:
        with pytest.raises(NotFound) as caught:
            async with here.run("debian:99"):
                pass
        assert caught.value.hint == "make it: lamella image build debian:99"
        assert caught.value.field == "spec.image"
        with pytest.raises(Unavailable, match="there is no such command"):
            async with here.run("debian:12", command=["no-such-command"]):
                pass
        with pytest.raises(Invalid, match="list of words"):
            await here.instances.create("debian:12", command="true")
        with pytest.raises(Invalid, match="memory"):
            await here.instances.create("debian:12", memory="much")
        with pytest.raises(ZeroDivisionError):
            async with here.run("debian:12", command=["sleep", "100"]):
                _ = 1 / 0
        assert await here.instances.list() == []


async def test_files_streams_and_logs(served: Served) -> None:
    data = os.urandom(3 << 20)
    async with (
        lamella.connect(served.url) as here,
        here.run("debian:12", command=["sh", "-c", "echo hello; sleep 100"]) as box,
    ):
        await box.make_directory("/deep/er")
        await box.write_file("/deep/er/file", data, mode=0o600)
        assert await box.read_file("/deep/er/file") == data
        assert b"".join([piece async for piece in box.open_file("/deep/er/file")]) == data
        await box.write_file("/pieces", (bytes([number]) for number in range(5)))
        assert await box.read_file("/pieces") == bytes(range(5))
        assert (await box.stat("/deep/er/file")).mode == 0o600
        assert [entry.path for entry in await box.list_directory("/deep")] == ["/deep/er"]
        with pytest.raises(NotFound):
            await box.read_file("/absent")
        assert [entry.data async for entry in box.logs()] == [b"hello\n"]
        async for entry in box.logs(follow=True):
            assert entry.data == b"hello\n"
            break
        async with box.stream(["cat"]) as stream:
            await stream.send(Resize(40, 100))
            await stream.send(Stdin(b"ping"))
            assert await stream.receive() == Stdout(b"ping")
        async with box.stream(["sh", "-c", "exit 9"]) as stream:
            assert [frame async for frame in stream] == [Exit(9)]
            assert stream.exit_code == 9
        echoed = await box.exec("cat", input=data)
        assert echoed.stdout == data


async def test_attach_from_the_first_byte(served: Served) -> None:
    async with lamella.connect(served.url) as here:
        made = await here.instances.create("debian:12", start=False, command=["echo", "first"])
        async with made.attach(start=True) as stream:
            assert [frame async for frame in stream] == [Stdout(b"first\n"), Exit(0)]


async def test_power_set_and_pages(served: Served) -> None:
    async with (
        lamella.connect(served.url) as here,
        here.run("debian:12", command=["sleep", "100"], labels={"a": "1"}) as box,
    ):
        await box.pause()
        assert box.phase is Phase.PAUSED
        await box.resume()
        await box.restart(timeout=1)
        await box.set(memory="1GiB", labels={"a": None, "b": "2"})
        assert (box.instance.spec.memory, box.instance.labels) == (1 << 30, {"b": "2"})
        assert (await box.contract()).not_promised == ["that it is isolated"]
        assert (await box.explain()).instance == box.name
        usage = await box.usage()
        assert usage is not None and usage.memory == 3 << 20
        await box.stop()
        assert box.phase is Phase.STOPPED
        assert (await here.doctor()).findings[0].subject == "kvm"
        assert (await here.about()).you.startswith("unix:")
        types = [event.spec.type async for event in here.events()]
        assert types[0] == "instance.created"


async def test_many_requests_at_once(served: Served) -> None:
    async with lamella.connect(served.url) as here, here.run("debian:12", command=["sleep", "100"]) as box:
        results = await asyncio.gather(*(box.exec("echo", str(number)) for number in range(20)))
        assert [result.text for result in results] == [f"{number}\n" for number in range(20)]
        assert all(
            found.id == box.id for found in await asyncio.gather(*(here.instances.get(box.id) for _ in range(50)))
        )


async def test_images_tell_their_progress(served: Served) -> None:
    seen: list[int] = []
    async with lamella.connect(served.url) as here:
        image = await here.images.build(
            "debian:13", packages=["curl"], progress=lambda status: seen.append(status.done)
        )
        assert image.name == "debian:13"
        assert seen == sorted(seen) and seen[-1] == 4 << 20
        with pytest.raises(NotFound, match="the registry does not have it"):
            await here.images.pull("docker://registry/absent:1")
        assert [image.name for image in await here.images.list()] == ["debian:12", "debian:13"]
        assert await here.images.collect() == 3 << 20


async def test_a_watch_misses_nothing(served: Served) -> None:
    async with lamella.connect(served.url) as here:
        since = (await here.about()).revision
        made = await here.instances.create("debian:12", start=False, name="web")
        await made.remove()
        actions: list[str] = []
        async for change in here.instances.watch(since=since):
            assert change.resource.name == "web"
            actions.append(change.action)
            if change.action == "deleted":
                break
        assert actions == ["created", "deleted"]


async def test_a_machine_is_seen_typed_at_and_reset(served: Served) -> None:
    async with lamella.connect(served.url) as here:
        db = await here.instances.create(
            "debian:12",
            start=False,
            name="db",
            isolation="vm",
            disk="8GiB",
            disks={"data": "1GiB"},
            networks=["default"],
            firmware="uefi",
            secure_boot=True,
            tpm=True,
            user_data="#cloud-config\n",
        )
        assert [disk.name for disk in db.instance.spec.disks] == ["data"]
        assert db.instance.spec.board.secure_boot
        assert await db.screenshot() == b"\x89PNG\r\n\x1a\ndb"
        await db.type("root\n")
        await db.press("ctrl-alt-delete", "enter")
        await db.click(0.5, 1, button="right")
        assert served.layer.hands == [
            Input(text="root\n"),
            Input(keys=[["ctrl", "alt", "delete"], ["ret"]]),
            Input(pointer=[Pointer(x=0.5, y=1.0, buttons=["right"])]),
        ]
        await db.reset()
        assert served.layer.resets == ["db"]
        ticket = await db.desktop()
        assert (ticket.kind, ticket.password) == ("vnc", "one-time")
        async with db.screen() as screen:
            await screen.write(b"RFB 003.008\n")
            assert await screen.receive() == Stdout(b"RFB 003.008\n")
        size = 0
        async for piece in db.dump():
            size += len(piece)
        assert size == (48 << 20) + 7
        with pytest.raises(NotFound, match="never crashed"):
            await anext(aiter(db.dump(crash=True)))
        box = await here.instances.create("debian:12", start=False)
        with pytest.raises(Unsupported):
            await box.screenshot()


async def test_devices_are_plugged_and_unplugged(served: Served) -> None:
    async with lamella.connect(served.url) as here:
        db = await here.instances.create("debian:12", start=False, isolation="vm")
        served.layer.interfere = 2
        assert await db.attach_disk("1GiB") == "disk1"
        assert await db.attach_disk(1 << 20, name="data") == "data"
        assert await db.attach_nic() == "nic1"
        assert await db.attach_cdrom("debian:12") == "cdrom1"
        assert await db.attach_usb("1D6B:0002") == "usb1"
        with pytest.raises(Conflict, match="goes with it"):
            await db.detach("data")
        await db.detach("data", force=True)
        await db.detach("nic1")
        spec = (await db.refresh()).spec
        assert [disk.name for disk in spec.disks] == ["disk1"]
        assert (len(spec.nics), spec.cdroms[0].image, spec.usb[0].device) == (1, "debian:12", "1d6b:0002")
        with pytest.raises(NotFound):
            await db.detach("nobody")
        served.layer.interfere = 99
        with pytest.raises(StaleRevision):
            await db.attach_disk("1GiB")


async def test_disks_of_images_and_what_levels_lack(served: Served) -> None:
    async with lamella.connect(served.url) as here:
        assert b"".join([part async for part in here.images.export("debian:12")]) == b"debian:12 as qcow2"
        with pytest.raises((Corrupt, Unavailable)):
            async for _ in here.images.export("debian:12", format="vdi"):
                pass
        kernel = await here.images.import_file("/srv/kernel.elf", name="k", initrd="/srv/initrd")
        assert (kernel.name, served.layer.brought[-1].initrd) == ("k", "/srv/initrd")
        await here.images.build("debian:13", disk=True)
        assert served.layer.brought[-1].disk
        assert [level.level for level in (await here.compare()).levels] == ["container", "microvm", "confidential"]
        missing = await here.why_not("confidential")
        assert (missing.available, missing.reasons[0].reason) == (False, "/dev/sev is not there")
        with pytest.raises(NotFound):
            await here.why_not("vm9")


async def test_the_console_is_the_machines_own(served: Served) -> None:
    async with (
        lamella.connect(served.url) as here,
        here.run("debian:12", isolation="vm", command=["cat"], stdin=True) as db,
        db.console() as console,
    ):
        await console.write(b"login")
        assert await console.receive() == Stdout(b"login")


def test_the_synchronous_face_of_a_machine(served: Served) -> None:
    with lamella.connect_sync(served.url) as here:
        with here.run("debian:12", isolation="vm", command=["cat"], stdin=True) as db:
            with db.console() as console:
                console.write(b"login")
                assert console.receive() == Stdout(b"login")
            assert db.screenshot().startswith(b"\x89PNG")
            db.type("x")
            db.press("f12")
            db.click(0, 0)
            db.reset()
            with db.screen("spice") as screen:
                screen.write(b"REDQ")
                assert screen.receive() == Stdout(b"REDQ")
            assert db.desktop("spice").kind == "spice"
            assert db.attach_disk("1GiB") == "disk1"
            db.detach("disk1", force=True)
            assert sum(map(len, db.dump())) == (48 << 20) + 7
        assert len(served.layer.hands) == 3
        assert b"".join(here.images.export("debian:12", format="raw")) == b"debian:12 as raw"
        assert not here.why_not("confidential").available
        assert here.compare().not_promised == ["that it is fast"]


def test_the_synchronous_face(served: Served) -> None:
    data = os.urandom(3 << 20)
    with lamella.connect_sync(served.url) as here:
        with here.run("debian:12", command=["sleep", "100"], memory="512MiB") as box:
            result = box.exec("sh", "-c", "cat; exit 3", input=data)
            assert (result.exit_code, result.stdout) == (3, data)
            box.write_file("/file", data)
            assert box.read_file("/file") == data
            with box.stream(["cat"]) as stream:
                stream.send(Stdin(b"ping"))
                assert stream.receive() == Stdout(b"ping")
            box.kill("TERM")
            assert box.wait() == 143
            with pytest.raises(Conflict):
                box.exec("true")
        assert here.instances.list() == []
        assert here.images.build("debian:13").name == "debian:13"
        made = here.instances.create("debian:12", start=False, command=["echo", "first"])
        with made.attach(start=True) as attached:
            assert list(attached) == [Stdout(b"first\n"), Exit(0)]
        assert next(event.spec.type for event in here.events()) == "instance.created"


def test_both_faces_have_the_same_shape() -> None:
    pairs = [
        (aio_box.Box, box.Box),
        (aio_machine.Machine, machine.Machine),
        (aio_layer.Layer, layer.Layer),
        (aio_instances.Instances, instances.Instances),
        (aio_images.Images, images.Images),
        (aio_firewalls.Firewalls, firewalls.Firewalls),
        (aio_hosts.Hosts, hosts.Hosts),
        (aio_networks.Networks, networks.Networks),
        (aio_balancers.Balancers, balancers.Balancers),
        *((getattr(aio_routers, name), getattr(routers, name)) for name in ("Routers", "Addresses")),
        *((getattr(aio_storage, name), getattr(storage, name)) for name in ("Pools", "Volumes", "Snapshots")),
        *((getattr(aio_backups, name), getattr(backups, name)) for name in ("Repositories", "Backups", "Policies")),
    ]
    for one, other in pairs:
        names = {name for name in vars(one) if not name.startswith("_")}
        assert names == {name for name in vars(other) if not name.startswith("_")}
        for name in names:
            if callable(vars(one)[name]):
                first, second = (inspect.signature(vars(kind)[name]) for kind in (one, other))
                assert list(first.parameters.values()) == list(second.parameters.values()), name


async def test_an_absent_daemon(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no Lamella daemon at"):
        await lamella.connect(f"unix://{tmp_path}/nowhere.sock").about()
    with pytest.raises(Unavailable, match="no Lamella daemon at"):
        lamella.connect_sync(f"unix://{tmp_path}/nowhere.sock").about()
    with pytest.raises(Invalid, match="where a daemon can be"):
        lamella.connect("http://127.0.0.1:80")


async def test_a_kept_connection_that_died_is_replaced(served: Served) -> None:
    async with lamella.connect(served.url) as here:
        await here.about()
        here._talk.wire._idle[0].writer.close()
        assert (await here.about()).version == "0"
    with lamella.connect_sync(served.url) as there:
        there.about()
        import socket

        there._talk.wire._idle[0].shutdown(socket.SHUT_RDWR)
        assert there.about().version == "0"


async def test_a_long_path(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    long = Served(folder / "lamellad.sock", tmp_path / "root")
    long.root.mkdir()
    long.start()
    try:
        async with lamella.connect(long.url) as here:
            assert (await here.about()).version == "0"
        assert long.lamella("version").returncode == 0
    finally:
        long.stop()
