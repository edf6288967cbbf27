"""A module as a person runs it: imported, run, read, restarted under a daemon that was killed."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.house import LayerUnderTest, layer_in, named_netns

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory, built: Path) -> Iterator[LayerUnderTest]:
    with named_netns(f"lamella-wm{os.getpid()}") as netns:
        with layer_in(tmp_path_factory.mktemp("layer") / "home", netns) as made:
            for name in ("hello", "deeds"):
                made.lamella("image", "import", str(built / f"{name}.wasm"), "--name", name)
            yield made


def test_its_output_and_exit_code_are_those_of_the_command(layer: LayerUnderTest) -> None:
    done = layer.lamella(
        "run", "--rm", "--isolation", "wasm", "--env", "GREETING=hello", "hello", "--", "7", check=False
    )
    assert done.returncode == 7
    assert done.stdout.endswith(b"argument 1: 7\nGREETING is hello") and done.stderr == b"to standard error\n"


def test_a_directory_fuel_and_a_deadline_are_asked_for(layer: LayerUnderTest, tmp_path: Path) -> None:
    run = ["run", "--rm", "--isolation", "wasm", "--dir", f"{tmp_path}:/data"]
    layer.lamella(*run, "deeds", "--", "write", "/data/new")
    assert (tmp_path / "new").read_text() == "written inside\n"
    assert layer.lamella(*run, "--deadline", "1s", "deeds", "--", "spin", check=False).returncode == 124
    assert layer.lamella(*run, "--fuel", "1000000", "deeds", "--", "spin", check=False).returncode == 134


def test_what_it_has_not_is_refused_in_words(layer: LayerUnderTest) -> None:
    layer.lamella("run", "-d", "--name", "s", "--isolation", "wasm", "deeds", "--", "sleep", "100")
    done = layer.lamella("exec", "s", "--", "sh", check=False)
    assert done.returncode != 0 and b"one module" in done.stderr
    layer.lamella("rm", "-f", "s")


def test_a_daemon_that_was_killed_finds_it_again(layer: LayerUnderTest) -> None:
    layer.lamella("run", "-d", "--name", "t", "--isolation", "wasm", "deeds", "--", "ticks", "15")
    layer.kill()
    layer.start()
    deadline = time.monotonic() + 90
    while b"stopped (6)" not in layer.lamella("ps", "-a").stdout:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert layer.lamella("logs", "t").stdout == b"".join(b"tick %d\n" % number for number in range(15))
    layer.lamella("rm", "-f", "t")
