"""From another machine: TLS with a client certificate, both faces and the command."""

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from process_layer import ProcessLayer

import lamella
from conftest import Served
from lamella.api.app import create_app
from lamella.api.identity import Identity
from lamella.api.serve import serve
from lamella.model.errors import Unavailable
from lamella.model.requests import Principal
from lamella.wire.certificates import Authority
from lamella.wire.listener import bind_tcp


class Everybody(Identity):
    """Who may do what is the API's own matter; here it is about the way there."""

    def of(self, peer: object) -> Principal:
        assert peer is not None
        return Principal(name="test:remote", admin=True)


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    authority = Authority.open(tmp_path)
    bundle, mine = authority.issue("control", "control"), authority.issue("host", "alpha")
    for name, text in (("key", mine.key), ("crt", mine.certificate), ("ca", mine.authority)):
        (tmp_path / f"mine.{name}").write_text(text)
    monkeypatch.setenv("LAMELLA_CERT", str(tmp_path / "mine.crt"))
    monkeypatch.setenv("LAMELLA_KEY", str(tmp_path / "mine.key"))
    monkeypatch.setenv("LAMELLA_CA", str(tmp_path / "mine.ca"))
    probe = bind_tcp("127.0.0.1", 0)
    port: int = probe.getsockname()[1]
    probe.close()
    up, ends = threading.Event(), []

    async def main() -> None:
        root = tmp_path / "root"
        root.mkdir()
        layer = ProcessLayer(root)
        await layer.open()
        ready = asyncio.Event()
        app = create_app(layer, identity=Everybody())
        server = asyncio.create_task(
            serve(app, tcp=("127.0.0.1", port), tls=bundle.server_context(), ready=ready, deadline=1)
        )
        loop = asyncio.get_running_loop()
        ends.append(lambda: loop.call_soon_threadsafe(server.cancel))
        await ready.wait()
        up.set()
        await asyncio.gather(server, return_exceptions=True)
        await layer.close()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert up.wait(90)
    yield f"https://127.0.0.1:{port}"
    ends[0]()
    thread.join(90)


async def test_both_faces_over_tls(remote: str) -> None:
    data = os.urandom(2 << 20)
    async with lamella.connect(remote) as here, here.run("debian:12", command=["sleep", "100"]) as box:
        assert (await box.exec("cat", input=data)).stdout == data
        await box.write_file("/file", data)
        assert await box.read_file("/file") == data

    def there() -> None:
        with lamella.connect_sync(remote) as here, here.run("debian:12", command=["sleep", "100"]) as box:
            assert box.exec("cat", input=data).stdout == data

    await asyncio.to_thread(there)


def test_the_command_over_tls(remote: str, served: Served) -> None:
    environment = {name: os.environ[name] for name in ("LAMELLA_CERT", "LAMELLA_KEY", "LAMELLA_CA")}
    done = served.lamella(
        "run", "--rm", "-i", "debian:12", "cat", input=b"x" * (1 << 20), LAMELLA_HOST=remote, **environment
    )
    assert (done.returncode, len(done.stdout)) == (0, 1 << 20), done.stderr


def test_a_daemon_that_cannot_prove_itself_is_refused(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAMELLA_CA")
    with pytest.raises(Unavailable, match="certificate"):
        lamella.connect_sync(remote).about()


def test_a_caller_without_a_certificate_is_refused(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAMELLA_CERT")
    with pytest.raises(Unavailable):
        lamella.connect_sync(remote).about()
