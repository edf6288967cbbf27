"""Warm machines: microVMs that begin as copies, against cold ones and against bare QEMU doing the same restore."""

import asyncio
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.containers import AT
from benchmarks.house import UnixHTTP, api
from benchmarks.measure import Row, Series, compared, pairs, timed
from tests.house import LayerUnderTest

from lamella.host.compute.guest.client import GuestClient
from lamella.host.compute.guest.setup import GuestNetwork, GuestProcess, GuestSetup
from lamella.host.compute.microvm import arguments
from lamella.host.compute.microvm.boot import boot_files
from lamella.host.compute.qemu import memory_file
from lamella.host.linux.spare_tap import spare_tap

MEMORY = 256 << 20
SPEC: dict[str, Any] = {
    "image": "busybox", "isolation": "microvm", "command": ["sleep", "100000"], "memory": MEMORY, "cpu": 1000,
    "nics": [{"network": "default"}],
}  # fmt: skip
COLD = SPEC | {"cold": True}
TEMPLATES = "/v1/projects/default/templates"
MANY = 20
NETWORK = GuestNetwork(mac="02:00:00:00:00:01", address="10.0.2.15/24", gateway="10.0.2.2", mtu=1500, interface="eth0")


def rows(made: LayerUnderTest, runs: int) -> list[Row]:
    maker = Maker(made)
    # Twenty at once are more than two cores are promised.
    made.lamella("host", "set", "--overcommit", "cpu=100")
    # The first of the image boots; the template is there when the second one begins as a copy.
    while not maker.is_copy(SPEC):
        time.sleep(1)
    found = [_against_cold(maker, runs), _against_bare(made, maker, runs)]
    found += _pool(maker, runs)
    found += _many(maker)
    found.append(_fork(maker, max(5, runs // 2)))
    return found


class Maker:
    """Instances with names of their own, each call timed."""

    def __init__(self, made: LayerUnderTest) -> None:
        self.made = made
        self.client = api(made)
        self._number = 0

    def name(self) -> str:
        self._number += 1
        return f"w{self._number}"

    def create(self, spec: dict[str, Any], name: str, client: UnixHTTP | None = None) -> Any:
        return (client or self.client).call("POST", f"{AT}?wait=300", {"name": name, "spec": spec})

    def remove(self, name: str, client: UnixHTTP | None = None) -> None:
        (client or self.client).call("DELETE", f"{AT}/{name}?force=true&wait=120")

    def once(self, spec: dict[str, Any]) -> Callable[[], float]:
        def run() -> float:
            name = self.name()
            seconds = timed(lambda: self.create(spec, name))
            self.remove(name)
            return seconds

        return run

    def is_copy(self, spec: dict[str, Any]) -> bool:
        name = self.name()
        pid = self.create(spec, name)["status"]["pid"]
        copied = "/memfd:memory" in Path(f"/proc/{pid}/maps").read_text()
        self.remove(name)
        return copied


def _against_cold(maker: Maker, runs: int) -> Row:
    warm, cold = pairs(maker.once(SPEC), maker.once(COLD), runs=runs)
    what = "microVM from its image's template: API request to running, against cold"
    return compared(what, warm, cold, bar="0.1 ×", aim="0.05 ×")


def _against_bare(made: LayerUnderTest, maker: Maker, runs: int) -> Row:
    name = maker.name()
    pid = maker.create(SPEC, name)["status"]["pid"]
    command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
    maker.remove(name)
    with tempfile.TemporaryDirectory(prefix="lamella-bench-", dir="/var/tmp") as scratch:
        bare = Restored(command, made, Path(scratch))
        warm, peer = pairs(maker.once(SPEC), bare.begin, runs=runs)
    what = "the same, against bare QEMU that restores the same template until the same agent runs the same command"
    return compared(what, warm, peer, bar="1.6 ×", aim="1.2 ×")


def _pool(maker: Maker, runs: int) -> list[Row]:
    """From a template's pool: until running; and how many are created, used and destroyed a second."""
    recipe = {key: SPEC[key] for key in ("image", "isolation", "memory", "cpu")} | {"warm": 4}
    maker.client.call("POST", f"{TEMPLATES}?wait=300", {"name": "pool", "spec": recipe})
    spec = {"template": "pool", "isolation": "microvm", "command": ["sleep", "100000"], "nics": SPEC["nics"]}
    taken = Series("from the pool")
    for _ in range(runs):
        _filled(maker, 4)
        taken.seconds.append(maker.once(spec)())
    used = {**spec, "command": ["true"]}
    _filled(maker, 4)
    began, count = time.perf_counter(), 0
    with ThreadPoolExecutor(2) as threads:
        while time.perf_counter() - began < 20:
            count += sum(threads.map(lambda _: _use(maker, used), range(4)))
    seconds = time.perf_counter() - began
    maker.client.call("DELETE", f"{TEMPLATES}/pool?wait=120")
    return [
        Row("microVM from a pool: API request to running", taken.text(), None, None, "45 ms", "25 ms"),
        Row(
            "created, used (`true`) and destroyed, sustained, from a pool of four",
            f"{count / seconds:.1f} a second ({count} in {seconds:.0f} s)",
            None,
            None,
            "10 a second",
            "25 a second",
        ),
    ]


def _filled(maker: Maker, wanted: int) -> None:
    deadline = time.monotonic() + 120
    while maker.client.call("GET", f"{TEMPLATES}/pool")["status"]["ready"] < wanted:
        if time.monotonic() > deadline:
            raise RuntimeError("the pool does not fill")
        time.sleep(0.05)


def _use(maker: Maker, spec: dict[str, Any]) -> int:
    client, name = api(maker.made), maker.name()
    maker.create(spec, name, client)
    while client.call("GET", f"{AT}/{name}")["status"]["phase"] != "stopped":
        time.sleep(0.005)
    maker.remove(name, client)
    return 1


def _many(maker: Maker) -> list[Row]:
    """Twenty at once; what each has of its own after one command."""
    seconds: dict[str, float] = {}
    private: dict[str, float] = {}
    for kind, spec in (("warm", SPEC), ("cold", COLD)):
        names = [maker.name() for _ in range(MANY)]
        with ThreadPoolExecutor(MANY) as threads:
            seconds[kind] = timed(
                lambda names=names, spec=spec, threads=threads: list(threads.map(partial(_create, maker, spec), names))
            )
        for name in names:
            maker.made.lamella("exec", name, "--", "true")
        pids = [maker.client.call("GET", f"{AT}/{name}")["status"]["pid"] for name in names]
        private[kind] = sum(_private(pid) for pid in pids) / MANY
        for name in names:
            maker.remove(name)
    mib = {kind: f"{size / (1 << 20):.0f} MiB" for kind, size in private.items()}
    at_once = {kind: f"{value:.2f} s (n=1)" for kind, value in seconds.items()}
    return [
        Row(
            f"{MANY} at once, all running, against {MANY} cold",
            at_once["warm"],
            at_once["cold"],
            seconds["warm"] / seconds["cold"],
            "0.083 ×",
            "0.05 ×",
        ),
        Row(
            f"private memory of one of {MANY} after a command, against cold",
            mib["warm"],
            mib["cold"],
            private["warm"] / private["cold"],
            "0.25 ×",
            "0.17 ×",
        ),
    ]


def _create(maker: Maker, spec: dict[str, Any], name: str) -> None:
    maker.create(spec, name, api(maker.made))


def _private(pid: int) -> int:
    """Bytes that go when the process does (proc(5), ``smaps_rollup``)."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(size) << 10 for size in re.findall(r"^Private_\w+:\s+(\d+) kB", text, re.MULTILINE))


def _fork(maker: Maker, runs: int) -> Row:
    parent = maker.name()
    maker.create(COLD, parent)
    pauses = Series("pause")
    for _ in range(runs):
        done = maker.client.call("POST", f"{AT}/{parent}/fork?wait=120", {"count": 1})
        pauses.seconds.append(float(done["status"]["pause"]))
        for name in done["status"]["made"]:
            maker.remove(name)
    maker.remove(parent)
    return Row("live fork: pause of the parent, 256 MiB", pauses.text(), None, None, "250 ms", "60 ms")


class Restored:
    """The command line of a copy of ours, made to run alone: paths for descriptors, a TAP that leads nowhere, the template's own files."""

    def __init__(self, command: list[str], made: LayerUnderTest, scratch: Path) -> None:
        boot = boot_files(made.home / "state")
        (self._template,) = [
            path for path in (made.home / "state" / "memory" / "microvm").iterdir() if path.name.startswith("image-")
        ]
        self._agent, self._monitor, self._data = (scratch / name for name in ("agent.sock", "monitor.sock", "data.raw"))
        image = next((made.home / "state").rglob("*.erofs"))
        memory = f"{memory_file.DESCRIPTORS}/{memory_file.MEMORY}"
        changes = {
            arguments.KERNEL: str(boot.kernel),
            arguments.INITRAMFS: str(boot.initramfs),
            f"fd={arguments.MONITOR},server=on": f"path={self._monitor},server=on",
            f"fd={arguments.AGENT},server=on": f"path={self._agent},server=on",
            f"filename=/dev/fdset/{arguments.ROOT},": f"filename={image},",
            f"/dev/fdset/{arguments.DATA}": str(self._data),
            f"tap,id=net,fd={arguments.TAP}": "tap,id=net,fd={tap}",
            "stdio,id=console,signal=off": f"file,id=console,path={scratch}/console",
            memory: str(self._template / "memory"),
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

    def begin(self) -> float:
        """Seconds from exec until the command runs."""
        for socket in (self._agent, self._monitor):
            socket.unlink(missing_ok=True)
        subprocess.run(["cp", "--sparse=always", self._template / "disk", self._data], check=True)
        taps = spare_tap()
        began = time.perf_counter()
        qemu = subprocess.Popen(
            [word.replace("{tap}", str(taps[0])) for word in self._command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=taps,
        )
        for fd in taps:
            os.close(fd)
        try:
            while not self._monitor.exists():
                if qemu.poll() is not None:
                    assert qemu.stderr is not None
                    raise RuntimeError(qemu.stderr.read().decode())
                time.sleep(0.001)
            try:
                asyncio.run(self._go_on())
            except ValueError:
                raise RuntimeError(qemu.communicate()[1].decode()) from None
            return time.perf_counter() - began
        finally:
            qemu.send_signal(signal.SIGKILL)
            qemu.wait()

    async def _go_on(self) -> None:
        # Plain QMP, as a script would speak it.
        reader, writer = await asyncio.open_unix_connection(self._monitor)
        await reader.readline()

        async def tell(command: str) -> dict[str, Any]:
            writer.write(command.encode())
            while "return" not in (answer := _json(await reader.readline())):
                if "error" in answer:
                    raise RuntimeError(answer)
            return answer

        await tell('{"execute":"qmp_capabilities"}')
        await tell(
            '{"execute":"migrate-set-capabilities","arguments":{"capabilities":'
            '[{"capability":"x-ignore-shared","state":true}]}}'
        )
        await tell(f'{{"execute":"migrate-incoming","arguments":{{"uri":"exec:cat {self._template}/state"}}}}')
        while (await tell('{"execute":"query-status"}'))["return"]["status"] == "inmigrate":
            await asyncio.sleep(0.001)
        await tell('{"execute":"cont"}')
        guest = await GuestClient.connect(self._agent, timeout=60)
        await guest.become(
            GuestSetup(hostname="bare", network=NETWORK, pids=4096, entropy=os.urandom(64), time=datetime.now(UTC))
        )
        await guest.start(GuestProcess(command=["sleep", "100000"], environment={"PATH": "/bin"}))
        await guest.close()
        writer.close()


def _json(line: bytes) -> dict[str, Any]:
    return json.loads(line)
