"""The store against the bare driver, in the same run: durable writes and reads a second, start, memory.

``python benchmarks/store.py [--url postgresql://…] [--seconds 2]``. Ratios are bare / store: 1 would be no overhead at all.
"""

import argparse
import asyncio
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from lamella.model.instance import Instance, InstanceSpec, InstanceStatus
from lamella.model.resource import new_resource
from lamella.store.database import open_store
from lamella.store.store import Store

ROUNDS = 5
CONCURRENT = 64


def instance(number: int) -> Instance:
    name = f"i{time.time_ns()}-{number}"
    return new_resource("instance", name, InstanceSpec(image="debian:12", command=["sleep", "inf"]), InstanceStatus())


class Bare:
    """What any store has to do at the least: the same two rows, in one durable transaction of the bare driver."""

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = FULL")
        self.connection.execute("CREATE TABLE resources (id TEXT PRIMARY KEY, document TEXT)")
        self.connection.execute("CREATE TABLE changes (revision INTEGER PRIMARY KEY, document TEXT)")
        self.document = msgspec.json.encode(instance(0)).decode()
        self.written = 0

    def write(self) -> None:
        self.written += 1
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.execute("INSERT INTO resources VALUES (?, ?)", (f"i{self.written}", self.document))
        self.connection.execute("INSERT INTO changes VALUES (NULL, ?)", (self.document,))
        self.connection.execute("COMMIT")

    def read(self) -> None:
        self.connection.execute("SELECT document FROM resources WHERE id = ?", ("i1",)).fetchone()


def rate(seconds: float, act: Callable[[], None]) -> float:
    """Calls a second."""
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        act()
        count += 1
    return count / (time.perf_counter() - start)


async def async_rate(seconds: float, act: Callable[[], Awaitable[object]]) -> float:
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        await act()
        count += 1
    return count / (time.perf_counter() - start)


async def crowded_rate(seconds: float, act: Callable[[], Awaitable[object]]) -> float:
    """Calls a second of many tasks together."""
    end = time.perf_counter() + seconds
    rates = await asyncio.gather(*(async_rate(max(0.0, end - time.perf_counter()), act) for _ in range(CONCURRENT)))
    return sum(rates)


class Meter:
    """Rates by name, round after round."""

    def __init__(self) -> None:
        self.rates: dict[str, list[float]] = {}

    def add(self, name: str, value: float) -> None:
        self.rates.setdefault(name, []).append(value)

    def report(self, pairs: dict[str, str]) -> None:
        for name, rates in self.rates.items():
            line = f"{name:34} median {statistics.median(rates):8.0f}/s   ({min(rates):.0f} to {max(rates):.0f})"
            if name in pairs:
                ratios = [bare / own for bare, own in zip(self.rates[pairs[name]], rates, strict=True)]
                line += f"   bare / store {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(line)


async def measure(store: Store, bare: Bare | None, seconds: float) -> None:
    meter = Meter()
    kept = await store.write(lambda tx: tx.insert(instance(0)))

    async def insert() -> None:
        made = instance(0)
        await store.write(lambda tx: tx.insert(made))

    async def update() -> None:
        kept.status.restarts += 1
        await store.write(lambda tx: tx.update(kept))

    for _ in range(ROUNDS):
        if bare is not None:
            meter.add("bare sqlite3, write", rate(seconds / 2, bare.write))
        meter.add("store, insert, one by one", await async_rate(seconds, insert))
        meter.add("store, update, one by one", await async_rate(seconds, update))
        if bare is not None:
            # On both sides of what it is compared with.
            meter.rates["bare sqlite3, write"][-1] = (
                meter.rates["bare sqlite3, write"][-1] + rate(seconds / 2, bare.write)
            ) / 2
        meter.add(f"store, insert, {CONCURRENT} at once", await crowded_rate(seconds, insert))
        meter.add(
            "store, get by name", await async_rate(seconds / 2, lambda: store.get("instance", "default", kept.name))
        )
        if bare is not None:
            meter.add("bare sqlite3, read", rate(seconds / 4, bare.read))
    writes = dict.fromkeys(
        [name for name in meter.rates if name.startswith("store, ") and "get" not in name], "bare sqlite3, write"
    )
    meter.report({**writes, "store, get by name": "bare sqlite3, read"} if bare is not None else {})


START = """
import sys, time
began = time.perf_counter()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4 // 1024
import asyncio
import lamella.model.kinds
before, at = resident(), time.perf_counter()
from lamella.store.database import open_store
store = open_store(sys.argv[1])
imported = time.perf_counter()
async def main():
    await store.open()
    opened = time.perf_counter()
    print(f"import {(imported - at) * 1000:.0f} ms, open {(opened - imported) * 1000:.1f} ms, resident +{resident() - before} MiB")
    await store.close()
asyncio.run(main())
"""


def start(url: str) -> None:
    """What a daemon pays for the store when it starts."""
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", START, url], capture_output=True, text=True, check=True, timeout=60
        )
        print("start:", done.stdout.strip())


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--url", help="a database other than a fresh SQLite file; what is in it stays, what is written too"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each figure is taken, in each round")
    asked = parser.parse_args()
    versions = f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    print(f"{platform.node()}, {os.cpu_count()} cores, Linux {platform.release()}, {versions}")
    with tempfile.TemporaryDirectory(prefix="lamella-bench-") as directory:
        url = asked.url or f"sqlite:///{directory}/lamella.db"
        store = open_store(url)
        await store.open()
        await measure(store, None if asked.url else Bare(Path(directory) / "bare.db"), asked.seconds)
        await store.close()
        start(url)


if __name__ == "__main__":
    asyncio.run(main())
