"""What the benchmarks share: a layer with a small image, and calls to it as fast as a program can make them."""

import http.client
import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.house import LayerUnderTest, busybox_root, layer_in, named_netns


class UnixHTTP(http.client.HTTPConnection):
    """A kept-alive HTTP connection over a Unix socket: the same client for us and for the peers."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))

    def call(self, method: str, path: str, body: object = None) -> Any:
        data = json.dumps(body) if body is not None else None
        self.request(method, path, data, {"Content-Type": "application/json"} if data else {})
        answer = self.getresponse()
        content = answer.read()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {content.decode(errors='replace')}")
        return json.loads(content) if content else None


@contextmanager
def layer() -> Iterator[LayerUnderTest]:
    """A daemon of our own with the image ``busybox``."""
    with TemporaryDirectory(prefix="lamella-bench-", dir="/var/tmp") as scratch, named_netns("lamella-bench") as netns:
        root = busybox_root(Path(scratch) / "busybox.tar")
        with layer_in(Path(scratch) / "home", netns) as made:
            made.lamella("image", "import", str(root), "--name", "busybox")
            yield made


def api(made: LayerUnderTest) -> UnixHTTP:
    return UnixHTTP(made.home / "run" / "lamellad.sock")


def holder(made: LayerUnderTest) -> int:
    """The pid of the process that keeps the layer's namespaces."""
    return int((made.home / "run" / "room").read_text().split()[0])


def in_room(made: LayerUnderTest, *command: str) -> list[str]:
    """*command* in the mount namespace that our daemon's own crun runs in."""
    return ["nsenter", f"--mount=/proc/{holder(made)}/ns/mnt", *command]


def quiet(*command: str, check: bool = True) -> None:
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=check)
