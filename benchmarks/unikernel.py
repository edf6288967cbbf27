"""Unikernels: API request to first output, against bare QEMU with the same kernel and devices until its first output."""

import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.containers import AT
from benchmarks.house import api
from benchmarks.measure import Row, compared, pairs
from tests.house import LayerUnderTest
from tests.integration.unikernel.unikernel_kernels import build_pvh

LINE = "deaf"
SPEC = {
    "image": "uni", "isolation": "unikernel", "memory": 16 << 20, "cpu": 1000, "board": {"command_line": LINE}, "nics": [],
}  # fmt: skip


def rows(made: LayerUnderTest, runs: int) -> list[Row]:
    client = api(made)
    number = 0
    with tempfile.TemporaryDirectory(prefix="lamella-bench-", dir="/var/tmp") as scratch:
        kernel = build_pvh(Path(scratch))
        made.lamella("image", "import", str(kernel), "--name", "uni")

        def ours() -> float:
            nonlocal number
            number += 1
            name = f"u{number}"
            began = time.perf_counter()
            client.call("POST", f"{AT}?wait=30", {"name": name, "spec": SPEC})
            client.request("GET", f"{AT}/{name}/logs?follow=true")
            answer = client.getresponse()
            first = answer.read1(1)
            seconds = time.perf_counter() - began
            assert answer.status == 200 and first, first
            client.close()
            client.call("DELETE", f"{AT}/{name}?force=true&wait=30")
            return seconds

        client.call("POST", f"{AT}?wait=30", {"name": "u0", "spec": SPEC})
        accelerator = client.call("GET", f"{AT}/u0")["status"]["accelerator"]
        client.call("DELETE", f"{AT}/u0?force=true&wait=30")
        mine, peer = pairs(ours, lambda: bare(kernel, accelerator), runs=runs, warm=2)
    what = "unikernel: API request to first output read, against bare QEMU's first output"
    return [compared(what, mine, peer, bar="2.5 ×", aim="1.5 ×")]


def bare(kernel: Path, accelerator: str) -> float:
    """Seconds from exec until the first byte comes out."""
    command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    command += ["-machine", "microvm,rtc=on", "-accel", accelerator, "-cpu", "max"]
    command += ["-smp", "1", "-m", "16M", "-kernel", str(kernel), "-append", LINE, "-serial", "stdio"]
    command += ["-device", "virtio-rng-device", "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-device", "pvpanic"]
    began = time.perf_counter()
    qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert qemu.stdout is not None and qemu.stdout.read(1)
        return time.perf_counter() - began
    finally:
        qemu.kill()
        qemu.wait()
