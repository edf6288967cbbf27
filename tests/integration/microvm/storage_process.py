"""A storage process of a test's own: one raw file, served as a file by FUSE, that can be killed and started again."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path


class StorageProcess:
    """Serves *backing* at *file*, which is a regular file of its size while it runs."""

    def __init__(self, backing: Path, file: Path) -> None:
        self.backing = backing
        self.file = file
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.file.touch()
        node = f"driver=file,node-name=node,filename={self.backing},discard=unmap"
        export = f"type=fuse,id=export,node-name=node,mountpoint={self.file},writable=on,growable=on,allow-other=auto"
        self.process = subprocess.Popen(
            ["qemu-storage-daemon", "--blockdev", node, "--export", export], stdin=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 90
        while not os.path.ismount(self.file):
            assert self.process.poll() is None and time.monotonic() < deadline, "the storage process did not start"
            time.sleep(0.02)

    def kill(self) -> None:
        """As a crash would; what is left of the mount is taken away."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(90)
            self.process = None
        with contextlib.suppress(subprocess.CalledProcessError):
            subprocess.run(["umount", "-l", str(self.file)], check=True, timeout=90, stderr=subprocess.DEVNULL)
