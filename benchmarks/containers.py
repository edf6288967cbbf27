"""Containers: against bare crun, podman and Incus."""

import json
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

from benchmarks.house import UnixHTTP, api, in_room, quiet
from benchmarks.incus import Incus
from benchmarks.measure import Row, absent, compared, pairs, timed
from tests.house import LayerUnderTest

SPEC = {"image": "busybox", "command": ["true"], "nics": [{"network": "default"}]}
AT = "/v1/projects/default/instances"


def rows(made: LayerUnderTest, incus: Incus | None, runs: int) -> list[Row]:
    return [
        against_crun(made, runs),
        against_podman(made, runs),
        *against_incus(made, incus, runs),
    ]


def to_exit(client: UnixHTTP) -> None:
    """Create, run to the end, and know the exit code."""
    made = client.call("POST", AT, {"spec": SPEC})
    ended = client.call("GET", f"{AT}/{made['name']}/wait?for=stopped&timeout=30")
    assert ended["status"]["exit_code"] == 0


def clean(client: UnixHTTP) -> None:
    for instance in client.call("GET", AT)["items"]:
        client.call("DELETE", f"{AT}/{instance['name']}?force=true&wait=30")


def against_crun(made: LayerUnderTest, runs: int) -> Row:
    what = "container: API request to exit code of `true`, against `crun run`"
    with tempfile.TemporaryDirectory(prefix="lamella-bench-", dir="/var/tmp") as bundle:
        root = Path(bundle) / "rootfs"
        root.mkdir()
        layer = next(p for p in (made.home / "state" / "images" / "layers").iterdir() if p.is_dir())
        quiet("cp", "-a", f"{layer}/.", str(root))
        subprocess.run(["crun", "spec"], cwd=bundle, check=True)
        spec = json.loads((Path(bundle) / "config.json").read_text())
        spec["process"]["args"], spec["process"]["terminal"] = ["true"], False
        spec["process"]["rlimits"] = []
        spec["linux"]["cgroupsPath"] = "/lamella-bench/bare"
        (Path(bundle) / "config.json").write_text(json.dumps(spec))
        client = api(made)

        def bare() -> float:
            command = in_room(
                made, "crun", "--root", f"{bundle}/state", "--cgroup-manager=cgroupfs", "run", "-b", bundle
            )
            # nsenter's own start is not crun's: it is measured and taken off.
            empty = timed(lambda: quiet(*in_room(made, "true")))
            return timed(lambda: quiet(*command, uuid.uuid4().hex)) - empty + timed(lambda: quiet("true"))

        def ours() -> float:
            seconds = timed(lambda: to_exit(client))
            clean(client)
            return seconds

        mine, peer = pairs(ours, bare, runs=runs, warm=3)
    quiet("sh", "-c", "rmdir /sys/fs/cgroup/*/lamella-bench /sys/fs/cgroup/lamella-bench", check=False)
    return compared(what, mine, peer, bar="5 ×", aim="3 ×")


def against_podman(made: LayerUnderTest, runs: int) -> Row:
    what = "`lamella run --rm` from the shell, against `podman run --rm`"

    def ours() -> float:
        return timed(lambda: made.lamella("run", "--rm", "busybox", "--", "true"))

    if shutil.which("podman") is None:
        mine, _ = pairs(ours, lambda: 0.0, runs=runs)
        return absent(what, "podman", mine, bar="1 ×", aim="0.6 ×")
    with tempfile.TemporaryDirectory(prefix="lamella-bench-", dir="/var/tmp") as scratch:
        # In our room: its view of cgroups lets podman use crun here too, and the mount that it leaves behind goes with the room.
        podman = [
            *in_room(made, "podman"), "--root", f"{scratch}/root", "--runroot", f"{scratch}/run",
            "--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--events-backend", "file",
        ]  # fmt: skip
        root = next((made.home.parent).glob("busybox.tar"))
        quiet(*podman, "import", str(root), "localhost/busybox")
        run = [
            *podman, "run", "--rm", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000", "--net=none",
            "localhost/busybox", "true",
        ]  # fmt: skip
        mine, peer = pairs(ours, lambda: timed(lambda: quiet(*run)), runs=runs)
        quiet(*podman, "system", "reset", "--force", check=False)
    return compared(what, mine, peer, bar="1 ×", aim="0.6 ×")


def against_incus(made: LayerUnderTest, incus: Incus | None, runs: int) -> list[Row]:
    client = api(made)
    name = "bench"
    sleeper = {"image": "busybox", "command": ["sleep", "100000"], "nics": [{"network": "default"}]}
    client.call("POST", f"{AT}?wait=30", {"name": name, "spec": sleeper})

    def create() -> float:
        other = f"c{uuid.uuid4().hex[:8]}"
        seconds = timed(lambda: client.call("POST", f"{AT}?wait=30", {"name": other, "spec": sleeper}))
        client.call("DELETE", f"{AT}/{other}?force=true&wait=30")
        return seconds

    def execute() -> float:
        return timed(lambda: made.lamella("exec", name, "--", "true"))

    def listing() -> float:
        return timed(lambda: made.lamella("ps"))

    def get() -> float:
        began = [timed(lambda: client.call("GET", f"{AT}/{name}")) for _ in range(50)]
        return sorted(began)[25]

    try:
        if incus is None:
            return [
                absent("create and start through the API, against Incus's", "incus", None, bar="0.6 ×", aim="0.35 ×"),
                absent("`lamella exec`, against `incus exec`", "incus", None, bar="4 ×", aim="2.5 ×"),
                absent("`lamella ps`, against `incus list`", "incus", None, bar="5 ×", aim="2 ×"),
                absent("GET one instance (p50), against Incus's API", "incus", None, bar="2 ×", aim="1 ×"),
            ]
        with incus.instance(name):
            return [
                compared(
                    "create and start through the API, against Incus's",
                    *pairs(create, incus.create, runs=runs),
                    bar="0.6 ×",
                    aim="0.35 ×",
                ),
                compared(
                    "`lamella exec`, against `incus exec`",
                    *pairs(execute, lambda: incus.exec(name), runs=runs),
                    bar="4 ×",
                    aim="2.5 ×",
                ),
                compared(
                    "`lamella ps`, against `incus list`", *pairs(listing, incus.list, runs=runs), bar="5 ×", aim="2 ×"
                ),
                compared(
                    "GET one instance (p50 of 50), against Incus's API",
                    *pairs(get, lambda: incus.get(name), runs=runs),
                    bar="2 ×",
                    aim="1 ×",
                ),
            ]
    finally:
        client.call("DELETE", f"{AT}/{name}?force=true&wait=30")
