"""Backups of a whole layer, by its command: what changed is read, files are taken out, and the layer comes back on a bare machine."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.house import LayerUnderTest, busybox_root, layer_in, named_netns

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

NETNS = "lamella-test-backup"


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LayerUnderTest, Path]]:
    place = tmp_path_factory.mktemp("backup")
    with named_netns(NETNS), layer_in(place / "home", NETNS) as layer:
        layer.out("image", "import", str(busybox_root(place / "busybox.tar")), "-n", "busybox")
        layer.out("volume", "create", "data", "--size", "256MiB")
        yield layer, place


def said(layer: LayerUnderTest, *words: str) -> Any:
    return json.loads(layer.out(*words, "-o", "json"))


def write(layer: LayerUnderTest, script: str, volume: str = "data") -> str:
    """Run *script* in a container that has the volume at /d."""
    name = f"writer-{time.monotonic_ns()}"
    out = layer.out("run", "--name", name, "--volume", f"{volume}:/d", "busybox", "--", "sh", "-c", script)
    layer.out("rm", "-f", name)
    return out


def test_a_volume_there_and_back_again(ground: tuple[LayerUnderTest, Path]) -> None:
    layer, place = ground
    made = layer.lamella("backup", "repository", "create", "vault", "--to", str(place / "vault"))
    key = next(line.strip() for line in made.stderr.decode().splitlines() if line.count("-") == 13)
    (place / "key").write_text(key)
    write(layer, "dd if=/dev/urandom of=/d/large bs=1M count=24 2>/dev/null; echo first >/d/letter; sync")
    first = layer.out("backup", "create", "data", "--to", "vault", "-q").strip()
    full = said(layer, "backup", "show", first)["status"]
    assert full["phase"] == "ready" and not full["incremental"]
    write(layer, "echo second >/d/letter; sync")
    second = layer.out("backup", "create", "data", "--to", "vault", "-q").strip()
    status = said(layer, "backup", "show", second)["status"]
    # A few pieces: the letter, its directory, the journal. Not the large file.
    assert status["incremental"] and status["read"] < full["read"] * 0.7
    # One snapshot is kept for the next one, and no more.
    assert len(layer.out("snapshot", "ls", "-a", "-q").split()) == 1
    assert "no findings" in layer.out("backup", "verify", "--full", "-q")
    shown = said(layer, "backup", "show", second)["status"]
    assert shown["verified"] is True
    # Both come back as they were.
    for backup, word in ((first, "first"), (second, "second")):
        layer.out("backup", "restore", backup, "--as", f"back-{word}", "-q")
        assert write(layer, "cat /d/letter", f"back-{word}").strip() == word
    assert write(layer, "md5sum </d/large", "back-second") == write(layer, "md5sum </d/large")


def test_single_files_are_taken_out(ground: tuple[LayerUnderTest, Path]) -> None:
    layer, _ = ground
    path = Path(layer.out("backup", "mount", "data").strip())
    try:
        assert (path / "letter").read_text() == "second\n"
        with pytest.raises(OSError):
            (path / "letter").write_text("x")
        # It outlives the daemon.
        layer.kill()
        layer.start()
        assert (path / "letter").read_text() == "second\n"
        assert Path(layer.out("backup", "mount", "data").strip()) == path
    finally:
        layer.out("backup", "unmount", "data")
    assert not (path / "letter").exists()


def test_a_volume_that_is_backed_up_moves_and_gets_another_key(ground: tuple[LayerUnderTest, Path]) -> None:
    layer, place = ground
    (place / "second").mkdir()
    layer.out("pool", "create", "second", "--driver", "directory", "--path", str(place / "second"))
    layer.out("volume", "create", "sealed", "--size", "64MiB", "--encrypt")
    write(layer, "echo one >/d/letter; sync", "sealed")
    first = layer.out("backup", "create", "sealed", "--to", "vault", "-q").strip()
    layer.out("volume", "move", "sealed", "--pool", "second")
    write(layer, "echo two >/d/letter; sync", "sealed")
    second = layer.out("backup", "create", "sealed", "--to", "vault", "-q").strip()
    assert not said(layer, "backup", "show", second)["status"]["incremental"]
    layer.out("volume", "rekey", "sealed")
    write(layer, "echo three >/d/letter; sync", "sealed")
    third = layer.out("backup", "create", "sealed", "--to", "vault", "-q").strip()
    # Each comes back with the key of its time.
    for backup, held in ((first, "one"), (second, "two"), (third, "three")):
        layer.out("backup", "restore", backup, "--as", f"sealed-{held}", "-q")
        assert write(layer, "cat /d/letter", f"sealed-{held}").strip() == held
        layer.out("volume", "rm", f"sealed-{held}")
    layer.out("backup", "rm", third)
    layer.out("volume", "rm", "sealed")


def test_the_daemon_dies_while_it_backs_up_and_the_next_one_works(ground: tuple[LayerUnderTest, Path]) -> None:
    layer, _ = ground
    write(layer, "dd if=/dev/urandom of=/d/more bs=1M count=60 2>/dev/null; sync")
    before = set(layer.out("backup", "ls", "data", "-q").split())
    work = subprocess.Popen(
        ["lamella", "backup", "create", "data", "--to", "vault", "-q"],
        executable=str(Path(shutil.sys.executable).parent / "lamella"),  # type: ignore[attr-defined]
        env=layer.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(1.5)
    layer.kill()
    work.wait(90)
    layer.start()
    for row in said(layer, "backup", "ls", "data"):
        if row["name"] not in before:
            assert row["status"]["phase"] in ("failed", "ready")
    done = layer.out("backup", "create", "data", "--to", "vault", "-q").strip()
    assert said(layer, "backup", "show", done)["status"]["phase"] == "ready"
    assert len(layer.out("snapshot", "ls", "-a", "-q").split()) == 1


def test_a_policy_makes_them_by_itself(ground: tuple[LayerUnderTest, Path]) -> None:
    layer, _ = ground
    layer.out("volume", "create", "small", "--size", "32MiB")
    layer.out("backup", "policy", "set", "small", "--to", "vault", "--daily", "2", "--verify", "0")
    deadline = time.monotonic() + 90
    while not (rows := said(layer, "backup", "ls", "small")) or rows[0]["status"]["phase"] != "ready":
        assert time.monotonic() < deadline, layer.out("backup", "policy", "ls") + layer.log()
        time.sleep(0.2)
    assert rows[0]["spec"]["policy"]


def test_a_bare_machine_and_the_repository_are_enough(ground: tuple[LayerUnderTest, Path]) -> None:
    layer, place = ground
    large = write(layer, "md5sum </d/large")
    layer.out("backup", "create", "data", "--to", "vault", "-q")
    layer.purge()
    # The machine is gone; another one has the repository and the key.
    bare = place / "bare"
    bare.mkdir()
    shutil.move(place / "vault", place / "carried")
    words = ["recover", "--from", str(place / "carried"), "--key-file", str(place / "key"), "--home", str(bare)]
    other = LayerUnderTest(bare, NETNS)
    wrong = other.lamella(*words[:4], str(place / "nothing"), *words[5:], check=False)
    assert wrong.returncode != 0
    told = other.out(*words)
    assert "data" in told
    assert other.lamella(*words, check=False).returncode != 0
    try:
        other.start()
        deadline = time.monotonic() + 90
        while any(row["status"]["phase"] == "running" for row in said(other, "operation", "ls")):
            assert time.monotonic() < deadline, other.log()
            time.sleep(0.2)
        other.out("image", "import", str(place / "busybox.tar"), "-n", "busybox")
        assert write(other, "md5sum </d/large") == large
        # The repository itself is known again, wherever it lies now.
        assert other.out("backup", "create", "data", "-q").strip()
    finally:
        other.purge()
        layer.start()
