"""The daemon is killed without a word: nothing dies, nothing is forgotten, nothing is left."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lamella.host.linux.processes import all_pids, bears_mark

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]


def test_instances_outlive_the_daemon_and_are_adopted(layer) -> None:
    levels = ("container", "microvm")
    for level in levels:
        layer.lamella("run", "-d", "--isolation", level, "--name", f"lives-{level}", "busybox", "--", "sleep", "1000")
        layer.lamella(
            "run", "-d", "--isolation", level, "--name", f"ends-{level}", "busybox", "--",
            "sh", "-c", "echo begun; while ! [ -e /root/go ]; do sleep 0.1; done; sleep 3; echo last words; exit 42",
        )  # fmt: skip
    pids = {level: layer.wait_phase(f"lives-{level}", "running")["status"]["pid"] for level in levels}
    for level in levels:
        layer.wait_phase(f"ends-{level}", "running")
        layer.lamella("exec", f"ends-{level}", "--", "touch", "/root/go")
    layer.kill()
    time.sleep(6)
    for pid in pids.values():
        assert Path(f"/proc/{pid}").exists()
    layer.start()
    for level in ("container", "microvm"):
        assert layer.out("exec", f"lives-{level}", "--", "echo", "here") == "here\n"
        seen = layer.show(f"lives-{level}")["status"]
        assert (seen["phase"], seen["pid"], seen["epoch"], seen["restarts"]) == ("running", pids[level], 1, 0)
        assert layer.wait_phase(f"ends-{level}", "stopped")["status"]["exit_code"] == 42
        assert "last words" in layer.out("logs", f"ends-{level}")
        layer.lamella("rm", "--force", f"lives-{level}")
        layer.lamella("rm", "--force", f"ends-{level}")


def test_a_daemon_killed_in_the_midst_of_anything_converges(layer) -> None:
    """Kill at many moments of a create and a removal: afterwards the instance is what was asked, once."""
    for round in range(8):
        name = f"midst-{round}"
        thread = threading.Thread(
            target=layer.lamella,
            args=("run", "-d", "--name", name, "busybox", "--", "sh", "-c", "echo x >> /root/runs; sleep 1000"),
            kwargs={"check": False},
        )
        thread.start()
        time.sleep(0.08 + 0.02 * round)
        layer.kill()
        thread.join()
        layer.start()
        if layer.lamella("show", name, check=False).returncode == 0:
            layer.wait_phase(name, "running")
            layer.lamella("exec", name, "--", "sh", "-c", "while ! [ -s /root/runs ]; do sleep 0.05; done")
            thread = threading.Thread(target=layer.lamella, args=("rm", "--force", name), kwargs={"check": False})
            thread.start()
            time.sleep(0.07 + 0.01 * round)
            layer.kill()
            thread.join()
            layer.start()
            layer.lamella("rm", "--force", name, check=False)
    assert "midst" not in layer.out("ps", "-a", "-o", "name")
    deadline = time.monotonic() + 90
    while left := _left(layer):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def _left(layer) -> list[str]:
    """Processes of instances, disks, links: anything but the daemon with its own children, the holder of its room, and what serves its
    networks, which outlives it."""
    from lamella.daemon.home import find_home

    home = find_home(str(layer.home))
    found = []
    for pid in all_pids():
        if bears_mark(pid, home.mark):
            try:
                if f"\nPPid:\t{layer.daemon.pid}\n" in Path(f"/proc/{pid}/status").read_text():
                    continue  # the fork server of wasm ends with the daemon
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            stays = ("lamella-pause", "lamellad", "/dnsmasq")
            if command and not any(name in command for name in stays):
                found.append(command)
    volumes = home.state / "pools" / "default" / "volumes"
    found += [str(path) for path in volumes.iterdir() if not path.name.startswith(".")]
    groups = subprocess.run(
        ["find", "/sys/fs/cgroup", "-maxdepth", "3", "-path", f"*{home.mark}*inst*"], capture_output=True, text=True
    ).stdout.split()
    return found + groups


def test_a_second_daemon_in_the_same_home_is_refused(layer) -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lamellad"], env=layer.environment, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 1 and "running" in done.stderr and "Traceback" not in done.stderr
