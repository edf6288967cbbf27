"""Captures and mirrors as a person has them: to a file until enough has come or Ctrl-C, to another instance until either goes."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.house import BIN, LayerUnderTest

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

TALK = "while :; do nc -w 1 10.83.0.1 9 </dev/null; sleep 0.1; done"


def until(check: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def listening(layer: LayerUnderTest) -> list[str]:
    """Command lines of what listens in the layer's namespace."""
    holder = (layer.home / "run" / "room").read_text().split()[0]
    home = Path(f"/proc/{holder}/ns/net").stat().st_ino
    found: list[str] = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and (entry / "ns" / "net").stat().st_ino == home:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if "tcpdump" in words:
                    found.append(words)
        except OSError:
            continue
    return found


def test_a_capture_is_a_file_that_tcpdump_reads(layer: LayerUnderTest, tmp_path: Path) -> None:
    layer.lamella("run", "-d", "--name", "w1", "busybox", "--", "sh", "-c", TALK)
    file = tmp_path / "w1.pcap"
    layer.lamella("network", "capture", "w1", "-o", str(file), "--filter", "tcp port 9", "--packets", "4")
    assert file.stat().st_mode & 0o777 == 0o600
    read = subprocess.run(["tcpdump", "-nr", str(file)], capture_output=True, check=True).stdout.decode()
    assert len(read.splitlines()) == 4 and read.count("10.83.0.1.9: Flags [S]") == 4
    done = layer.lamella("network", "capture", "w1", "--duration", "500ms")
    assert done.stdout[:4] == b"\xd4\xc3\xb2\xa1"
    assert layer.lamella("network", "capture", "w1", "--filter", "no sense", "-o", str(file), check=False).returncode
    done = layer.lamella("network", "capture", "w1", "--nic", "nic3", "-o", str(file), check=False)
    assert done.returncode and b"no NIC 'nic3'" in done.stderr

    # Whoever leaves has what came, and nothing listens for them any more.
    caller = subprocess.Popen(
        [str(BIN / "lamella"), "network", "capture", "w1", "-o", str(file)],
        env=layer.environment,
        stderr=subprocess.PIPE,
    )
    until(lambda: file.stat().st_size > 400)
    assert len(listening(layer)) == 1
    caller.send_signal(signal.SIGINT)
    assert caller.wait(90) == 0
    assert caller.stderr is not None
    caller.stderr.close()
    until(lambda: not listening(layer))
    assert subprocess.run(["tcpdump", "-nr", str(file)], capture_output=True, check=False).stdout

    caller = subprocess.Popen(
        [str(BIN / "lamella"), "network", "capture", "w1", "-o", os.devnull],
        env=layer.environment,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: len(listening(layer)) == 1)
    layer.kill()
    until(lambda: not listening(layer))
    assert caller.wait(90) != 0
    layer.start()
    layer.lamella("rm", "--force", "w1")


def copied_to(layer: LayerUnderTest, port: str) -> set[str]:
    """The tails of the links that what passes *port* is copied to."""
    holder = (layer.home / "run" / "room").read_text().split()[0]
    found: set[str] = set()
    for side in ("ingress", "egress"):
        words = ["nsenter", f"--net=/proc/{holder}/ns/net", "tc", "filter", "show", "dev", f"lap{port[-12:]}", side]
        shown = subprocess.run(words, capture_output=True, check=False).stdout.decode()
        found |= {line.split("lap")[1].split(")")[0] for line in shown.splitlines() if "Mirror to device lap" in line}
    return found


def test_a_mirror_follows_both_ends(layer: LayerUnderTest) -> None:
    for name in ("m1", "ids"):
        layer.lamella("run", "-d", "--name", name, "busybox", "--", "sleep", "1000")
    one, ids = (layer.show(name)["status"]["port"] for name in ("m1", "ids"))
    refused = layer.lamella("network", "mirror", "m1", "--to", "m1", check=False)
    assert refused.returncode and b"itself" in refused.stderr
    layer.lamella("network", "mirror", "m1", "--to", "ids")
    until(lambda: copied_to(layer, one) == {ids[-12:]})
    layer.lamella("restart", "-t", "1s", "ids")
    until(lambda: copied_to(layer, one) == {ids[-12:]})
    layer.kill()
    layer.start()
    layer.lamella("restart", "-t", "1s", "m1")
    until(lambda: copied_to(layer, one) == {ids[-12:]})
    layer.lamella("network", "mirror", "m1", "--to", "none")
    until(lambda: copied_to(layer, one) == set())
    layer.lamella("network", "mirror", "m1", "--to", "ids")
    until(lambda: copied_to(layer, one) == {ids[-12:]})
    layer.lamella("rm", "--force", "ids")
    until(lambda: json.loads(layer.out("port", "show", one, "-o", "json"))["spec"]["mirror"] == "")
    until(lambda: copied_to(layer, one) == set())
    layer.lamella("rm", "--force", "m1")
