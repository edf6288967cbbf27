"""A small real GlusterFS for tests: one glusterd with its bricks in a network namespace, for it refuses bricks at 127.0.0.1.

Everything of it runs in that namespace, so that what is left at the end is found by asking who does.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.house import named_netns

ADDRESS = "10.99.0.1"
START = 40.0
# Where its command finds it: the option for another place makes glusterd 10 answer another protocol there.
SOCKET = Path("/run/glusterd.socket")
_VOLFILE = """\
volume management
    type mgmt/glusterd
    option working-directory {home}/state
    option run-directory {home}/run
    option transport-type socket
    option transport.address-family inet
    option transport.socket.bind-address {address}
    option ping-timeout 0
    option event-threads 1
end-volume
"""


def missing() -> str:
    """Why no GlusterFS can be started here, or nothing."""
    if not Path("/dev/fuse").exists():
        return "there is no /dev/fuse"
    if SOCKET.exists():
        return f"a glusterd runs on this machine ({SOCKET})"
    lacking = [tool for tool in ("glusterd", "gluster", "glusterfs") if shutil.which(tool) is None]
    return f"{', '.join(lacking)} not installed: apt install glusterfs-server glusterfs-client" if lacking else ""


class Gluster:
    """``inside`` goes before a command that has to reach the servers."""

    def __init__(self, home: Path, netns: str) -> None:
        self.home = home
        self.netns = netns
        self.inside = ["nsenter", f"--net=/run/netns/{netns}"]
        self._glusterd: subprocess.Popen[bytes] | None = None

    def run(self, *command: str, check: bool = True) -> str:
        done = subprocess.run([*self.inside, *command], capture_output=True, text=True, timeout=90, check=False)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def tell(self, *words: str, check: bool = True) -> str:
        return self.run("gluster", "--mode=script", *words, check=check)

    def start(self) -> None:
        for name in ("state", "run", "log", "bricks"):
            (self.home / name).mkdir(parents=True)
        (self.home / "glusterd.vol").write_text(_VOLFILE.format(home=self.home, address=ADDRESS))
        self._glusterd = subprocess.Popen(
            [
                *(*self.inside, "glusterd", "--no-daemon", "-f", f"{self.home}/glusterd.vol"),
                *("-l", f"{self.home}/log/glusterd", "-p", f"{self.home}/run/pid"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START
        while "Number of Peers" not in self.tell("peer", "status", check=False):
            assert time.monotonic() < deadline and self._glusterd.poll() is None, self.log()
            time.sleep(0.1)

    def volume(self, name: str, copies: int = 2) -> str:
        """A started volume, as a pool's path names it."""
        bricks = [f"{ADDRESS}:{self.home}/bricks/{name}{number}" for number in range(copies)]
        kind = ["replica", str(copies)] if copies > 1 else []
        self.tell("volume", "create", name, *kind, *bricks, "force")
        self.tell("volume", "set", name, "network.ping-timeout", "5")
        self.tell("volume", "start", name)
        return f"{ADDRESS}:/{name}"

    def log(self) -> str:
        return (self.home / "log" / "glusterd").read_text(errors="replace")[-4000:]

    def pids(self) -> list[int]:
        done = subprocess.run(["ip", "netns", "pids", self.netns], capture_output=True, text=True, check=True)
        return [int(word) for word in done.stdout.split()]

    def stop(self) -> None:
        deadline = time.monotonic() + 90
        while pids := self.pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self._glusterd is not None:
                self._glusterd.poll()
            assert time.monotonic() < deadline, pids
            time.sleep(0.05)
        if self._glusterd is not None:
            self._glusterd.wait(90)
        SOCKET.unlink(missing_ok=True)


@contextlib.contextmanager
def small_gluster(home: Path) -> Iterator[Gluster]:
    """A glusterd in a namespace of its own, gone afterwards."""
    with named_netns(f"lamella-gluster{os.getpid()}") as netns:
        subprocess.run(["ip", "-n", netns, "address", "add", f"{ADDRESS}/32", "dev", "lo"], check=True)
        gluster = Gluster(home, netns)
        try:
            gluster.start()
            yield gluster
        finally:
            gluster.stop()
            shutil.rmtree(home, ignore_errors=True)
