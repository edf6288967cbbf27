"""WebAssembly: a run from its making to its exit code, against wasmtime called in a process that is warm; how many a second.

The module is a C program that prints a line. The peer has it compiled and loads it, makes a store with a file for its output, runs it,
and has its exit code: what a program that embeds wasmtime does for each call.
"""

import asyncio
import contextlib
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import uvloop
from benchmarks.containers import AT
from benchmarks.house import api
from benchmarks.measure import Row, Series, pairs, timed
from tests.house import LayerUnderTest

from lamella.host.compute.driver import Home, Limits, Machine, Rootfs, StoredArtifact
from lamella.host.compute.wasm.driver import WasmDriver
from lamella.host.linux.cgroup import ROOT, Cgroups
from lamella.model.ids import new_id
from lamella.model.image import ArtifactKind, ImageConfig

PROGRAM = '#include <stdio.h>\nint main(void) { puts("hello"); return 7; }\n'
SPEC = {"image": "hello", "isolation": "wasm", "memory": 64 << 20, "cpu": 1000}

# The peer, in an interpreter of its own: reads a line for each run, answers with the seconds that it took.
PEER = """
import sys, time, tempfile
from wasmtime import Engine, ExitTrap, Linker, Module, Store, WasiConfig
engine = Engine()
compiled = Module.from_file(engine, sys.argv[1]).serialize()
linker = Linker(engine)
linker.define_wasi()
print("ready", flush=True)
with tempfile.TemporaryDirectory() as scratch:
    for line in sys.stdin:
        began = time.perf_counter()
        module = Module.deserialize(engine, compiled)
        store = Store(engine)
        wasi = WasiConfig()
        wasi.argv = ["hello"]
        wasi.stdout_file = scratch + "/out"
        store.set_wasi(wasi)
        code = 0
        try:
            linker.instantiate(store, module).exports(store)["_start"](store)
        except ExitTrap as exit:
            code = exit.code
        assert code == 7
        print(time.perf_counter() - began, flush=True)
"""


def rows(made: LayerUnderTest, runs: int) -> list[Row]:
    """Through the API; the image is imported first."""
    with TemporaryDirectory(prefix="lamella-bench-", dir="/var/tmp") as scratch, peer(compiled(Path(scratch))) as warm:
        made.lamella("image", "import", str(Path(scratch) / "hello.wasm"), "--name", "hello")
        client = api(made)
        number = 0

        def ours() -> float:
            nonlocal number
            number += 1
            name = f"w{number}"

            def until_exit() -> None:
                client.call("POST", f"{AT}?wait=60", {"name": name, "spec": SPEC})
                while client.call("GET", f"{AT}/{name}")["status"]["exit_code"] is None:
                    time.sleep(0.0005)

            seconds = timed(until_exit)
            client.call("DELETE", f"{AT}/{name}?force=true&wait=60")
            return seconds

        mine, theirs = pairs(ours, warm, runs=runs, warm=3)
    return [added("wasm: API request to exit code, over wasmtime in a warm process", mine, theirs)]


def driver_rows(runs: int, *, at_once: int = 8, seconds: float = 10.0) -> list[Row]:
    """The driver alone: one after another, then *at_once* for some *seconds*; each is made, started, waited for and removed."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # the daemon's own loop
        return runner.run(_driver_rows(runs, at_once, seconds))


async def _driver_rows(runs: int, at_once: int, seconds: float) -> list[Row]:
    async with driver() as (one, memory):
        with peer(one.module) as warm:
            mine, theirs = Series("ours"), Series("peer")
            for number in range(runs + 3):
                took, other = await one.run(), await asyncio.to_thread(warm)
                if number >= 3:
                    mine.seconds.append(took)
                    theirs.seconds.append(other)
        end = time.perf_counter() + seconds
        counted = 0

        async def work() -> None:
            nonlocal counted
            while time.perf_counter() < end:
                await one.run()
                counted += 1

        began = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(at_once)))
        rate = counted / (time.perf_counter() - began)
        each = await memory()
    return [
        added("wasm: driver, create to exit code, over wasmtime in a warm process", mine, theirs),
        Row("wasm: driver, instances a second, sustained", f"{rate:.0f}", None, None, "150", "500"),
        Row("wasm: memory of a waiting instance, worker and monitor", f"{each / 1e6:.2f} MB", None, None, "-", "-"),
    ]


def added(what: str, ours: Series, theirs: Series) -> Row:
    """A row whose bar is a difference."""
    more = (ours.median - theirs.median) * 1e3
    return Row(f"{what}: +{more:.1f} ms", ours.text(), theirs.text(), ours.median / theirs.median, "+10 ms", "+4 ms")


class One:
    """Makes one instance after another of the module."""

    def __init__(self, driver: WasmDriver, module: Path, ended: dict[str, asyncio.Event]) -> None:
        self.module = module
        self._driver = driver
        self._ended = ended
        self._count = 0
        digest = f"sha256:{hashlib.sha256(module.read_bytes()).hexdigest()}"
        artifact = StoredArtifact(kind=ArtifactKind.MODULE, digest=digest, path=module, size=module.stat().st_size)
        self._rootfs = Rootfs(digest=digest, layers=[], config=ImageConfig(), artifacts=[artifact], os="wasi")

    def machine(self) -> Machine:
        self._count += 1
        return Machine(
            id=new_id("instance"),
            name="bench",
            project="default",
            rootfs=self._rootfs,
            command=[],
            environment={},
            working_directory="/",
            user="",
            hostname="bench",
            terminal=False,
            stdin=False,
            limits=Limits(cpu=1000, memory=64 << 20, pids=64),
            id_base=1_900_000_000 + self._count % 30_000 * 1000,
            disk=None,
            nic=None,
            nameservers=[],
            stop_signal="SIGTERM",
        )

    async def run(self) -> float:
        """Seconds from the making to the exit code."""
        machine = self.machine()
        ended = self._ended[machine.id] = asyncio.Event()
        began = time.perf_counter()
        await self._driver.create(machine)
        await self._driver.start(machine.id)
        await ended.wait()
        seen = await self._driver.observe(machine.id)
        took = time.perf_counter() - began
        assert seen is not None and seen.exit_code == 7, seen
        await self._driver.remove(machine.id)
        del self._ended[machine.id]
        return took


@asynccontextmanager
async def driver() -> AsyncIterator[tuple[One, "Memory"]]:
    """A driver in a home of its own, and a measure of what instances that wait for their start take."""
    ended: dict[str, asyncio.Event] = {}
    with TemporaryDirectory(prefix="lamella-bench-", dir="/var/tmp") as scratch:
        module = compiled(Path(scratch))
        home = Home(Path(scratch) / "home", f"lamella-bench-{os.getpid()}")
        home.state.mkdir(parents=True)
        home.run.mkdir()
        made = WasmDriver(home, lambda id: ended[id].set() if id in ended else None)
        (first, *_) = await made.open()
        assert first.available, first.reason
        try:
            one = One(made, module, ended)
            yield one, Memory(made, one)
        finally:
            for id in await made.inventory():
                await made.remove(id)
            await made.close()
            Cgroups(ROOT, home.mark).remove()


class Memory:
    def __init__(self, driver: WasmDriver, one: One) -> None:
        self._driver = driver
        self._one = one

    async def __call__(self, count: int = 50) -> float:
        """Bytes for each of *count*: private memory of its two processes, as /proc/PID/smaps_rollup has it."""
        machines = [self._one.machine() for _ in range(count)]
        for machine in machines:
            await self._driver.create(machine)
        total = 0
        for machine in machines:
            seen = await self._driver.observe(machine.id)
            assert seen is not None and seen.pid is not None
            status = Path(f"/proc/{seen.pid}/status").read_text()
            parent = int(status.split("PPid:")[1].split()[0])
            total += private(seen.pid) + private(parent)
        for machine in machines:
            await self._driver.remove(machine.id)
        return total / count


def private(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))


def compiled(directory: Path) -> Path:
    """The module, made by clang and wasi-libc."""
    source, target = directory / "hello.c", directory / "hello.wasm"
    source.write_text(PROGRAM)
    subprocess.run(["clang", "--target=wasm32-wasi", "-O2", "-o", str(target), str(source)], check=True)
    return target


class Warm:
    """wasmtime in a process that has it loaded."""

    def __init__(self, module: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PEER, str(module)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None and self._process.stdout.readline() == "ready\n"

    def __call__(self) -> float:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def peer(module: Path) -> Iterator[Warm]:
    with contextlib.closing(Warm(module)) as warm:
        yield warm


if __name__ == "__main__":
    from benchmarks.measure import table

    print(table(driver_rows(40)))
