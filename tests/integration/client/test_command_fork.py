"""``fork``, ``suspend``, ``resume`` and snapshots with a memory as a person types them, and the library's two faces, over real control and
API."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from storage_layer import StorageServed

from lamella.client.aio.layer import connect as connect_async
from lamella.client.blocking.layer import connect
from lamella.model.errors import Conflict, Invalid, Unsupported
from lamella.model.instance import Phase


@pytest.fixture
def served(tmp_path: Path) -> Iterator[StorageServed]:
    made = StorageServed(tmp_path)
    made.start()
    yield made
    made.stop()


def run(served: StorageServed, name: str = "web", *options: str) -> None:
    assert served.out("run", "-d", "--name", name, "--isolation", "microvm", *options, "box") == f"{name}\n"


def phase(served: StorageServed, name: str) -> str:
    return json.loads(served.out("show", name, "-o", "json"))["status"]["phase"]


def test_copies_are_named_and_the_pause_is_told(served: StorageServed) -> None:
    run(served)
    done = served.lamella("fork", "web", "--count", "3", "--label", "job=x")
    assert (done.returncode, done.stdout) == (0, b"web-1\nweb-2\nweb-3\n")
    assert b"web stood still for 4 ms" in done.stderr
    quiet = served.lamella("fork", "web", "--name", "job", "-q")
    assert (quiet.stdout, quiet.stderr) == (b"job-1\n", b"")
    assert json.loads(served.out("show", "web-2", "-o", "json"))["labels"] == {"job": "x"}
    assert "web@for-" not in served.out("snapshot", "ls") and "web@for-" in served.out("snapshot", "ls", "--all")
    for wrong in ("0", "-1", "many"):
        refused = served.lamella("fork", "web", "--count", wrong)
        assert refused.returncode == 2 or b"number of copies" in refused.stderr
    container = served.lamella("run", "-d", "--name", "plain", "box")
    assert container.returncode == 0
    refused = served.lamella("fork", "plain")
    assert refused.returncode and b"a container cannot be copied while it runs" in refused.stderr
    assert b"--isolation microvm can" in refused.stderr


def test_suspend_and_resume(served: StorageServed) -> None:
    run(served)
    assert served.out("suspend", "web") == "web\n" and phase(served, "web") == "suspended"
    assert served.out("suspend", "web") == "web\n"
    assert "suspended" in served.out("ps")
    refused = served.lamella("exec", "web", "--", "true")
    assert refused.returncode and b"web is suspended" in refused.stderr and b"lamella resume web" in refused.stderr
    refused = served.lamella("pause", "web")
    assert refused.returncode and b"web is suspended" in refused.stderr
    refused = served.lamella("snapshot", "create", "web", "s", "--memory")
    assert refused.returncode and b"no memory that could be kept" in refused.stderr
    assert served.out("resume", "web") == "web\n" and phase(served, "web") == "running"
    served.out("suspend", "web")
    assert served.out("stop", "web") == "web\n" and phase(served, "web") == "stopped"
    refused = served.lamella("suspend", "web")
    assert refused.returncode and b"only a running instance can be suspended" in refused.stderr
    served.out("start", "web")
    served.out("suspend", "web")
    assert served.out("restart", "web") == "web\n"
    assert json.loads(served.out("show", "web", "-o", "json"))["spec"]["epoch"] == 3
    served.out("suspend", "web")
    assert served.out("rm", "web") == "web\n"


def test_a_memory_is_kept_and_gone_back_to(served: StorageServed) -> None:
    run(served)
    assert served.out("snapshot", "create", "web", "s1", "--memory") == "web@s1\n"
    table = served.out("snapshot", "ls", "web")
    assert "MEMORY" in table and "4KiB" in table and "instance" in table and "application" in table
    refused = served.lamella("snapshot", "restore", "web@s1")
    assert refused.returncode and b"lamella stop web" in refused.stderr
    served.out("stop", "web")
    both = served.lamella("snapshot", "restore", "web@s1", "--start", "--no-start")
    assert both.returncode and b"contradict" in both.stderr
    assert served.out("snapshot", "restore", "web@s1", "-q", "--no-start") == "web@s1\n"
    shown = json.loads(served.out("show", "web", "-o", "json"))
    assert shown["status"]["phase"] == "stopped" and shown["status"]["beginning"]["epoch"] == 2
    refused = served.lamella("snapshot", "rm", "web@s1")
    assert refused.returncode and b"web begins with the memory" in refused.stderr
    assert served.out("snapshot", "restore", "web@s1", "-q", "--disks") == "web@s1\n"
    assert json.loads(served.out("show", "web", "-o", "json"))["status"].get("beginning") is None
    assert served.out("snapshot", "restore", "web@s1", "-q") == "web@s1\n"
    assert served.out("start", "web") == "web\n" and phase(served, "web") == "running"
    assert json.loads(served.out("show", "web", "-o", "json"))["spec"]["epoch"] == 2
    assert served.out("snapshot", "rm", "web@s1") == "web@s1\n" and not served.host.memories


def test_the_library_forks_waiting(served: StorageServed) -> None:
    with connect(served.url) as layer:
        web = layer.instances.create("box", name="web", isolation="microvm")
        seen: list[str] = []
        copies = web.fork(2, labels={"job": "x"}, progress=lambda status: seen.append(status.phase))
        assert [copy.name for copy in copies] == ["web-1", "web-2"] and seen[-1] == "done"
        assert all(copy.phase is Phase.RUNNING and copy.instance.labels == {"job": "x"} for copy in copies)
        assert web.snapshot("s", memory=True).status.memory == 4096
        assert layer.snapshots.create("web", "t", memory=True).name == "web@t"
        web.suspend()
        assert web.phase is Phase.SUSPENDED
        with pytest.raises(Conflict):
            web.fork()
        web.resume()
        assert web.phase is Phase.RUNNING
        with pytest.raises(Invalid):
            web.fork(0)
        web.stop()
        assert layer.snapshots.restore("web@s", start=False).name == "web@s"
        web.start()


async def test_the_library_forks(served: StorageServed) -> None:
    async with connect_async(served.url) as layer:
        web = await layer.instances.create("box", name="web", isolation="microvm")
        copies = await web.fork(2, name="job")
        assert [copy.name for copy in copies] == ["job-1", "job-2"]
        await web.snapshot("s", memory=True)
        await web.suspend()
        await web.resume()
        await web.stop()
        await layer.snapshots.restore("web@s", memory=False)
        plain = await layer.instances.create("box", name="plain")
        with pytest.raises(Unsupported):
            await plain.fork()
