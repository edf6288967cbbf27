"""A whole layer over PostgreSQL: the same life, the same promises after a crash, of the daemon or of the database."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.house import LayerUnderTest, layer_in
from tests.postgres import Postgres, postgres_server

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres_server() as made:
        yield made


@pytest.fixture(scope="module")
def layer(
    tmp_path_factory: pytest.TempPathFactory, netns: str, root_tar: Path, server: Postgres
) -> Iterator[LayerUnderTest]:
    home = tmp_path_factory.mktemp("layer") / "home"
    with layer_in(home, netns, "--database", server.new_schema()) as made:
        made.lamella("image", "import", str(root_tar), "--name", "busybox")
        yield made
        assert not (home / "state" / "lamella.db").exists()


def test_run_and_exec(layer: LayerUnderTest) -> None:
    done = layer.lamella("run", "--rm", "busybox", "--", "sh", "-c", "echo out; echo err >&2; exit 9", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (9, b"out\n", b"err\n")
    layer.lamella("run", "-d", "--name", "box", "busybox", "--", "sleep", "1000")
    assert layer.out("exec", "-i", "box", "--", "cat", stdin=b"in\0put") == "in\0put"
    twice = layer.lamella("run", "-d", "--name", "box", "busybox", "--", "true", check=False)
    assert twice.returncode == 125 and b"box" in twice.stderr
    layer.lamella("rm", "--force", "box")
    assert layer.out("ps", "-a", "-q") == ""


def test_what_runs_outlives_the_daemon(layer: LayerUnderTest) -> None:
    layer.lamella("run", "-d", "--name", "lives", "busybox", "--", "sleep", "1000")
    layer.lamella(
        "run", "-d", "--name", "ends", "busybox", "--",
        "sh", "-c", "while ! [ -e /root/go ]; do sleep 0.1; done; sleep 1; exit 42",
    )  # fmt: skip
    pid = layer.wait_phase("lives", "running")["status"]["pid"]
    layer.lamella("exec", "ends", "--", "touch", "/root/go")
    layer.kill()
    time.sleep(2)
    layer.start()
    seen = layer.show("lives")["status"]
    assert (seen["phase"], seen["pid"], seen["epoch"], seen["restarts"]) == ("running", pid, 1, 0)
    assert layer.out("exec", "lives", "--", "echo", "here") == "here\n"
    assert layer.wait_phase("ends", "stopped")["status"]["exit_code"] == 42
    layer.lamella("rm", "--force", "lives")
    layer.lamella("rm", "ends")


def test_the_database_crashes_and_comes_back(layer: LayerUnderTest, server: Postgres) -> None:
    """The daemon stays: it says a sentence meanwhile, and goes on by itself."""
    layer.lamella("run", "-d", "--name", "lives", "busybox", "--", "sleep", "1000")
    pid = layer.wait_phase("lives", "running")["status"]["pid"]
    server.stop(signal.SIGQUIT)
    try:
        asked = layer.lamella("ps", check=False, timeout=90)
        assert asked.returncode == 1 and b"Traceback" not in asked.stderr and asked.stderr.strip(), asked
        assert layer.daemon is not None and layer.daemon.poll() is None
    finally:
        server.start()
    deadline = time.monotonic() + 90
    while layer.lamella("ps", "-q", check=False).returncode != 0:
        assert time.monotonic() < deadline, layer.log()
        time.sleep(0.2)
    assert layer.wait_phase("lives", "running")["status"]["pid"] == pid
    # The watch of the log goes on: a start is heard of.
    done = layer.lamella("run", "--rm", "busybox", "--", "sh", "-c", "exit 6", check=False, timeout=90)
    assert done.returncode == 6, done.stderr
    layer.lamella("rm", "--force", "lives")
