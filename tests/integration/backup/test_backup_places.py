"""Repositories on S3 and over SFTP: real servers on this machine, that the test starts."""

import asyncio
import getpass
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import boto3
import pytest
from tests.integration.backup.backup_ground import a_note, bring, content, engine_at, home_in, keep
from tests.integration.backup.backup_wire import Wire

from lamella.host.storage.backup import table as tables
from lamella.host.storage.backup.restic import Restic
from lamella.host.storage.driver import Extent
from lamella.model.backup import Credentials
from lamella.model.errors import Conflict, Forbidden, LamellaError, Unavailable

pytestmark = [pytest.mark.root, pytest.mark.timeout(600, method="thread")]

MIB = 1 << 20
SIZE = 9 * MIB
ACCESS, SECRET = "an-access-key", "a-secret-key-of-forty-letters-or-so-12345"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 90
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)


def ended(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(90)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(90)


@pytest.fixture
def s3() -> Iterator[int]:
    port = free_port()
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port, process)
        client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            aws_access_key_id=ACCESS,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )
        client.create_bucket(Bucket="vault")
        yield port
    finally:
        ended(process)


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[int]:
    place = tmp_path / "sshd"
    place.mkdir(mode=0o700)
    for name in ("host", "user", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place / name)], check=True)
    (place / "authorized").write_text((place / "user.pub").read_text())
    port = free_port()
    (place / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {place}/host\nPidFile none\nStrictModes no\n"
        f"AuthorizedKeysFile {place}/authorized\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "UsePAM no\nPermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
    )
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    process = subprocess.Popen(
        ["/usr/sbin/sshd", "-D", "-e", "-f", str(place / "config")], stderr=(place / "log").open("wb")
    )
    try:
        wait_for(port, process)
        yield port
    finally:
        ended(process)


async def there_and_back(engine: Restic, tmp_path: Path) -> None:
    home = home_in(tmp_path / "home")
    await engine.create()
    with pytest.raises(Conflict):
        await engine.create()
    source = content(tmp_path / "disk", SIZE)
    table = tables.everything(SIZE, [Extent(offset=0, length=SIZE)], 1000)
    first = await keep(engine, home, source, table, a_note("first"))
    with source.open("r+b") as file:
        file.write(os.urandom(100))
    later, _ = tables.since(table, SIZE, [Extent(offset=0, length=SIZE)], [Extent(offset=0, length=100)], 2000)
    second = await keep(engine, home, source, later, a_note("second"), parent=first.engine_id)
    await bring(engine, home, second.engine_id, tmp_path / "back", later)
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    assert (await engine.check(100)).problems == []
    await engine.forget([first.engine_id])
    assert [stored.note.name for stored in await engine.stored()] == ["second"]


async def test_s3(s3: int, tmp_path: Path) -> None:
    credentials = Credentials(access_key=ACCESS, secret_key=SECRET, region="us-east-1")
    url = f"s3+http://127.0.0.1:{s3}/vault/of/lamella"
    engine = engine_at(home_in(tmp_path / "home"), url, credentials=credentials)
    await there_and_back(engine, tmp_path)


async def test_sftp(sshd: int, tmp_path: Path) -> None:
    home = home_in(tmp_path / "home")
    credentials = Credentials(ssh_key=(tmp_path / "sshd" / "user").read_text())
    url = f"sftp://{getpass.getuser()}@127.0.0.1:{sshd}{tmp_path}/vault"
    engine = engine_at(home, url, credentials=credentials)
    await there_and_back(engine, tmp_path)
    # Whoever has another key is not let in; a server with another key is not believed.
    stranger = Credentials(ssh_key=(tmp_path / "sshd" / "stranger").read_text())
    with pytest.raises((Forbidden, Unavailable)):
        await engine_at(home, url, credentials=stranger).stored()
    known = home.state / "servers" / "repo_test.known_hosts"
    known.write_text(f"[127.0.0.1]:{sshd} {(tmp_path / 'sshd' / 'stranger.pub').read_text()}")
    with pytest.raises(LamellaError):
        await engine.stored()


@asynccontextmanager
async def wired(port: int) -> AsyncIterator[Wire]:
    wire = Wire(port)
    server = await wire.open()
    yield wire
    server.close()


async def test_a_line_to_sftp_that_is_cut_ends_the_backup_and_the_next_one_is_whole(sshd: int, tmp_path: Path) -> None:
    home = home_in(tmp_path / "home")
    credentials = Credentials(ssh_key=(tmp_path / "sshd" / "user").read_text())
    async with wired(sshd) as wire:
        url = f"sftp://{getpass.getuser()}@127.0.0.1:{wire.port}{tmp_path}/vault"
        engine = engine_at(home, url, credentials=credentials)
        await engine.create()
        source = content(tmp_path / "disk", SIZE)
        table = tables.everything(SIZE, [Extent(offset=0, length=SIZE)], 1000)
        wire.left = 4 * MIB
        with pytest.raises(Unavailable, match="cannot be reached"):
            await keep(engine, home, source, table, a_note("half"))
        with pytest.raises(Unavailable):
            await engine.stored()
        wire.left = None
        assert await engine.stored() == []
        whole = await keep(engine, home, source, table, a_note("whole"))
        assert (await engine.check(100)).problems == []
        await bring(engine, home, whole.engine_id, tmp_path / "back", table)
    assert (tmp_path / "back").read_bytes() == source.read_bytes()


async def test_a_backup_to_s3_waits_for_a_line_that_is_cut(s3: int, tmp_path: Path) -> None:
    home = home_in(tmp_path / "home")
    credentials = Credentials(access_key=ACCESS, secret_key=SECRET, region="us-east-1")
    async with wired(s3) as wire:
        engine = engine_at(home, f"s3+http://127.0.0.1:{wire.port}/vault/of/lamella", credentials=credentials)
        await engine.create()
        source = content(tmp_path / "disk", SIZE)
        table = tables.everything(SIZE, [Extent(offset=0, length=SIZE)], 1000)
        wire.left = 4 * MIB
        backing_up = asyncio.create_task(keep(engine, home, source, table, a_note("patient")))
        while not wire.cut:
            assert not backing_up.done()
            await asyncio.sleep(0.02)
        await asyncio.sleep(2)
        assert not backing_up.done()
        wire.left = None
        done = await backing_up
        assert (await engine.check(100)).problems == []
        await bring(engine, home, done.engine_id, tmp_path / "back", table)
    assert (tmp_path / "back").read_bytes() == source.read_bytes()


async def test_nothing_secret_is_on_a_command_line(tmp_path: Path) -> None:
    home = home_in(tmp_path / "home")
    credentials = Credentials(access_key=ACCESS, secret_key=SECRET)
    engine = engine_at(home, "s3://127.0.0.1/vault", credentials=credentials)
    argv, environment, secret = engine.mounting(tmp_path / "mount")
    assert SECRET not in " ".join(argv) and secret.decode() not in " ".join(argv)
    assert secret.decode() not in "".join(environment.values())
