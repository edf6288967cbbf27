"""libvirt as a peer: its daemons in namespaces of their own, over directories that nobody else sees, and one domain."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import timed
from tests.house import named_netns

START = """
set -e
mount --make-rprivate /
for place in /run/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt /etc/libvirt/qemu; do
  [ -d $place ] && mount -t tmpfs -o mode=0755 tmpfs $place
done
printf 'user="root"\\ngroup="root"\\nsecurity_driver="none"\\nnamespaces=[]\\ncgroup_controllers=[]\\n' >"$SCRATCH/qemu.conf"
mount --bind "$SCRATCH/qemu.conf" /etc/libvirt/qemu.conf
virtlogd -p "$SCRATCH/virtlogd.pid" &
exec libvirtd -p "$SCRATCH/libvirtd.pid"
"""

DOMAIN = """
<domain type='qemu'><name>bench</name><memory unit='MiB'>{memory}</memory><vcpu>{cpus}</vcpu>
<os><type arch='x86_64' machine='{board}'>hvm</type></os><features><acpi/></features><cpu mode='maximum'/>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{disk}'/><target dev='vda' bus='virtio'/></disk>
<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{seed}'/><target dev='vdb' bus='virtio'/><readonly/></disk>
<interface type='user'><model type='virtio'/></interface>
<serial type='pty'/><console type='pty'/>
<channel type='unix'><target type='virtio' name='org.lamella.agent'/></channel>
<graphics type='vnc' port='-1' autoport='yes' listen='127.0.0.1'/><video><model type='vga'/></video>
<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng><memballoon model='virtio'/>
</devices></domain>
"""


class Libvirt:
    """A running libvirtd, reached by ``virsh`` in its namespaces."""

    def __init__(self, daemon: int, scratch: Path) -> None:
        self._enter = ["nsenter", f"--mount=/proc/{daemon}/ns/mnt", f"--net=/proc/{daemon}/ns/net"]
        self._scratch = scratch

    def virsh(self, *arguments: str, check: bool = True) -> None:
        done = subprocess.run(
            [*self._enter, "virsh", "-q", "-c", "qemu:///system", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if check and done.returncode:
            raise RuntimeError(f"virsh {arguments[0]}: {done.stderr}")

    def define(self, *, disk: Path, seed: Path, cpus: int, memory: int, board: str) -> None:
        """*memory* in MiB."""
        text = DOMAIN.format(disk=disk, seed=seed, cpus=cpus, memory=memory, board=board)
        (self._scratch / "domain.xml").write_text(text)
        self.virsh("define", str(self._scratch / "domain.xml"))

    def start(self) -> float:
        """Seconds of ``virsh start``; the domain is destroyed afterwards."""
        seconds = timed(lambda: self.virsh("start", "bench"))
        self.virsh("destroy", "bench")
        return seconds


@contextmanager
def running() -> Iterator[Libvirt | None]:
    """A libvirt, or ``None`` where none is installed."""
    if shutil.which("libvirtd") is None or shutil.which("virsh") is None:
        yield None
        return
    with (
        tempfile.TemporaryDirectory(prefix="lamella-libvirt-", dir="/var/tmp") as folder,
        named_netns("lamella-libvirt") as netns,
    ):
        scratch = Path(folder)
        with (scratch / "log").open("wb") as log:
            daemon = subprocess.Popen(
                ["unshare", "--mount", "nsenter", f"--net=/run/netns/{netns}", "sh", "-c", START],
                env={**os.environ, "SCRATCH": folder}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        peer = Libvirt(daemon.pid, scratch)
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    peer.virsh("list")
                    break
                except RuntimeError:
                    if time.monotonic() > deadline or daemon.poll() is not None:
                        raise RuntimeError((scratch / "log").read_text()) from None
                    time.sleep(0.2)
            yield peer
        finally:
            with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
                peer.virsh("destroy", "bench", check=False)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGTERM)
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(daemon.pid, signal.SIGKILL)
                daemon.wait()
            left = subprocess.run(["ip", "netns", "pids", netns], capture_output=True, text=True, check=True).stdout
            for pid in left.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
