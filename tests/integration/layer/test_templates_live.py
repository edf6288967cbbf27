"""Templates in a whole layer: built, copied, pooled, cut off in the middle, and removed with copies alive."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.house import LayerUnderTest

import lamella
from lamella.client.aio.box import Box

pytestmark = pytest.mark.root

WARMUP = "echo disk > /root/warm; mkdir -p /run/w; mount -t tmpfs none /run/w; echo memory > /run/w/warm"
# What tells one machine from another, a line each.
WHO = (
    "hostname; cat /etc/machine-id 2>/dev/null || echo none; cat /sys/class/net/eth0/address;"
    "ip -4 -o addr show dev eth0 | awk '{print $4}'; head -c 16 /dev/urandom | od -An -tx1; cat /root/warm /run/w/warm"
)


def until(what: Callable[[], Any], *, timeout: float = 90) -> Any:
    deadline = time.monotonic() + timeout
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.05)
    return found


def template(layer: LayerUnderTest, name: str = "warm") -> dict[str, Any]:
    return json.loads(layer.out("template", "show", name, "-o", "json"))


def everybody(layer: LayerUnderTest) -> list[dict[str, Any]]:
    return json.loads(layer.out("ps", "-a", "-o", "json"))


def waiting(layer: LayerUnderTest) -> list[dict[str, Any]]:
    return [item for item in everybody(layer) if item["spec"].get("power") == "ready"]


@pytest.fixture(scope="module")
def warm(layer: LayerUnderTest) -> str:
    layer.lamella(
        "template", "create", "warm", "--from", "busybox", "--memory", "160MiB", "--warmup", WARMUP, "-e", "A=1"
    )
    return "warm"


def test_copies_have_what_was_warmed_up_and_are_machines_of_their_own(layer: LayerUnderTest, warm: str) -> None:
    until(lambda: not waiting(layer))
    first, second = (
        layer.out("run", "--rm", "--template", warm, "--name", name, "--", "sh", "-c", WHO + "; echo $A").split("\n")
        for name in ("one", "two")
    )
    assert first[-4:-1] == second[-4:-1] == ["disk", "memory", "1"]
    assert (first[0], second[0]) == ("one", "two")
    for mine, theirs in zip(first[1:5], second[1:5], strict=True):
        assert mine != theirs or mine == "none"
    assert json.loads(layer.out("snapshot", "ls", "-a", "-o", "json"))


def test_what_it_is_is_said(layer: LayerUnderTest, warm: str) -> None:
    layer.lamella("run", "-d", "--template", warm, "--name", "said", "--", "sleep", "600")
    assert "copy of template warm" in layer.out("explain", "said")
    assert "template warm" in layer.out("contract", "said")
    refused = layer.lamella("run", "--template", warm, "--memory", "512MiB", "--", "true", check=False)
    assert refused.returncode == 125 and b"template warm has 160MiB" in refused.stderr
    layer.lamella("rm", "--force", "said")


def test_a_pool_is_filled_taken_from_and_filled_again(layer: LayerUnderTest, warm: str) -> None:
    layer.lamella("template", "set", warm, "--warm", "2")

    def full() -> list[str]:
        ready = [item["id"] for item in waiting(layer) if item["status"]["phase"] == "ready"]
        return ready if len(ready) == 2 else []

    before = until(full)
    assert not json.loads(layer.out("ps", "-o", "json"))
    assert layer.out(
        "run", "--template", warm, "--name", "taken", "--", "sh", "-c", "hostname; cat /run/w/warm"
    ).split() == ["taken", "memory"]
    assert layer.show("taken")["id"] in before
    after = until(full)
    assert layer.show("taken")["id"] not in after and len(set(after) & set(before)) == 1
    layer.lamella("rm", "taken")
    layer.lamella("template", "set", warm, "--warm", "0")
    until(lambda: not waiting(layer))


def test_a_daemon_that_is_killed_while_it_builds_goes_on_and_leaves_nothing(layer: LayerUnderTest) -> None:
    layer.lamella("template", "create", "slow", "-d", "--from", "busybox", "--memory", "160MiB", "--warmup", "sleep 2")
    until(lambda: template(layer, "slow")["status"].get("stage") == "warming")
    layer.kill()
    layer.start()
    until(lambda: template(layer, "slow")["status"]["phase"] == "ready")
    until(lambda: not waiting(layer))
    layer.lamella("template", "rm", "slow")
    until(lambda: "slow" not in layer.out("snapshot", "ls", "-a"))
    assert not [item for item in everybody(layer) if item["name"].startswith("slow")]


def test_a_failed_warm_up_says_what_it_said(layer: LayerUnderTest) -> None:
    done = layer.lamella(
        *("template", "create", "broken", "--from", "busybox", "--memory", "160MiB"),
        *("--warmup", "echo no such module; exit 3"),
        check=False,
    )
    assert done.returncode == 1 and b"no such module" in done.stderr and b"ended with 3" in done.stderr
    assert template(layer, "broken")["status"]["phase"] == "failed"
    until(lambda: not waiting(layer))
    layer.lamella("template", "rm", "broken")


def connected(layer: LayerUnderTest) -> str:
    return f"unix://{layer.home}/run/lamellad.sock"


async def test_boxes_of_the_library_are_used_once_each_and_none_is_left(layer: LayerUnderTest, warm: str) -> None:
    async with lamella.connect(connected(layer)) as here:
        async with here.warm(warm, size=2) as boxes:
            done = await boxes.map(["sh", "-c", "hostname; echo $0; exit $0"], ["3", "4", "5"])
            assert [result.exit_code for result in done] == [3, 4, 5]
            assert [result.text.split()[1] for result in done] == ["3", "4", "5"]
            assert len({result.text.split()[0] for result in done}) == 3

            async def work(box: Box, item: int) -> str:
                await box.write_file("/in", str(item).encode())
                return (await box.exec("cat", "/in", "/run/w/warm", check=True)).text

            assert await boxes.map(work, [1, 2]) == ["1memory\n", "2memory\n"]

            async def fail(box: Box, item: int) -> None:
                raise ZeroDivisionError(item)

            with pytest.raises(ZeroDivisionError):
                await boxes.map(fail, [1, 2, 3])
        async with here.run(template=warm, command=["sleep", "600"]) as box:
            assert (await box.exec("cat", "/run/w/warm")).text == "memory\n"
        for _ in range(900):
            if not await here.instances.list():
                break
            await asyncio.sleep(0.1)
        assert [box.name for box in await here.instances.list()] == []


def test_it_can_be_removed_with_copies_alive(layer: LayerUnderTest, warm: str) -> None:
    layer.lamella("run", "-d", "--template", warm, "--name", "left", "--", "sleep", "600")
    layer.lamella("template", "rm", warm)
    assert layer.out("exec", "left", "--", "cat", "/root/warm", "/run/w/warm").split() == ["disk", "memory"]
    gone = layer.lamella("run", "--template", warm, "--", "true", check=False)
    assert gone.returncode == 125 and b"no template is called" in gone.stderr
    layer.lamella("restart", "left")
    assert layer.out("exec", "left", "--", "cat", "/root/warm").split() == ["disk"]
    layer.lamella("rm", "--force", "left")
    until(lambda: json.loads(layer.out("snapshot", "ls", "-a", "-o", "json")) == [])
    until(lambda: json.loads(layer.out("volume", "ls", "-a", "-o", "json")) == [])
