"""A storage process of a test's own that serves a raw file over NBD and can be killed, and a program that shows a guest's losses."""

import os
import signal
import subprocess
import time
from pathlib import Path


class Served:
    """*backing* on the Unix socket *socket*, as the export *name*."""

    def __init__(self, backing: Path, socket: Path, name: str) -> None:
        self.backing = backing
        self.socket = socket
        self.name = name
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, user: int) -> None:
        self.socket.unlink(missing_ok=True)
        self.socket.parent.mkdir(mode=0o711, exist_ok=True)
        words = [
            *("--blockdev", f"driver=file,node-name=node,filename={self.backing},discard=unmap"),
            *("--nbd-server", f"addr.type=unix,addr.path={self.socket},max-connections=0"),
            *("--export", f"type=nbd,id=export,node-name=node,name={self.name},writable=on"),
        ]
        self.process = subprocess.Popen(["qemu-storage-daemon", *words], stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 90
        while not self.socket.exists():
            assert self.process.poll() is None and time.monotonic() < deadline, "the storage process did not start"
            time.sleep(0.02)
        os.chown(self.socket, user, user)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(90)
            self.process = None


def parallel_writer(directory: Path) -> bytes:
    """``parallel_writer.c``, for any Linux guest."""
    made = directory / "parallel_writer"
    source = Path(__file__).with_name("parallel_writer.c")
    subprocess.run(["gcc", "-O2", "-static", "-pthread", "-o", str(made), str(source)], check=True, timeout=90)
    return made.read_bytes()
