"""MicroVMs: cold boot until the command runs, against bare QEMU with the same kernel, initramfs, devices and agent."""

import asyncio
import os
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.containers import AT
from benchmarks.house import api
from benchmarks.measure import Row, compared, pairs, timed
from tests.house import LayerUnderTest

from lamella.host.compute.guest.client import GuestClient
from lamella.host.compute.guest.setup import GuestNetwork, GuestProcess, GuestSetup
from lamella.host.compute.microvm import arguments
from lamella.host.compute.microvm.boot import boot_files

SPEC = {
    "image": "busybox", "isolation": "microvm", "command": ["sleep", "100000"], "memory": 256 << 20, "cpu": 1000,
    "nics": [{"network": "default"}], "cold": True,
}  # fmt: skip

NETWORK = GuestNetwork(mac="02:00:00:00:00:01", address="10.0.2.15/24", gateway="10.0.2.2", mtu=1500, interface="eth0")


def rows(made: LayerUnderTest, runs: int) -> list[Row]:
    client = api(made)
    client.call("POST", f"{AT}?wait=120", {"name": "m0", "spec": SPEC})
    pid = client.call("GET", f"{AT}/m0")["status"]["pid"]
    command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
    client.call("DELETE", f"{AT}/m0?force=true&wait=60")
    number = 0

    def ours() -> float:
        nonlocal number
        number += 1
        name = f"m{number}"
        seconds = timed(lambda: client.call("POST", f"{AT}?wait=120", {"name": name, "spec": SPEC}))
        client.call("DELETE", f"{AT}/{name}?force=true&wait=60")
        return seconds

    with tempfile.TemporaryDirectory(prefix="lamella-bench-", dir="/var/tmp") as scratch:
        bare = Bare(command, made, Path(scratch))
        mine, peer = pairs(ours, bare.boot, runs=runs)
    what = "microVM: API request to running, against bare QEMU until the same agent runs the same command"
    return [compared(what, mine, peer, bar="1.25 ×", aim="1.1 ×")]


class Bare:
    """The command line of a running instance of ours, made to run alone: paths for descriptors, a user-mode NIC for the TAP."""

    def __init__(self, command: list[str], made: LayerUnderTest, scratch: Path) -> None:
        boot = boot_files(made.home / "state")
        image = next((made.home / "state").rglob("*.erofs"))
        self._agent = scratch / "agent.sock"
        self._data = scratch / "data.raw"
        changes = {
            arguments.KERNEL: str(boot.kernel),
            arguments.INITRAMFS: str(boot.initramfs),
            f"fd={arguments.MONITOR},server=on": f"path={scratch}/monitor.sock,server=on",
            f"fd={arguments.AGENT},server=on": f"path={self._agent},server=on",
            f"filename=/dev/fdset/{arguments.ROOT},": f"filename={image},",
            f"filename=/dev/fdset/{arguments.DATA},": f"filename={self._data},",
            f"tap,id=net,fd={arguments.TAP}": "user,id=net",
            "stdio,id=console,signal=off": f"file,id=console,path={scratch}/console",
        }
        dropped = {"-sandbox", "-add-fd", "-L"}
        self._command: list[str] = []
        words = iter(command)
        for word in words:
            if word in dropped:
                next(words)
                continue
            for old, new in changes.items():
                word = word.replace(old, new)
            self._command.append(word)

    def boot(self) -> float:
        """Seconds from exec until the command runs."""
        self._data.unlink(missing_ok=True)
        subprocess.run(["truncate", "-s", "8G", self._data], check=True)
        subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=1,lazy_journal_init=1", self._data], check=True)
        self._agent.unlink(missing_ok=True)
        began = time.perf_counter()
        qemu = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            while not self._agent.exists():
                if qemu.poll() is not None:
                    assert qemu.stderr is not None
                    raise RuntimeError(qemu.stderr.read().decode())
                time.sleep(0.001)
            asyncio.run(self._greet())
            return time.perf_counter() - began
        finally:
            qemu.kill()
            qemu.wait()

    async def _greet(self) -> None:
        guest = await GuestClient.connect(self._agent, timeout=60)
        await guest.configure(
            GuestSetup(
                hostname="bare",
                root_serial=arguments.ROOT_SERIAL,
                data_serial=arguments.DATA_SERIAL,
                network=NETWORK,
                nameservers=[],
                pids=4096,
                entropy=os.urandom(64),
                time=datetime.now(UTC),
            )
        )
        await guest.start(
            GuestProcess(
                command=["sleep", "100000"],
                environment={"PATH": "/bin"},
                working_directory="/",
                user="",
                terminal=False,
                stdin=False,
            )
        )
        await guest.close()
