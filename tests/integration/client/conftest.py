"""The real API on a real Unix socket in a thread of its own, over processes of this machine."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from process_layer import ProcessLayer

from lamella.api.app import create_app
from lamella.api.serve import serve

COMMAND = str(Path(sys.executable).with_name("lamella"))


class Served:
    """A layer that answers at ``path``; ``lamella`` runs the installed command against it."""

    def __init__(self, path: Path, root: Path) -> None:
        self.path = path
        self.root = root
        self.layer: ProcessLayer
        self.url = f"unix://{path}"
        self.environment = {**os.environ, "LAMELLA_HOST": self.url, "NO_COLOR": "1", "COLUMNS": "120"}
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.layer = ProcessLayer(self.root)
        await self.layer.open()
        ready = asyncio.Event()
        self._server = asyncio.create_task(serve(create_app(self.layer), uds=self.path, ready=ready, deadline=1))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait({self._server, waiting}, return_when=asyncio.FIRST_COMPLETED)
        self._up.set()
        await asyncio.gather(self._server, return_exceptions=True)
        waiting.cancel()
        await self.layer.close()

    def start(self) -> None:
        self._thread.start()
        assert self._up.wait(90)
        assert not self._server.done(), self._server.exception()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._server.cancel)
        self._thread.join(90)
        assert not self._thread.is_alive()

    def lamella(
        self, *words: str, input: bytes | None = None, **environment: str
    ) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            [COMMAND, *words],
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            timeout=90,
            env={**self.environment, **environment},
            check=False,
        )

    def begin(self, *words: str, **options: Any) -> "subprocess.Popen[bytes]":
        return subprocess.Popen([COMMAND, *words], env=self.environment, **options)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    root = tmp_path / "instances"
    root.mkdir()
    made = Served(tmp_path / "lamellad.sock", root)
    made.start()
    yield made
    made.stop()
