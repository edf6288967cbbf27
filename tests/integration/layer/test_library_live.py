"""The library against a real daemon: both faces, every level, many at once, and let go in the midst of it."""

import asyncio
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.house import LayerUnderTest

import lamella
from lamella.client.result import CommandFailed
from lamella.model.errors import Conflict, NotFound
from lamella.model.instance import Phase
from lamella.model.stream import ExecSpec, Exit, Resize, Stdin, StdinEnd, Stdout

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

LEVELS = ("container", "microvm")
README = Path(__file__).parents[3] / "README.md"


@pytest.fixture
def url(layer: LayerUnderTest) -> str:
    return f"unix://{layer.home}/run/lamellad.sock"


@pytest.fixture(autouse=True)
def nothing_stays(layer: LayerUnderTest):
    yield
    assert layer.out("ps", "-a", "-q") == ""


@pytest.mark.parametrize("level", LEVELS)
async def test_the_whole_shape(url: str, level: str) -> None:
    async with lamella.connect(url) as layer:
        async with layer.run(
            "busybox", command=["sh", "-c", "trap 'exit 5' TERM; echo begun | tee -a /root/runs; while :; do sleep 0.1; done"],
            isolation=level, memory="192MiB", cpu=1, environment={"GREETING": "hello"}, labels={"role": "test"}, name="shape",
        ) as box:  # fmt: skip
            assert (box.phase, box.name) == (Phase.RUNNING, "shape")
            result = await box.exec("sh", "-c", "cat; echo $GREETING; echo err >&2; exit 3", input=b"in\0")
            assert (result.exit_code, result.stdout, result.stderr) == (3, b"in\0hello\n", b"err\n")
            with pytest.raises(CommandFailed):
                await box.exec("false", check=True)
            assert (await box.exec("sleep", "100", timeout=0.3)).exit_code == 124
            assert (await box.exec("id", "-u", user="app", working_directory="/tmp")).text.strip() == "1000"

            data = bytes(range(256)) * 4096
            await box.make_directory("/srv/deep/er")
            await box.write_file("/srv/deep/er/file", data, mode=0o640, uid=1000)
            assert await box.read_file("/srv/deep/er/file") == data
            assert b"".join([piece async for piece in box.open_file("/srv/deep/er/file")]) == data
            await box.write_file("/srv/pieces", (data for _ in range(3)))
            assert (await box.stat("/srv/pieces")).size == 3 * len(data)
            seen = await box.stat("/srv/deep/er/file")
            assert (seen.size, seen.mode & 0o777, seen.uid) == (len(data), 0o640, 1000)
            assert [entry.path.rpartition("/")[2] for entry in await box.list_directory("/srv/deep")] == ["er"]
            with pytest.raises(NotFound):
                await box.read_file("/nowhere")

            contract = await box.contract()
            assert contract.observed and contract.level.startswith(level)
            assert {"image", "host"} <= {d.what for d in (await box.explain()).decisions}
            usage = await box.usage()
            assert usage is not None and usage.memory > 0
            await box.set(memory="160MiB", labels={"role": None, "new": "yes"})
            assert (box.instance.spec.memory, box.instance.labels) == (160 << 20, {"new": "yes"})

            await box.pause()
            assert box.phase is Phase.PAUSED
            with pytest.raises(Conflict, match="paused"):
                await box.exec("true")
            await box.resume()
            assert (await box.exec("echo", "awake")).text == "awake\n"
            logged = b"".join([entry.data async for entry in box.logs()])
            assert b"begun" in logged

            await box.kill("TERM")
            assert await box.wait(timeout=90) == 5
            await box.start()
            await box.exec("sh", "-c", "while [ $(wc -l < /root/runs) -lt 2 ]; do sleep 0.05; done")
            await box.stop(timeout=90)
            assert (await box.wait(), box.instance.status.epoch) == (5, 2)
        with pytest.raises(NotFound):
            await layer.instances.get("shape")


@pytest.mark.parametrize("level", LEVELS)
async def test_streams_go_both_ways_and_logs_are_followed(url: str, level: str) -> None:
    async with lamella.connect(url) as layer:
        command = [
            "sh",
            "-c",
            "while ! [ -e /root/go ]; do sleep 0.1; done; for i in 1 2 3; do echo line $i; done; exit 4",
        ]
        async with layer.run("busybox", command=command, isolation=level) as box:
            async with box.stream(["cat"]) as stream:
                for word in (b"one", b"two"):
                    await stream.send(Stdin(word))
                    assert await stream.receive() == Stdout(word)
                await stream.send(StdinEnd())
                assert [frame async for frame in stream] == [Exit(0)] and stream.exit_code == 0
            spec = ExecSpec(command=["sh"], terminal=True, stdin=True, rows=30, columns=100)
            async with box.stream(spec) as stream:
                await stream.send(Resize(40, 120))
                await stream.send(Stdin(b"stty size; exit 6\n"))
                shown = b"".join([frame.data async for frame in stream if isinstance(frame, Stdout)])
                assert b"40 120" in shown and stream.exit_code == 6
            # A process whose caller lets go does not live on.
            async with box.stream(["sh", "-c", "echo $$; exec sleep 1234"]) as stream:
                assert isinstance(await stream.receive(), Stdout)
            deadline = time.monotonic() + 90
            while "1234" in (await box.exec("ps")).text:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)

            followed = asyncio.create_task(_all(box.logs(follow=True)))
            await asyncio.sleep(0.2)
            await box.exec("touch", "/root/go")
            assert await box.wait(timeout=90) == 4
            assert (await asyncio.wait_for(followed, 90)).count(b"line") == 3


async def _all(entries) -> bytes:
    return b"".join([entry.data async for entry in entries])


@pytest.mark.parametrize("level", LEVELS)
def test_the_blocking_face(url: str, level: str) -> None:
    with lamella.connect_sync(url) as layer:
        command = ["sh", "-c", "echo begun; while ! [ -e /root/go ]; do sleep 0.1; done; echo ended; exit 4"]
        with layer.run("busybox", command=command, isolation=level, memory="192MiB") as box:
            result = box.exec("sh", "-c", "cat; exit 3", input=b"x" * 300_000)
            assert (result.exit_code, len(result.stdout)) == (3, 300_000)
            box.write_file("/srv", b"hello")
            assert (box.read_file("/srv"), box.stat("/srv").size) == (b"hello", 5)
            with box.stream(["cat"]) as stream:
                stream.send(Stdin(b"word"))
                assert stream.receive() == Stdout(b"word")
            assert box.contract().observed
            box.set(memory="160MiB")
            box.pause()
            assert box.phase is Phase.PAUSED
            box.resume()
            threading.Timer(
                0.3, lambda: lamella.connect_sync(url).instances.get(box.name).write_file("/root/go", b"")
            ).start()
            followed = b"".join(entry.data for entry in box.logs(follow=True))
            assert b"begun" in followed and b"ended" in followed
            assert box.wait(timeout=90) == 4


async def test_ten_at_once(url: str) -> None:
    async with lamella.connect(url) as layer:

        async def one(number: int) -> int:
            async with layer.run("busybox", command=["sleep", "1000"], labels={"batch": "ten"}) as box:
                result = await box.exec("sh", "-c", f"echo {number}; exit {number}")
                assert result.text == f"{number}\n"
                assert len(await layer.instances.list(labels={"batch": "ten"})) <= 10
                return result.exit_code

        assert await asyncio.gather(*(one(number) for number in range(10))) == list(range(10))
        assert await layer.instances.list(labels={"batch": "ten"}) == []


async def test_what_is_cancelled_leaves_nothing_wrong(url: str) -> None:
    async with lamella.connect(url) as layer:
        # A foreground run: made, attached, then its caller goes away. The instance's own process lives on.
        box = await layer.instances.create(
            "busybox", start=False, command=["sh", "-c", "read x; sleep 1000"], stdin=True
        )

        async def follow() -> None:
            async with box.attach(start=True) as stream:
                async for _ in stream:
                    pass

        task = asyncio.create_task(follow())
        await box.wait_for("running")
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await box.refresh()).status.phase is Phase.RUNNING
        assert (await box.exec("echo", "here")).text == "here\n"
        # Another may take its place.
        async with box.attach() as stream:
            await stream.send(Stdin(b"\n"))
        await box.remove(force=True)

        # Let go at any moment of the way in.
        for delay in (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2):
            box = await layer.instances.create("busybox", start=False, command=["sleep", "1000"])
            task = asyncio.create_task(_attach(box))
            await asyncio.sleep(delay)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await box.start()
            assert (await box.exec("echo", "here")).text == "here\n", delay
            await box.remove(force=True)

        async def run() -> None:
            async with layer.run("busybox", command=["sleep", "1000"]):
                await asyncio.sleep(1000)

        for delay in (0.01, 0.05, 0.15, 0.3):
            task = asyncio.create_task(run())
            await asyncio.sleep(delay)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        deadline = time.monotonic() + 90
        while await layer.instances.list():
            assert time.monotonic() < deadline, await layer.instances.list()
            await asyncio.sleep(0.1)


async def _attach(box) -> None:
    async with box.attach(start=True) as stream:
        async for _ in stream:
            pass


async def test_what_fails_says_so_and_leaves_nothing(url: str) -> None:
    async with lamella.connect(url) as layer:
        for level in LEVELS:
            async with layer.run("busybox", command=["/no-such-program"], isolation=level) as box:
                assert await box.wait(timeout=90) == 127
            told = [event.spec.message async for event in layer.events() if event.spec.subject == box.id]
            assert any("/no-such-program" in message for message in told)
        with pytest.raises(NotFound) as absent:
            async with layer.run("absent"):
                pass
        assert "lamella image" in absent.value.hint and absent.value.field == "spec.image"


async def test_a_watch_tells_a_life(url: str) -> None:
    async with lamella.connect(url) as layer:
        since = (await layer.about()).revision
        async with layer.run("busybox", command=["true"], name="watched") as box:
            await box.wait(timeout=90)
        seen: list[str] = []
        async with asyncio.timeout(90):
            async for change in layer.instances.watch(since=since):
                seen.append(change.action)
                if change.action == "deleted":
                    break
        assert seen[0] == "created" and seen.count("created") == 1 and set(seen[1:-1]) == {"updated"}
        types = [event.spec.type async for event in layer.events() if event.spec.subject == box.id]
        assert types[0] == "instance.created" and types[-1] == "instance.removed" and "instance.ended" in types


def test_the_example_of_the_readme_runs_as_it_stands(layer: LayerUnderTest, root_tar: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert "lamella.connect()" in example
    layer.lamella("image", "import", str(root_tar), "--name", "debian:12")
    try:
        done = subprocess.run(
            [sys.executable, "-c", example], env=layer.environment, capture_output=True, text=True, timeout=90
        )
        assert done.returncode == 0 and re.fullmatch(r"\d+\.\d+\S*\n\n?", done.stdout), (done.stdout, done.stderr)
    finally:
        layer.lamella("image", "rm", "debian:12")
