"""Full machines: a Debian from nothing to its agent answering against bare QEMU, and a start against libvirt's."""

import asyncio
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks import libvirt
from benchmarks.measure import Row, absent, compared, pairs, timed
from tests.house import LayerUnderTest

from lamella.host.compute.guest.client import GuestClient
from lamella.host.compute.vm import arguments
from lamella.model.stream import ExecSpec

SIZE = ("--cpu", "1", "--memory", "512MiB")
RUN = ("--isolation", "vm", *SIZE, "debian:12")


def rows(made: LayerUnderTest, disk: Path, runs: int) -> list[Row]:
    """*disk* is a raw disk that ``image build --disk`` made."""
    made.lamella("image", "import", str(disk), "--name", "debian:12", timeout=300)
    with tempfile.TemporaryDirectory(prefix="lamella-bench-", dir="/var/tmp") as scratch:
        bare = Bare(made, Path(scratch))
        return [_start(made, bare, Path(scratch), runs), _cold(made, bare, runs)]


def _cold(made: LayerUnderTest, bare: "Bare", runs: int) -> Row:
    number = 0

    def ours() -> float:
        nonlocal number
        number += 1
        name = f"cold{number}"

        def until_it_answers() -> None:
            made.lamella("run", "-d", "--name", name, *RUN)
            while made.lamella("exec", name, "--", "true", check=False, timeout=300).returncode != 0:
                time.sleep(0.1)

        seconds = timed(until_it_answers)
        made.lamella("rm", "--force", name)
        return seconds

    mine, peer = pairs(ours, bare.boot, runs=max(3, runs // 4), warm=0)
    what = "Debian VM, cold until its agent has run a command, against bare QEMU with the same disk and devices"
    return compared(what, mine, peer, bar="1.1 ×", aim="1.03 ×")


def _start(made: LayerUnderTest, bare: "Bare", scratch: Path, runs: int) -> Row:
    made.lamella("create", "--name", "again", *RUN)

    def ours() -> float:
        seconds = timed(lambda: made.lamella("start", "again"))
        made.lamella("kill", "again")
        made.wait_phase("again", "stopped")
        return seconds

    what = "request to QEMU running: `lamella start` of a VM, against `virsh start` of an equal domain"
    with libvirt.running() as peer:
        if peer is None:
            return absent(what, "libvirt", None, bar="0.6 ×", aim="0.3 ×")
        disk, seed = bare.clone(scratch / "libvirt.qcow2"), bare.seed
        peer.define(disk=disk, seed=seed, cpus=1, memory=512, board=bare.board)
        mine, theirs = pairs(ours, peer.start, runs=runs)
    made.lamella("rm", "--force", "again")
    return compared(what, mine, theirs, bar="0.6 ×", aim="0.3 ×")


class Bare:
    """The command line of a running machine of ours, made to run alone: paths for descriptors, a user-mode NIC for the TAP."""

    def __init__(self, made: LayerUnderTest, scratch: Path) -> None:
        made.lamella("run", "-d", "--name", "model", *RUN)
        shown = made.show("model")
        self.board = shown["status"]["board"]
        words = Path(f"/proc/{shown['status']['pid']}/cmdline").read_bytes().decode().split("\0")[:-1]
        state = made.home / "state" / "vm" / shown["id"]
        machine = json.loads((state / "machine.json").read_bytes())
        self._base = Path(machine["disk"]["base"]["path"])
        self._size = machine["disk"]["size"]
        self.seed = Path(shutil.copy(state / "seed.img", scratch / "seed.img"))
        self._disk, self._agent = scratch / "bare.qcow2", scratch / "agent.sock"
        made.lamella("rm", "--force", "model")
        changes = {
            f"fd={arguments.MONITOR},server=on": f"path={scratch}/monitor.sock,server=on",
            f"fd={arguments.AGENT},server=on": f"path={self._agent},server=on",
            f"fd={arguments.QGA},server=on": f"path={scratch}/qga.sock,server=on",
            f"fd={arguments.CONSOLE},server=on": f"path={scratch}/console.sock,server=on",
            f"/dev/fdset/{arguments.ROOT}": str(self._disk),
            f"/dev/fdset/{arguments.BASE}": str(self._base),
            f"/dev/fdset/{arguments.SEED}": str(self.seed),
            f"tap,id=nic,fd={arguments.TAP}": "user,id=nic",
        }
        self._command: list[str] = []
        rest = iter(words)
        for word in rest:
            if word in ("-sandbox", "-add-fd", "-L"):
                next(rest)
            elif word in ("-object", "-vnc"):
                # The screen's certificates lie in the room: bare QEMU has a screen that nobody is let in to.
                value = next(rest)
                kept = "none" if word == "-vnc" else value
                self._command += [] if value.startswith(("tls-creds", "secret")) else [word, kept]
            elif word != "-S":
                for old, new in changes.items():
                    word = word.replace(old, new)
                self._command.append(word)

    def clone(self, path: Path) -> Path:
        """An empty layer over the image's disk, as the pool makes one."""
        path.unlink(missing_ok=True)
        options = "cluster_size=128k,extended_l2=on"
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "-b", self._base, "-F", "raw", path,
             str(self._size)],
            check=True,
        )  # fmt: skip
        return path

    def boot(self) -> float:
        """Seconds from making the disk until the agent has run a command."""
        self._agent.unlink(missing_ok=True)
        began = time.perf_counter()
        self.clone(self._disk)
        qemu = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            while not self._agent.exists():
                if qemu.poll() is not None:
                    assert qemu.stderr is not None
                    raise RuntimeError(qemu.stderr.read().decode())
                time.sleep(0.001)
            asyncio.run(self._run())
            return time.perf_counter() - began
        finally:
            qemu.kill()
            qemu.wait()

    async def _run(self) -> None:
        guest = await GuestClient.connect(self._agent, timeout=300)
        stream = await guest.exec(ExecSpec(command=["true"]))
        while await stream.receive() is not None:
            pass
        await guest.close()
