"""MicroVMs: cold boot to the agent answering, against bare QEMU with the same kernel, initramfs and devices."""

import os
import re
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.containers import AT
from benchmarks.house import api
from benchmarks.measure import Row, compared, pairs, timed
from tests.house import LayerUnderTest


def rows(made: LayerUnderTest, runs: int) -> list[Row]:
    client = api(made)
    spec = {
        "image": "busybox", "isolation": "microvm", "command": ["sleep", "100000"], "memory": 256 << 20, "cpu": 1000,
        "nics": [{"network": "default"}],
    }  # fmt: skip
    client.call("POST", f"{AT}?wait=120", {"name": "m0", "spec": spec})
    try:
        pid = client.call("GET", f"{AT}/m0")["status"]["pid"]
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
        with tempfile.TemporaryDirectory(prefix="lamella-bench-", dir="/var/tmp") as scratch:
            bare = Bare(command, pid, Path(scratch))
            number = 0

            def ours() -> float:
                nonlocal number
                number += 1
                name = f"m{number}"
                seconds = timed(lambda: client.call("POST", f"{AT}?wait=120", {"name": name, "spec": spec}))
                client.call("DELETE", f"{AT}/{name}?force=true&wait=60")
                return seconds

            mine, peer = pairs(ours, bare.boot, runs=runs)
    finally:
        client.call("DELETE", f"{AT}/m0?force=true&wait=60")
    return [
        compared(
            "microVM: API request to running (agent answering), against bare QEMU to its agent's first byte",
            mine,
            peer,
            bar="1.25 ×",
            aim="1.1 ×",
        )
    ]


class Bare:
    """The command line of a running instance of ours, made to run alone: paths for descriptors, a user-mode NIC for the TAP."""

    def __init__(self, command: list[str], pid: int, scratch: Path) -> None:
        self._scratch = scratch
        self._agent = scratch / "agent.sock"
        self._command = [self._plain(word, pid) for word in command]

    def _plain(self, word: str, pid: int) -> str:
        raise NotImplementedError

    def boot(self) -> float:
        """Seconds from exec to the first byte of the agent."""
        began = time.perf_counter()
        qemu = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            while True:
                try:
                    peer = socket.socket(socket.AF_UNIX)
                    peer.connect(str(self._agent))
                    break
                except OSError:
                    peer.close()
                    if qemu.poll() is not None:
                        assert qemu.stderr is not None
                        raise RuntimeError(qemu.stderr.read().decode()) from None
                    time.sleep(0.002)
            peer.settimeout(60)
            assert peer.recv(1)
            return time.perf_counter() - began
        finally:
            qemu.kill()
            qemu.wait()


__all__ = ["os", "re", "rows"]
