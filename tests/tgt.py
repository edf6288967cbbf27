"""A small real iSCSI target for tests: tgtd on 127.0.0.1 with files as LUNs, a child of this process."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

NAME = "iqn.2026-11.test.lamella:pool"


def missing() -> str:
    """Why none can be started here, or nothing."""
    lacking = [tool for tool in ("tgtd", "tgtadm", "iscsi-ls") if shutil.which(tool) is None]
    return f"{', '.join(lacking)} not installed: apt install tgt libiscsi-bin" if lacking else ""


class Tgt:
    """``path`` is what a pool of it is called."""

    def __init__(self, home: Path, sockets: str) -> None:
        self.home = home
        self._environment = {**os.environ, "TGT_IPC_SOCKET": f"{sockets}/tgt"}
        self._server: subprocess.Popen[bytes] | None = None
        self.portal = ""

    @property
    def path(self) -> str:
        return f"{self.portal}/{NAME}"

    def tell(self, *words: str, check: bool = True) -> bool:
        done = subprocess.run(
            ["tgtadm", "--lld", "iscsi", *words], env=self._environment, capture_output=True, text=True, timeout=90
        )
        assert not check or done.returncode == 0, f"{words}: {done.stderr}"
        return done.returncode == 0

    def start(self) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.portal = f"127.0.0.1:{listener.getsockname()[1]}"
        with (self.home / "log").open("ab") as log:
            self._server = subprocess.Popen(
                ["tgtd", "-f", "--iscsi", f"portal={self.portal}"],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 90
        while not self.tell("--op", "new", "--mode", "target", "--tid", "1", "-T", NAME, check=False):
            assert time.monotonic() < deadline and self._server.poll() is None, (self.home / "log").read_text()
            time.sleep(0.02)
        self.tell("--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")

    def lun(self, number: int, size: int) -> Path:
        """A new LUN of a sparse file, which is returned."""
        file = self.home / f"lun{number}"
        if not file.exists():
            file.touch()
            os.truncate(file, size)
        self.tell("--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", str(number), "-b", str(file))
        thin = ("--op", "update", "--mode", "logicalunit", "--tid", "1", "--lun", str(number))
        self.tell(*thin, "--params", "thin_provisioning=1")
        return file

    def demand(self, user: str, secret: str) -> None:
        """Let in who knows it, and nobody else."""
        self.tell("--op", "new", "--mode", "account", "--user", user, "--password", secret)
        self.tell("--op", "bind", "--mode", "account", "--tid", "1", "--user", user)

    def stop(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.wait(90)


@contextlib.contextmanager
def small_tgt(home: Path) -> Iterator[Tgt]:
    """A target without LUNs, gone afterwards."""
    home.mkdir(parents=True, exist_ok=True)
    # Its socket's path may not be long.
    with tempfile.TemporaryDirectory(prefix="tgt-") as sockets:
        tgt = Tgt(home, sockets)
        try:
            tgt.start()
            yield tgt
        finally:
            tgt.stop()
            shutil.rmtree(home, ignore_errors=True)
