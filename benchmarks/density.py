"""Many containers: what the daemon weighs, what each adds, and how fast a new daemon adopts them all."""

import contextlib
import time
from pathlib import Path

from benchmarks.containers import AT
from benchmarks.house import api, holder
from benchmarks.measure import Row
from tests.house import LayerUnderTest

from lamella.daemon.home import find_home
from lamella.host.linux.processes import all_pids, bears_mark

MIB = 1 << 20


def pss(pid: int) -> int:
    """Bytes of memory, shared pages counted by share (proc(5), smaps_rollup)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def rss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def ours(made: LayerUnderTest, workloads: set[int]) -> int:
    """PSS of the daemon and of every process that serves an instance, the instances' own processes left out."""
    home = find_home(str(made.home))
    assert made.daemon is not None
    total = pss(made.daemon.pid)
    for pid in all_pids():
        if pid not in workloads | {made.daemon.pid, holder(made)} and bears_mark(pid, home.mark):
            total += pss(pid)
    return total


def rows(made: LayerUnderTest, instances: int) -> list[Row]:
    client = api(made)
    assert made.daemon is not None
    made.stop()
    made.start()
    client = api(made)
    client.call("GET", "/v1")
    idle = rss(made.daemon.pid)
    before = ours(made, set())
    spec = {"image": "busybox", "command": ["sleep", "100000"], "nics": [{"network": "default"}]}
    for number in range(instances):
        client.call("POST", f"{AT}?wait=60", {"name": f"d{number}", "spec": spec})
    running = client.call("GET", f"{AT}?limit=1000")["items"]
    assert all(instance["status"]["phase"] == "running" for instance in running)
    workloads = {instance["status"]["pid"] for instance in running}
    each = (ours(made, workloads) - before) / instances

    made.kill()
    began = time.perf_counter()
    made.start()
    client = api(made)
    for number in range(instances):
        # Each question waits for the adoption of its instance.
        client.call("GET", f"{AT}/d{number}/contract")
    adopted = time.perf_counter() - began
    again = client.call("GET", f"{AT}?limit=1000")["items"]
    assert {i["status"]["pid"] for i in again} == workloads, "an instance did not live through the restart"
    for number in range(instances):
        client.call("DELETE", f"{AT}/d{number}?force=true")
    for number in range(instances):
        client.call("GET", f"{AT}?limit=1000")
        with contextlib.suppress(RuntimeError):
            client.call("GET", f"{AT}/d{number}/wait?for=removed&timeout=60")
    return [
        Row("daemon, idle: RSS", f"{idle / MIB:.0f} MiB", "–", None, "150 MiB", "90 MiB"),
        Row(
            f"PSS added by each of {instances} running containers",
            f"{each / MIB:.2f} MiB",
            "–",
            None,
            "3 MiB",
            "1.5 MiB",
        ),
        Row(f"daemon killed and started again: {instances} adopted", f"{adopted:.2f} s", "–", None, "5 s", "2 s"),
    ]
