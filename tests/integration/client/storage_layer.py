"""Control over a real store behind the real API, in a thread of its own; only the host under it has its storage in memory."""

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

from tests.storage_host import StorageHost

from lamella.api.app import create_app
from lamella.api.serve import serve
from lamella.control.layer import Layer
from lamella.model.image import Artifact, ArtifactKind, ImageConfig, ImageSpec, ImageStatus
from lamella.model.image import Layer as ImageLayer
from lamella.model.resource import new_resource
from lamella.store.database import open_store

COMMAND = str(Path(sys.executable).with_name("lamella"))
DIGEST = "sha256:" + "a" * 64


class StorageServed:
    """A layer that answers at ``path``, with the image ``box``."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "lamellad.sock"
        self.url = f"unix://{self.path}"
        self.database = f"sqlite:///{directory}/lamella.db"
        self.host = StorageHost()
        self.environment = {**os.environ, "LAMELLA_HOST": self.url, "NO_COLOR": "1", "COLUMNS": "140"}
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        store = open_store(self.database)
        await store.open()
        layer = Layer(store, role="all", seed="lamella-test")
        await layer.open()
        status = ImageStatus(
            digest=DIGEST,
            architecture="amd64",
            config=ImageConfig(command=["sh"]),
            layers=[ImageLayer(diff_id=DIGEST, size=1)],
            artifacts=[Artifact(kind=ArtifactKind.DISK, digest=DIGEST, size=1, stored=1)],
        )
        await store.write(lambda tx: tx.insert(new_resource("image", "box", ImageSpec(source="box"), status)))
        id = await layer.desk.register("alpha", await self.host.facts(), "")
        layer.connect_host(id, self.host)
        self.host.act(layer.desk, id)
        ready = asyncio.Event()
        self._server = asyncio.create_task(serve(create_app(layer), uds=self.path, ready=ready, deadline=1))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait({self._server, waiting}, return_when=asyncio.FIRST_COMPLETED)
        self._up.set()
        await asyncio.gather(self._server, return_exceptions=True)
        waiting.cancel()
        await self.host.stop()
        await layer.close()
        await store.close()

    def start(self) -> None:
        self._thread.start()
        assert self._up.wait(90)
        assert not self._server.done(), self._server.exception()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._server.cancel)
        self._thread.join(90)
        assert not self._thread.is_alive()

    def lamella(self, *words: str, input: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            [COMMAND, *words], input=input, capture_output=True, timeout=90, env=self.environment, check=False
        )

    def out(self, *words: str, input: bytes = b"") -> str:
        done = self.lamella(*words, input=input)
        assert done.returncode == 0, done
        return done.stdout.decode()

    def fails(self, *words: str) -> str:
        """What is said on standard error, in at most three lines."""
        done = self.lamella(*words)
        said = done.stderr.decode()
        assert done.returncode in (1, 2, 125) and not done.stdout and len(said.splitlines()) <= 3, done
        assert "Traceback" not in said and said.startswith("lamella: ")
        return said
