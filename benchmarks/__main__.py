"""``./dev bench [GROUP …]``: measure, and print the tables of SPECIFICATION.md. Without a group, all of them."""

import argparse
import os
import platform
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import (
    clone,
    containers,
    density,
    guest_disk,
    house,
    images,
    incus,
    limits,
    memory,
    microvm,
    move,
    network,
    network_overlay,
    network_ports,
    sampler,
    unikernel,
    victim,
    vm,
    warm,
    wasm,
)
from benchmarks.measure import Row, table
from tests import debian

GROUPS = (
    "containers",
    "microvm",
    "warm",
    "unikernel",
    "density",
    "wasm",
    "images",
    "build",
    "vm",
    "clone",
    "disk",
    "limits",
    "move",
    "network",
    "ports",
    "overlay",
    "memory",
    "sampler",
    "victim",
)


def machine() -> str:
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return f"{len(os.sched_getaffinity(0))} cores of {model}, {memory} GiB, Linux {platform.release()}, Python {platform.python_version()}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("groups", nargs="*", choices=[[], *GROUPS], default=[])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--instances", type=int, default=100, help="how many containers `density` runs")
    args = parser.parse_args()
    chosen = args.groups or list(GROUPS)
    rows: list[Row] = []
    with house.layer() as layer:
        if "containers" in chosen:
            with incus.running() as peer:
                rows += containers.rows(layer, peer, args.runs)
        if "microvm" in chosen:
            rows += microvm.rows(layer, max(5, args.runs // 2))
        if "warm" in chosen:
            rows += warm.rows(layer, max(5, args.runs // 2))
        if "unikernel" in chosen:
            rows += unikernel.rows(layer, args.runs)
        if "density" in chosen:
            rows += density.rows(layer, args.instances)
        if "wasm" in chosen:
            rows += wasm.rows(layer, args.runs) + wasm.driver_rows(args.runs)
        if "images" in chosen:
            rows += images.rows(layer, max(5, args.runs // 3))
        if "vm" in chosen:
            with tempfile.TemporaryDirectory(prefix="lamella-bench-", dir="/var/tmp") as scratch:
                built = debian.build(Path(scratch) / "images", packages=[])
                rows += vm.rows(layer, built.disk.path, args.runs)
        if "limits" in chosen:
            rows += limits.rows(layer, max(3, args.runs // 5))
        if "move" in chosen:
            rows += move.rows(layer, max(4, args.runs // 3))
        if "victim" in chosen:
            rows += victim.rows(layer, max(3, args.runs // 3))
        if "network" in chosen:
            rows += network.rows(layer, args.runs)
    if "ports" in chosen:
        rows += network_ports.rows(args.runs)
    if "overlay" in chosen:
        rows += network_overlay.rows(args.runs)
    if "memory" in chosen:
        rows += memory.rows()
    if "sampler" in chosen:
        rows += sampler.rows(max(200, args.instances))
    if "clone" in chosen:
        rows += clone.rows(args.runs)
    if "disk" in chosen:
        rows += guest_disk.rows(max(5, args.runs // 3))
    if "build" in chosen:
        rows += images.build_rows(max(2, args.runs // 7))
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine()}\n")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
