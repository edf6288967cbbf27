"""A microVM's volume while it writes: grown, bounded, snapshotted, moved to another pool, its daemon killed. It never hears of it."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from test_volumes_heal_live import WRITER, goes_on, kill_doors, told
from tests.house import LayerUnderTest

pytestmark = [pytest.mark.root, pytest.mark.timeout(600, method="thread")]

MIB = 1 << 20


def shown(layer: LayerUnderTest, name: str) -> dict[str, Any]:
    return json.loads(layer.out("volume", "show", name, "-o", "json"))


def test_a_machine_s_volume_changes_under_its_writer(layer: LayerUnderTest) -> None:
    layer.lamella("pool", "create", "far", "--driver", "directory", "--path", str(layer.home / "far"))
    layer.lamella("volume", "create", "data", "--size", "64MiB", "--encrypt")
    begin = ("run", "-d", "--isolation", "microvm", "--restart", "no", "--name", "db", "--volume", "data:/data")
    layer.lamella(*begin, "busybox", "--", "sh", "-c", WRITER)
    layer.wait_phase("db", "running")
    goes_on(layer)
    assert "served over NBD" in layer.out("contract", "db")

    layer.lamella("volume", "resize", "data", "128MiB")
    assert shown(layer, "data")["status"]["size"] == 128 * MIB
    goes_on(layer)
    measure = "df -m /data | tail -1 | awk '{print $2}'"
    assert int(layer.out("exec", "db", "--", "sh", "-c", measure)) > 80

    layer.lamella("volume", "set", "data", "--bandwidth", "4MiB/s")
    began = time.monotonic()
    layer.lamella("exec", "db", "--", "sh", "-c", "dd if=/dev/zero of=/data/fill bs=1M count=16 && sync")
    bounded = time.monotonic() - began
    layer.lamella("volume", "set", "data", "--bandwidth", "none")
    assert bounded > 2

    layer.lamella("snapshot", "create", "data", "live")
    goes_on(layer)
    layer.lamella("snapshot", "rm", "data@live")
    layer.lamella("volume", "move", "data", "--pool", "far", timeout=90)
    assert shown(layer, "data")["spec"]["pool"] == "far"
    goes_on(layer)
    layer.kill()
    kill_doors(layer)
    layer.start()
    goes_on(layer)
    seen = layer.wait_phase("db", "running")["status"]
    assert seen["restarts"] == 0
    layer.lamella("stop", "db")
    numbers = told(layer)
    assert numbers == [str(n + 1) for n in range(len(numbers))]
    assert not list((layer.home / "run" / "storage").glob("machine-*"))
    layer.lamella("rm", "db")
    kept = layer.out("run", "--rm", "--volume", "data:/data", "busybox", "--", "cat", "/data/lines").split()
    assert kept[: len(numbers)] == numbers and len(kept) <= len(numbers) + 1


def stands_still(layer: LayerUnderTest) -> None:
    """It says nothing for two seconds, within twenty: who goes on says something every moment."""
    deadline, before = time.monotonic() + 90, told(layer)
    while True:
        time.sleep(2)
        if (now := told(layer)) == before:
            return
        assert time.monotonic() < deadline, f"it goes on: {now[-3:]}"
        before = now


def test_a_guest_waits_while_its_key_is_locked_away_and_can_be_stopped(layer: LayerUnderTest, tmp_path: Path) -> None:
    """The daemon and the process that had the key are killed: nobody has it until a person brings it."""
    (tmp_path / "passphrase").write_text("open sesame\n")
    secret = ("--passphrase-file", str(tmp_path / "passphrase"))
    layer.lamella("volume", "create", "kept", "--size", "64MiB", *secret)
    begin = ("run", "-d", "--isolation", "microvm", "--restart", "no", "--name", "db", "--volume", "kept:/data")
    layer.lamella(*begin, "busybox", "--", "sh", "-c", WRITER)
    layer.wait_phase("db", "running")
    goes_on(layer)
    for size, roles in ((96, ("machine-*",)), (128, ("disks", "machine-*"))):
        layer.kill()
        for role in roles:
            kill_doors(layer, role)
        layer.start()
        # What it had said before is read a moment later, by the daemon that has come.
        stands_still(layer)
        assert layer.show("db")["status"]["phase"] == "running"
        assert layer.lamella("volume", "resize", "kept", f"{size}MiB", check=False).returncode != 0
        layer.lamella("volume", "unlock", "kept", *secret)
        goes_on(layer)
    numbers = told(layer)
    assert numbers == [str(n + 1) for n in range(len(numbers))]
    layer.kill()
    kill_doors(layer)
    layer.start()
    layer.lamella("stop", "--time", "1s", "db")
    assert not list((layer.home / "run" / "storage").glob("machine-*"))
    layer.lamella("rm", "db")
    assert not list((layer.home / "run" / "storage" / "open").iterdir())
