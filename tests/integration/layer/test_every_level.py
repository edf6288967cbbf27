"""The contract suite of isolation levels: every verb works at every level, or is refused by a sentence that says why.

What a level lacks stands in its contract as well; here it is held against what happens.
"""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.house import LayerUnderTest
from tests.integration.unikernel.unikernel_kernels import build_pvh

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

MEMTEST = Path("/usr/lib/memtest86+/memtest86+x64.iso")
LOOP = """
#include <stdio.h>
#include <unistd.h>
int main(void) { for (;;) { puts("alive"); fflush(stdout); usleep(100000); } }
"""
SHELL = ("busybox", "--", "sh", "-c", "while :; do echo alive; sleep 0.2; done")


class Case(msgspec.Struct, kw_only=True):
    """One level: what is run, a word of its log (empty: it says nothing there), and what it lacks, by verb, with a word of the refusal."""

    level: str
    arguments: tuple[str, ...]
    says: str = "alive"
    lacks: dict[str, str]


NO_MACHINE = {"screenshot": "screen", "type": "keyboard", "desktop": "screen", "reset": "reset", "dump": "memory"}
CASES = [
    Case(level="container", arguments=SHELL, lacks={**NO_MACHINE, "device": "device", "reset": "reset"}),
    Case(level="microvm", arguments=SHELL, lacks={**NO_MACHINE, "device": "device"}),
    Case(
        level="wasm",
        arguments=("loop",),
        lacks={**NO_MACHINE, "device": "device", "exec": "other program", "cp": "file", "set": "start"},
    ),
    Case(
        level="unikernel",
        arguments=("kernel", "--cmdline", "tick"),
        says="tick",
        lacks={**NO_MACHINE, "device": "device", "exec": "second program", "cp": "file"},
    ),
    Case(level="vm", arguments=("memtest",), says="", lacks={"exec": "agent"}),
]


@pytest.fixture(scope="module")
def images(layer: LayerUnderTest, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("images")
    (folder / "loop.c").write_text(LOOP)
    subprocess.run(["clang", "--target=wasm32-wasi", "-O2", "-o", folder / "loop.wasm", folder / "loop.c"], check=True)
    layer.lamella("image", "import", str(folder / "loop.wasm"), "--name", "loop")
    layer.lamella("image", "import", str(build_pvh(folder)), "--name", "kernel")
    layer.lamella("image", "import", str(MEMTEST), "--name", "memtest")


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.level)
def case(request: pytest.FixtureRequest, images: None) -> Case:
    return request.param


@pytest.fixture(scope="module")
def box(layer: LayerUnderTest, case: Case) -> Iterator[str]:
    name = f"every-{case.level}"
    memory = ["--memory", "192MiB"] if case.level != "vm" else ["--memory", "256MiB"]
    layer.lamella("run", "-d", "--isolation", case.level, "--name", name, "--cpu", "1", *memory, *case.arguments)
    layer.wait_phase(name, "running")
    yield name
    layer.lamella("rm", "--force", name)


def test_a_verb_works_or_says_why_not(layer: LayerUnderTest, case: Case, box: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    verbs: dict[str, tuple[str, ...]] = {
        "screenshot": ("screenshot", box, "-o", str(tmp_path / "screen.png")),
        "type": ("type", box, "x"),
        "desktop": ("desktop", box, "--port", "0"),
        "dump": ("dump", box, "-o", str(tmp_path / "memory")),
        "exec": ("exec", box, "--", "true"),
        "cp": ("cp", str(tmp_path / "file"), f"{box}:/tmp/file"),
        "device": ("device", "attach", box, "disk", "1GiB"),
        "set": ("set", box, "--memory", "160MiB"),
        "reset": ("reset", box),
    }
    for verb, arguments in verbs.items():
        if verb == "desktop" and verb not in case.lacks:
            continue  # it waits for a viewer; tests/integration/vm has one
        if verb in ("cp", "exec") and case.level == "vm":
            continue  # refused after a minute and a half, for a guest may be booting: tests/unit/vm/test_vm_inside.py
        if verb == "set" and case.level in ("vm", "unikernel"):
            continue  # a guest without a balloon gives nothing back; tests/integration has guests that do
        done = layer.lamella(*arguments, check=False, timeout=200)
        if verb in case.lacks:
            said = done.stderr.decode()
            assert done.returncode != 0 and case.lacks[verb] in said, (verb, done)
            assert "Traceback" not in said and "inside the layer" not in said, (verb, said)
        else:
            assert done.returncode == 0, (verb, done)


def test_its_log_is_kept(layer: LayerUnderTest, case: Case, box: str) -> None:
    deadline = time.monotonic() + 90
    while case.says and case.says.encode() not in layer.lamella("logs", box).stdout:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_it_stands_still_while_it_is_paused(layer: LayerUnderTest, case: Case, box: str) -> None:
    layer.lamella("pause", box)
    layer.wait_phase(box, "paused")
    layer.lamella("resume", box)
    layer.wait_phase(box, "running")


def test_its_contract_is_read_from_it_and_says_what_it_lacks(layer: LayerUnderTest, case: Case, box: str) -> None:
    contract = json.loads(layer.out("contract", box, "-o", "json"))
    assert contract["observed"] and contract["level"].startswith(case.level)
    assert len(contract["isolation"]) >= 4
    lacks = " ".join(contract["lacks"])
    for verb in case.lacks:
        if verb in ("exec", "screenshot", "device", "reset", "dump"):
            assert verb in lacks, (verb, lacks)


def test_it_outlives_the_daemon_and_ends_when_it_is_told(layer: LayerUnderTest, case: Case, box: str) -> None:
    before = layer.show(box)["status"]
    layer.kill()
    layer.start()
    after = layer.show(box)["status"]
    assert (after["phase"], after["pid"]) == ("running", before["pid"])
    layer.lamella("kill", box)
    assert layer.wait_phase(box, "stopped")["status"]["exit_code"] == 137
    layer.lamella("start", box)
    layer.wait_phase(box, "running")
    layer.lamella("stop", "--time", "1s", box, check=False)
    layer.wait_phase(box, "stopped")
    layer.lamella("start", box)
    layer.wait_phase(box, "running")
