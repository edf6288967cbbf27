"""A small Linux in a bare QEMU that may open nothing: another user, its monitor and console given to it. The guest is a shell."""

import base64
import os
import select
import shutil
import socket
import stat
import subprocess
import time
from pathlib import Path

from lamella.host.compute.microvm import initramfs
from lamella.host.compute.microvm.kernel import KernelTree, fetch_kernel
from lamella.host.compute.microvm.modules import ModuleTree
from lamella.host.compute.qemu.launch import SANDBOX, listening
from lamella.host.linux import binaries

REPOSITORY = Path(__file__).resolve().parents[3]
NOBODY = 65534

_MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_mem", "virtio_balloon", "ext4")
_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev
while read m; do insmod /modules/$m; done < /modules/list
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo -onlcr
echo; echo shell-ready
while read -r line; do
  echo $line | base64 -d > /command
  . /command </dev/null 2>&1
  echo; echo done
done
"""


def make_guest(directory: Path, extra: tuple[str, ...] = ()) -> tuple[Path, Path]:
    """Kernel and initramfs of a guest that is a shell on its serial line."""
    tree: KernelTree = fetch_kernel(REPOSITORY / ".lamella" / "boot" / "kernel")
    busybox = shutil.which("busybox")
    assert busybox is not None
    modules = ModuleTree(tree.modules).ordered([(name, "") for name in (*_MODULES, *extra)], set())
    archive = initramfs.archive(
        [
            *(initramfs.directory(name) for name in ("bin", "dev", "modules", "proc", "sys", "mnt")),
            initramfs.Entry(path="dev/console", mode=stat.S_IFCHR | 0o600, device=(5, 1)),
            initramfs.file("bin/busybox", Path(busybox).read_bytes(), 0o755),
            initramfs.file("init", _INIT.encode(), 0o755),
            initramfs.file("modules/list", "".join(f"{module.name}.ko\n" for module in modules).encode()),
            *(initramfs.file(f"modules/{module.name}.ko", module.content) for module in modules),
        ]
    )
    kernel, image = directory / "kernel", directory / "initramfs"
    kernel.write_bytes(tree.image.read_bytes())
    image.write_bytes(archive)
    kernel.chmod(0o644)
    image.chmod(0o644)
    return kernel, image


class BareQemu:
    """QEMU as another user that has no capability, with *arguments* beside its monitor (``monitor``) and serial line."""

    # One thread for all processors, as our machines have that can be given more.
    THREADS = "single"

    def __init__(self, directory: Path, arguments: list[str], files: tuple[int, ...] = ()) -> None:
        """*files* are descriptors that it inherits."""
        self.directory = directory
        self.monitor = directory / "monitor"
        monitor = listening(self.monitor)
        self.serial, theirs = socket.socketpair()
        self.said = b""
        descriptors = {monitor.fileno(), theirs.fileno(), *files}
        self.errors = directory / "errors"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [
                    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"),
                    *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"),
                    *("-sandbox", SANDBOX),
                    *(
                        "-machine",
                        "q35,vmport=off,smm=off",
                        "-accel",
                        f"tcg,thread={self.THREADS},tb-size=64",
                        "-cpu",
                        "max",
                    ),
                    *("-chardev", f"socket,id=monitor,fd={monitor.fileno()},server=on,wait=off"),
                    *("-mon", "chardev=monitor,mode=control"),
                    *("-chardev", f"socket,id=console,fd={theirs.fileno()}", "-serial", "chardev:console"),
                    *arguments,
                ],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
            )
        monitor.close()
        theirs.close()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.serial.close()

    def files(self) -> int:
        """How many descriptors QEMU has open."""
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())


class ShellGuest(BareQemu):
    """:class:`BareQemu` with the small Linux."""

    def __init__(self, directory: Path, boot: tuple[Path, Path], arguments: list[str], line: str = "") -> None:
        tsc = subprocess.run([binaries.own("lamella-tsc")], capture_output=True, text=True, check=True, timeout=90)
        words = f"console=ttyS0 quiet panic=-1 no_timer_check tsc=reliable tsc_early_khz={int(tsc.stdout)} {line}"
        files = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in boot]
        try:
            kernel, image = (f"/proc/self/fd/{fd}" for fd in files)
            super().__init__(
                directory, ["-kernel", kernel, "-initrd", image, "-append", words, *arguments], tuple(files)
            )
        finally:
            for fd in files:
                os.close(fd)

    def wait_shell(self, timeout: float = 90) -> None:
        self._until(b"\nshell-ready\n", timeout)
        self.run("true")

    def run(self, command: str, timeout: float = 90) -> str:
        """What *command* prints in the guest."""
        self.said = b""
        self.serial.sendall(base64.b64encode(command.encode()) + b"\n")
        text = self._until(b"\ndone\n", timeout)
        return text[: text.index(b"\ndone\n")].decode(errors="replace").strip()

    def wait_for(self, command: str, expected: str, timeout: float = 90) -> None:
        """Return when *command* prints *expected* in the guest."""
        end = time.monotonic() + timeout
        while (said := self.run(command)) != expected:
            assert time.monotonic() < end, f"{command}: {said!r}, not {expected!r}"
            time.sleep(0.2)

    def _until(self, mark: bytes, timeout: float) -> bytes:
        end = time.monotonic() + timeout
        while mark not in self.said:
            left = end - time.monotonic()
            ready, _, _ = select.select([self.serial], [], [], max(0, left))
            if not ready:
                raise TimeoutError(f"the guest did not say {mark!r}: {self.said[-3000:]!r}; {self.errors.read_text()}")
            data = self.serial.recv(65536)
            if not data:
                raise EOFError(f"QEMU ended: {self.errors.read_text()}")
            self.said += data
        return self.said


class ManyThreads(ShellGuest):
    """A thread for each processor: QEMU 7.2 can take one out then (not with one thread), and must not be given one back."""

    THREADS = "multi"
