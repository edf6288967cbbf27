"""Incus as a peer: a daemon of its own in namespaces of its own, with the same small root filesystem."""

import contextlib
import io
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.house import UnixHTTP
from benchmarks.measure import timed
from tests.house import busybox_root, named_netns

START = """
set -e
mount --make-rprivate /
umount -l /sys/fs/cgroup/unified 2>/dev/null || true
# A /sys that shows the links of this network namespace, with the cgroups kept.
mkdir "$INCUS_DIR/groups"
mount --rbind /sys/fs/cgroup "$INCUS_DIR/groups"
mount -t sysfs sysfs /sys
mount --rbind "$INCUS_DIR/groups" /sys/fs/cgroup
exec incusd --group root --logfile "$INCUS_DIR/log"
"""


class Incus:
    """A running incusd. All times are seconds."""

    def __init__(self, directory: Path) -> None:
        self._environment = {**os.environ, "INCUS_DIR": str(directory), "INCUS_CONF": str(directory / "conf")}
        self._environment["PATH"] += ":/usr/libexec/incus:/opt/incus/bin"
        self.client = UnixHTTP(directory / "unix.socket")
        self._fingerprint = ""

    def command(self, *arguments: str) -> None:
        subprocess.run(
            ["incus", *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=120,
        )

    def prepare(self, scratch: Path) -> None:
        """A pool, a network and the image ``busybox``."""
        subprocess.run(
            ["incus", "admin", "init", "--minimal"], env=self._environment, check=True, capture_output=True, timeout=120
        )
        root = busybox_root(scratch / "busybox.tar")
        with tarfile.open(scratch / "metadata.tar", "w") as tar:
            data = f"architecture: {os.uname().machine}\ncreation_date: 1700000000\nproperties: {{}}\n".encode()
            info = tarfile.TarInfo("metadata.yaml")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        unpacked = scratch / "image"
        (unpacked / "rootfs").mkdir(parents=True)
        subprocess.run(["tar", "-xf", root, "-C", unpacked / "rootfs"], check=True)
        (unpacked / "rootfs/sbin").mkdir(exist_ok=True)
        (unpacked / "rootfs/sbin/init").write_text("#!/bin/sh\nexec sleep 100000\n")
        (unpacked / "rootfs/sbin/init").chmod(0o755)
        subprocess.run(["tar", "-xf", scratch / "metadata.tar", "-C", unpacked], check=True)
        subprocess.run(["tar", "-czf", scratch / "image.tar.gz", "-C", unpacked, "."], check=True)
        self.command("image", "import", str(scratch / "image.tar.gz"), "--alias", "busybox")
        self._fingerprint = self.client.call("GET", "/1.0/images/aliases/busybox")["metadata"]["target"]

    def _done(self, answer: dict[str, str]) -> None:
        result = self.client.call("GET", f"{answer['operation']}/wait")
        if (result.get("metadata") or {}).get("status_code") != 200:
            raise RuntimeError(f"incus: {result}")

    def _make(self, name: str) -> None:
        body = {
            "name": name,
            "type": "container",
            "source": {"type": "image", "fingerprint": self._fingerprint},
            "start": True,
        }
        self._done(self.client.call("POST", "/1.0/instances", body))

    def _remove(self, name: str) -> None:
        self.command("delete", "--force", name)

    @contextmanager
    def instance(self, name: str) -> Iterator[None]:
        self._make(name)
        try:
            yield
        finally:
            self._remove(name)

    def create(self) -> float:
        name = f"c{uuid.uuid4().hex[:8]}"
        seconds = timed(lambda: self._make(name))
        self._remove(name)
        return seconds

    def exec(self, name: str) -> float:
        return timed(lambda: self.command("exec", name, "--", "true"))

    def list(self) -> float:
        return timed(lambda: self.command("list"))

    def get(self, name: str) -> float:
        seconds = sorted(timed(lambda: self.client.call("GET", f"/1.0/instances/{name}")) for _ in range(50))
        return seconds[25]


@contextmanager
def running() -> Iterator[Incus | None]:
    """An Incus, or ``None`` where none is installed."""
    if not Path("/usr/libexec/incus/incusd").exists() and shutil.which("incusd") is None:
        yield None
        return
    with (
        tempfile.TemporaryDirectory(prefix="lamella-incus-", dir="/var/tmp") as scratch,
        named_netns("lamella-incus") as netns,
    ):
        # Its containers, of other uids, pass through.
        Path(scratch).chmod(0o711)
        directory = Path(scratch) / "var"
        directory.mkdir()
        incus = Incus(directory)
        daemon = subprocess.Popen(
            ["unshare", "--mount", "nsenter", f"--net=/run/netns/{netns}", "sh", "-c", START],
            env=incus._environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while not (directory / "unix.socket").exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            incus.prepare(Path(scratch))
            yield incus
        finally:
            with Path(os.devnull).open("wb") as nowhere:
                subprocess.run(
                    ["incus", "admin", "shutdown"],
                    env=incus._environment,
                    stdout=nowhere,
                    stderr=nowhere,
                    check=False,
                    timeout=60,
                )
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(daemon.pid, signal.SIGKILL)
                daemon.wait()
            # Its dnsmasq outlives it.
            left = subprocess.run(["ip", "netns", "pids", netns], capture_output=True, text=True, check=True).stdout
            for pid in left.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
