"""Our client against Debian's own qemu-guest-agent, which here serves a Unix socket instead of a port, shut up in namespaces."""

import asyncio
import base64
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from guest_talk import Said, hear

from lamella.host.compute.guest import qga_files
from lamella.host.compute.guest.qga import LARGEST_OUTPUT, QgaClient
from lamella.host.compute.guest.qga_process import start_process
from lamella.host.compute.vm.inside import Agents, Inside
from lamella.model.errors import Conflict, Corrupt, DeadlineExceeded, NotFound, Unavailable, Unsupported
from lamella.model.files import FileType
from lamella.model.stream import ExecSpec, Signal, Stdin, StdinEnd

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]


class Qga:
    """The program, in namespaces of its own: what it is asked to end, freeze or kill is only itself."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "socket"
        self.work = directory / "work"
        self.work.mkdir()
        agent = f"exec qemu-ga -m unix-listen -p {self.socket} -t {directory} -f {directory}/pid"
        self.process = subprocess.Popen(
            [
                *("unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc"),
                *("sh", "-c", f"ip link set lo up; {agent}"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def qga(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Qga]:
    made = Qga(tmp_path_factory.mktemp("qga"))
    yield made
    made.end()


@pytest.fixture
async def client(qga: Qga) -> AsyncIterator[QgaClient]:
    client = await QgaClient.connect(qga.socket, timeout=90)
    yield client
    await client.close()


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


async def run(client: QgaClient, *command: str, stdin: bytes | None = None, **options: object) -> Said:
    spec = ExecSpec(command=list(command), stdin=stdin is not None, **options)  # type: ignore[arg-type]
    stream = await start_process(client, spec)
    if stdin is not None:
        await stream.send(Stdin(stdin))
        await stream.send(StdinEnd())
    return await hear(stream)


async def test_it_says_what_it_is_and_where(client: QgaClient) -> None:
    info = await client.info()
    assert info.version.startswith("7.2")
    assert info.can("guest-exec")
    assert not info.can("guest-make-coffee")
    assert (await client.os()).id == "debian"
    (loopback,) = await client.interfaces()
    assert loopback.name == "lo"
    assert [(address.ip_address, address.prefix) for address in loopback.ip_addresses] == [
        ("127.0.0.1", 8),
        ("::1", 128),
    ]
    assert not await client.frozen()


async def test_processes(client: QgaClient) -> None:
    said = await run(
        client,
        "sh",
        "-c",
        "cat; pwd; echo $A >&2; exit 3",
        stdin=b"in ",
        environment={"A": "b"},
        working_directory="/usr",
    )
    assert (said.out, said.err, said.code) == (b"in /usr\n", b"b\n", 3)
    assert (await run(client, "sh", "-c", "kill -TERM $$")).code == 143
    assert (await run(client, "no-such-command")).code == 127
    assert (await run(client, "/etc/passwd")).code == 126
    assert (await run(client, "sh", "-c", "echo begun; exec sleep 60", timeout=0.3)).code == 124


async def test_a_process_is_signalled_and_killed(client: QgaClient) -> None:
    stream = await start_process(client, ExecSpec(command=["sleep", "600"]))
    await stream.send(Signal(2))
    assert (await hear(stream)).code == 130
    stream = await start_process(client, ExecSpec(command=["sleep", "601"]))
    await stream.close()
    said = await run(client, "sh", "-c", "ps ax | grep '[s]leep 601'")
    assert said.out == b""


async def test_more_output_than_it_keeps_is_said_to_be_lost(client: QgaClient) -> None:
    said = await run(client, "head", "-c", str(LARGEST_OUTPUT + 1), "/dev/zero")
    assert len(said.out) == LARGEST_OUTPUT
    assert b"16 MiB" in said.err


@pytest.mark.parametrize("spec", [ExecSpec(command=["true"], terminal=True), ExecSpec(command=["true"], user="nobody")])
async def test_what_it_cannot_do_is_refused(client: QgaClient, spec: ExecSpec) -> None:
    with pytest.raises(Unsupported, match="cannot give a command"):
        await start_process(client, spec)


async def test_files(qga: Qga, client: QgaClient) -> None:
    name = "we 'ird\n$(name) "
    path = str(qga.work / name)
    data = bytes(range(256)) * 2000
    await qga_files.write_file(client, path, pieces(data[:7], data[7:]), mode=0o640, uid=5, gid=6)
    info = await qga_files.stat_path(client, path)
    assert (info.path, info.type, info.size, info.mode, info.uid, info.gid) == (
        path,
        FileType.FILE,
        len(data),
        0o640,
        5,
        6,
    )
    assert b"".join([piece async for piece in client.read_file(path)]) == data

    await qga_files.make_directory(client, str(qga.work / "-a/b"), mode=0o700, uid=7, gid=8)
    await qga_files.make_directory(client, str(qga.work / "-a/b"))  # it is there
    (qga.work / ".link").symlink_to("nowhere at all")
    listing = {entry.path: entry for entry in await qga_files.list_directory(client, str(qga.work))}
    assert set(listing) == {path, str(qga.work / "-a"), str(qga.work / ".link")}
    assert listing[str(qga.work / ".link")].target == "nowhere at all"
    assert (qga.work / "-a/b").stat().st_uid == 7

    with pytest.raises(NotFound):
        await qga_files.stat_path(client, str(qga.work / "none"))
    with pytest.raises(NotFound):
        await qga_files.list_directory(client, path)
    with pytest.raises(NotFound):
        assert [piece async for piece in client.read_file("/no/such")]
    with pytest.raises(Conflict):
        await qga_files.write_file(client, str(qga.work / "-a"), pieces(b"x"))
    assert {entry.name for entry in qga.work.iterdir()} == {name, "-a", ".link"}  # what failed left nothing


async def test_usage(client: QgaClient) -> None:
    usage = await qga_files.usage(client)
    assert usage.cpu_seconds is not None and usage.cpu_seconds > 0
    assert usage.memory is not None and usage.memory_limit is not None and 0 < usage.memory < usage.memory_limit


async def test_a_call_that_is_given_up_ends_the_conversation_and_the_next_begins_clean(qga: Qga) -> None:
    client = await QgaClient.connect(qga.socket)
    with pytest.raises(DeadlineExceeded):
        await client.call("guest-info", dict, timeout=0.0001)
    with pytest.raises((DeadlineExceeded, Unavailable)):
        await client.ping()
    await client.close()
    again = await QgaClient.connect(qga.socket)
    await again.ping()
    with pytest.raises(Corrupt, match="something else"):
        await again.call("guest-info", list[int])
    await again.close()


async def test_a_half_line_that_somebody_left_is_of_no_harm(qga: Qga) -> None:
    _, writer = await asyncio.open_unix_connection(qga.socket)
    writer.write(b'{"execute":"guest-file-write","arguments":{"buf-b64":"' + base64.b64encode(bytes(50_000)))
    await writer.drain()
    writer.close()
    client = await QgaClient.connect(qga.socket)
    await client.ping()
    await client.close()


async def test_inside_a_guest_where_only_it_answers(qga: Qga, tmp_path: Path) -> None:
    inside = Inside(tmp_path / "nobody", qga.socket)
    inside.open()
    try:
        assert (await hear(await inside.exec(ExecSpec(command=["echo", "hi"])))).out == b"hi\n"
        assert inside.agents == Agents(qga=True)
        await inside.write_file(str(qga.work / "inside"), pieces(b"text"))
        assert b"".join([piece async for piece in inside.read_file(str(qga.work / "inside"))]) == b"text"
        assert (await inside.stat(str(qga.work / "inside"))).size == 4
        assert (await inside.usage()).memory
        with pytest.raises(Unsupported, match=r"reseed as asked needs Lamella's agent.*qemu-guest-agent answers"):
            await inside.reseed(b"x")
    finally:
        await inside.close()
