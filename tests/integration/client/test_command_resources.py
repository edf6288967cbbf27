"""The commands that list, show, change and copy, against the real API."""

import json
import os
import pty
import select
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from conftest import Served
from lamella.model.files import FileInfo, FileType


@pytest.fixture
def web(served: Served) -> Served:
    assert served.lamella("run", "-d", "--name", "web", "-l", "tier=front", "debian:12", "sleep", "100").returncode == 0
    return served


def test_ps_shows_what_runs_and_with_a_all(web: Served) -> None:
    for number in range(4):
        web.lamella("create", "--name", f"idle{number}", "debian:12")
    assert web.lamella("ps", "-q").stdout == b"web\n"
    assert set(web.lamella("ps", "-a", "-q").stdout.split()) == {b"web", b"idle0", b"idle1", b"idle2", b"idle3"}
    assert web.lamella("ps", "-a", "-q", "--filter", "label=tier=front").stdout == b"web\n"
    lines = web.lamella("ps").stdout.decode().splitlines()
    assert lines[0].split() == ["NAME", "STATUS", "ISOLATION", "IMAGE", "ADDRESS", "PORTS", "CREATED"]
    assert lines[1].startswith("web ")


def test_output_for_programs(web: Served) -> None:
    shown = json.loads(web.lamella("show", "web", "-o", "json").stdout)
    assert (shown["name"], shown["spec"]["command"]) == ("web", ["sleep", "100"])
    assert json.loads(web.lamella("ps", "-o", "json").stdout) == [shown]
    assert yaml.safe_load(web.lamella("show", "web", "-o", "yaml").stdout) == shown
    assert web.lamella("show", "web", "-o", "name").stdout == b"web\n"
    assert b"image: debian:12" in web.lamella("show", "web").stdout


def test_power_verbs_take_several_names_and_say_which_failed(web: Served) -> None:
    web.lamella("run", "-d", "--name", "two", "debian:12", "sleep", "100")
    done = web.lamella("stop", "web", "nobody", "two")
    assert (done.returncode, done.stdout) == (1, b"web\ntwo\n")
    assert b"there is no instance 'nobody'" in done.stderr
    assert web.lamella("start", "web").returncode == 0
    refused = web.lamella("rm", "web")
    assert (refused.returncode, refused.stdout) == (1, b"")
    assert b"lamella rm --force web" in refused.stderr
    assert web.lamella("rm", "-f", "web", "two").stdout == b"web\ntwo\n"
    assert web.lamella("ps", "-aq").stdout == b""


def test_set_sends_only_what_was_said(web: Served) -> None:
    assert web.lamella("set", "web", "--memory", "1GiB", "--cpu", "1.5", "-l", "a=b", "-l", "tier-").returncode == 0
    shown = json.loads(web.lamella("show", "web", "-o", "json").stdout)
    assert (shown["spec"]["memory"], shown["spec"]["cpu"]) == (1 << 30, 1500)
    assert shown["labels"] == {"a": "b"}
    assert web.lamella("set", "web", "--memory", "none").returncode == 0
    assert json.loads(web.lamella("show", "web", "-o", "json").stdout)["spec"]["memory"] is None
    assert web.lamella("set", "web").returncode == 1
    assert web.lamella("set", "web", "--memory", "much").returncode == 1


def test_logs_keep_their_streams_apart(served: Served, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    served.lamella(
        "run",
        "-d",
        "--name",
        "web",
        "debian:12",
        "sh",
        "-c",
        f"echo out; echo err >&2; until [ -e {gate} ]; do sleep 0.1; done; while :; do echo later; sleep 0.2; done",
    )
    deadline = time.monotonic() + 90
    while ((now := served.lamella("logs", "web")).stdout, now.stderr) != (b"out\n", b"err\n"):
        assert time.monotonic() < deadline, now
    gate.touch()
    follower = served.begin("logs", "-f", "--tail", "0", "web", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert follower.stdout is not None
    assert follower.stdout.readline() == b"later\n"
    follower.terminate()
    follower.wait(90)
    follower.stdout.close()
    stamped = served.lamella("logs", "--timestamps", "web").stdout.split()
    assert datetime.fromisoformat(stamped[0].decode()).tzinfo is not None


def test_events_follow(web: Served) -> None:
    assert b"instance.created" in web.lamella("events").stdout
    follower = web.begin("events", "-f", "-n", "0", "-o", "json", stdout=subprocess.PIPE)
    assert follower.stdout is not None
    # What happens before it listens it is not told: something happens until it is.
    for number in range(300):
        web.lamella("run", "--name", f"new{number}", "debian:12", "true")
        if select.select([follower.stdout], [], [], 0.5)[0]:
            break
    assert json.loads(follower.stdout.readline())["spec"]["subject_name"].startswith("instance/new")
    follower.terminate()
    follower.wait(90)
    follower.stdout.close()


def test_images(served: Served) -> None:
    built = served.lamella("image", "build", "debian:13", "--with", "curl,jq")
    assert (built.returncode, built.stdout) == (0, b"debian:13\n")
    failed = served.lamella("image", "pull", "docker://registry/absent:1")
    assert failed.returncode == 1
    assert failed.stderr == b"lamella: the registry does not have it\n  look at its tags\n"
    assert served.lamella("image", "ls", "-o", "name").stdout == b"debian:12\ndebian:13\n"
    assert served.lamella("image", "show", "debian:12", "-o", "name").stdout == b"debian:12\n"
    assert served.lamella("image", "rm", "debian:13").returncode == 0
    assert served.lamella("image", "gc").stdout == b"freed 3MiB\n"
    assert b"image/debian:13" in served.lamella("operation", "ls").stdout


def test_what_takes_more_than_a_second_shows_how_far_it_is(served: Served) -> None:
    served.layer.slow = 1.5
    master, slave = pty.openpty()
    process = served.begin("image", "build", "debian:13", stderr=slave, stdout=subprocess.PIPE)
    os.close(slave)
    assert process.wait(90) == 0
    seen = os.read(master, 65536).decode()
    os.close(master)
    assert process.stdout is not None
    process.stdout.close()
    assert "building debian:13: layer" in seen
    assert "of 5MiB" in seen
    assert seen.endswith("\x1b[K")


def test_pages_for_people(web: Served) -> None:
    contract = web.lamella("contract", "web").stdout.decode()
    assert "What isolates it" in contract and "that it is isolated" in contract
    explained = web.lamella("explain", "web").stdout
    assert b"\\x1b[31m" in explained and b"\x1b" not in explained
    assert web.lamella("doctor").returncode == 0
    top = web.lamella("top").stdout.decode()
    assert top.splitlines()[1].split()[:2] == ["web", "50%"]
    assert web.lamella("network", "ls", "-o", "name").stdout == b"default\n"
    assert b"you are unix:" in web.lamella("version").stdout


def test_bad_usage_exits_2(served: Served) -> None:
    assert served.lamella("frobnicate").returncode == 2
    assert b"did you mean `lamella start`" in served.lamella("strat").stderr
    assert served.lamella("ps", "--nope").returncode == 2
    assert served.lamella("rm").returncode == 2
    assert served.lamella("image", "frob").returncode == 2
    assert served.lamella("--help").returncode == 0
    assert served.lamella("run", "--help").returncode == 0


def test_cp_takes_files_and_trees_both_ways(web: Served, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep" / "er").mkdir(parents=True)
    (tree / "deep" / "er" / "file").write_bytes(os.urandom(1 << 20))
    (tree / "run.sh").write_text("#!/bin/sh\n")
    (tree / "run.sh").chmod(0o755)
    assert web.lamella("cp", str(tree), "web:/").returncode == 0
    assert web.lamella("cp", str(tree / "run.sh"), "web:/tree/again.sh").returncode == 0
    back = tmp_path / "back"
    back.mkdir()
    done = web.lamella("cp", "web:/tree", str(back))
    assert done.returncode == 0, done.stderr
    assert (back / "tree/deep/er/file").read_bytes() == (tree / "deep/er/file").read_bytes()
    assert (back / "tree/again.sh").stat().st_mode & 0o777 == 0o755
    assert web.lamella("cp", "web:/tree/run.sh", str(tmp_path / "renamed")).returncode == 0
    assert (tmp_path / "renamed").read_text() == "#!/bin/sh\n"
    assert web.lamella("cp", "web:/tree/run.sh", "-").stdout == b"#!/bin/sh\n"
    assert web.lamella("cp", "-", "web:/typed", input=b"typed").returncode == 0
    assert web.lamella("cp", "web:/typed", "-").stdout == b"typed"
    assert web.lamella("cp", str(tree), str(back)).returncode == 1
    absent = web.lamella("cp", "web:/nothing", str(back))
    assert (absent.returncode, absent.stderr) == (1, b"lamella: there is no /nothing in web\n")


def _entry(path: str, kind: FileType, target: str = "") -> FileInfo:
    return FileInfo(path=path, type=kind, mode=0o777, modified_at=datetime.now(UTC), target=target)


def test_cp_is_not_led_out_of_the_target(web: Served, tmp_path: Path) -> None:
    """An instance may say of its files what it likes: nothing outside the target is written."""
    root = web.root / json.loads(web.lamella("show", "web", "-o", "json").stdout)["id"]
    (root / "tree/exit").mkdir(parents=True)
    (root / "tree/exit/planted").write_text("gotcha")
    outside = tmp_path / "outside"
    outside.mkdir()
    back = tmp_path / "back"
    back.mkdir()
    web.layer.lies["/tree"] = [
        _entry("/tree/exit", FileType.SYMLINK, str(outside)),
        _entry("/tree/exit", FileType.DIRECTORY),
    ]
    assert web.lamella("cp", "web:/tree", str(back)).returncode == 1
    web.layer.lies["/tree"] = [
        _entry("/tree/exit", FileType.SYMLINK, str(outside / "planted")),
        _entry("/tree/exit", FileType.FILE),
    ]
    assert web.lamella("cp", "web:/tree", str(back / "again")).returncode == 1
    web.layer.lies["/tree"] = [_entry("/tree/..", FileType.DIRECTORY)]
    refused = web.lamella("cp", "web:/tree", str(back / "third"))
    assert refused.returncode == 1 and b"leads elsewhere" in refused.stderr
    assert list(outside.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "instances", "lamellad.sock", "outside"]


def test_completion_knows_commands_options_and_names(web: Served) -> None:
    script = web.lamella("completion", "bash").stdout.decode()
    ask = 'COMP_WORDS=({words}); COMP_CWORD={at}; _lamella; printf "%s\\n" "${{COMPREPLY[@]}}"'

    def complete(*words: str) -> list[str]:
        line = ask.format(words=" ".join(f"'{word}'" for word in words), at=len(words) - 1)
        path = f"{Path(web.lamella.__globals__['COMMAND']).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", script + line],
            capture_output=True,
            timeout=90,
            env={**web.environment, "PATH": path},
            check=True,
        )
        return done.stdout.decode().split()

    assert "restart" in complete("lamella", "re")
    assert complete("lamella", "image", "pu") == ["pull"]
    assert "--isolation" in complete("lamella", "run", "--is")
    assert complete("lamella", "exec", "w") == ["web"]
