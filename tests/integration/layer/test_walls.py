"""Between instances, the host's other users and the layer itself: what is tried against a real daemon, and must not work."""

import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest
from tests.house import BIN

from lamella.host.linux.processes import all_pids, command_line, parent, start_time

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

SERVER = "while :; do echo served | nc -l -p 80; done"


def until(what: str, check, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_a_room_whose_holder_is_killed_goes_on(layer) -> None:
    """The holder is one small process: its end costs nobody anything, whether the daemon lives or dies with it."""
    layer.lamella("run", "-d", "--name", "before", "busybox", "--", "sh", "-c", SERVER)
    address = layer.show("before")["status"]["address"]
    room = layer.home / "run" / "room"
    spaces = _spaces(_holder(room))

    first = _holder(room)
    os.kill(first, signal.SIGKILL)
    until("no new holder", lambda: _holder(room) != first)
    assert _spaces(_holder(room)) == spaces
    assert layer.out("run", "--rm", "busybox", "--", "echo", "meanwhile") == "meanwhile\n"

    layer.kill()
    os.kill(_holder(room), signal.SIGKILL)
    layer.start()
    assert _spaces(_holder(room)) == spaces
    assert layer.out("exec", "before", "--", "echo", "here") == "here\n"
    for _ in range(2):
        assert layer.out("run", "--rm", "busybox", "--", "sh", "-c", f"nc {address} 80 </dev/null") == "served\n"
        layer.lamella("restart", "-t", "1s", "before")
    layer.lamella("rm", "--force", "before")


def test_a_microvm_leads_back_to_the_network_of_a_room_that_is_gone(layer) -> None:
    layer.lamella("run", "-d", "--isolation", "microvm", "--name", "alone", "busybox", "--", "sh", "-c", SERVER)
    address = layer.wait_phase("alone", "running")["status"]["address"]
    room = layer.home / "run" / "room"
    network = _spaces(_holder(room))[1]
    layer.kill()
    os.kill(_holder(room), signal.SIGKILL)
    layer.start()
    assert _spaces(_holder(room))[1] == network
    assert layer.out("run", "--rm", "busybox", "--", "sh", "-c", f"nc {address} 80 </dev/null") == "served\n"
    layer.lamella("rm", "--force", "alone")


def test_a_network_that_somebody_else_keeps_does_not_keep_the_layer_from_starting(layer) -> None:
    room = layer.home / "run" / "room"
    former = _spaces(_holder(room))
    environment = {key: value for key, value in os.environ.items() if key != "LAMELLA_MARK"}
    stranger = subprocess.Popen(["nsenter", f"--net=/proc/{_holder(room)}/ns/net", "sleep", "1000"], env=environment)
    try:
        until("not in there", lambda: str(Path(f"/proc/{stranger.pid}/ns/net").readlink()) == former[1])
        layer.kill()
        os.kill(_holder(room), signal.SIGKILL)
        layer.start()
        assert _spaces(_holder(room))[1] != former[1]
        assert layer.out("run", "--rm", "busybox", "--", "echo", "well") == "well\n"
    finally:
        stranger.kill()
        stranger.wait()


def _holder(room: Path) -> int:
    return int(room.read_text().split()[0])


def _spaces(pid: int) -> tuple[str, str]:
    until(f"{pid} is not in the room yet", lambda: start_time(pid) is not None)
    return str(Path(f"/proc/{pid}/ns/mnt").readlink()), str(Path(f"/proc/{pid}/ns/net").readlink())


def test_no_descriptor_of_the_daemon_goes_on_to_what_outlives_it(layer) -> None:
    layer.lamella("run", "-d", "--name", "box", "busybox", "--", "sleep", "1000")
    container = layer.show("box")["status"]["pid"]
    shim = parent(container)
    assert layer.daemon is not None and shim is not None
    ours = _sockets(layer.daemon.pid)
    assert ours
    assert not ours & (_sockets(shim) | _sockets(container))
    layer.lamella("rm", "--force", "box")


def _sockets(pid: int) -> set[str]:
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(str(entry.readlink()))
        except FileNotFoundError:
            continue
    return {link for link in links if link.startswith("socket:")}


@pytest.mark.parametrize("level", ["container", "microvm"])
def test_other_users_of_the_host_read_no_environment(layer, level: str) -> None:
    """What everybody may read below the layer's directory, and in the list of processes, tells nobody a secret."""
    layer.lamella(
        "run", "-d", "--isolation", level, "--name", f"box-{level}", "-e", "A=hush-a", "busybox", "--", "sleep", "1000"
    )
    execs = [
        subprocess.Popen(
            [str(BIN / "lamella"), "exec", *options, "-e", "B=hush-b", f"box-{level}", "--", "sh", "-c", "echo begun; exec sleep 1000"],
            env=layer.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        )
        for options in ([], ["-t"])
    ]  # fmt: skip
    try:
        for process in execs:
            assert process.stdout is not None and process.stdout.readline().strip() == b"begun"
        told = {str(path): path.read_bytes() for path in _open_to_all(layer.home / "run")}
        assert [path for path, text in told.items() if b"hush-" in text] == []
        # Our own commands name it; what the layer starts must not.
        ours = {process.pid for process in execs}
        assert [pid for pid in all_pids() if pid not in ours and b"hush-" in b" ".join(command_line(pid))] == []
    finally:
        for process in execs:
            process.kill()
            process.communicate()
    layer.lamella("rm", "--force", f"box-{level}")


def _open_to_all(directory: Path) -> list[Path]:
    """Files that anybody may read who may pass *directory*."""
    found: list[Path] = []
    for entry in directory.iterdir():
        mode = entry.lstat().st_mode
        if stat.S_ISDIR(mode) and mode & stat.S_IXOTH:
            found += _open_to_all(entry)
        elif stat.S_ISREG(mode) and mode & stat.S_IROTH:
            found.append(entry)
    return found


def test_a_container_has_no_more_than_its_share_of_terminals(layer) -> None:
    opened = layer.out(
        "run", "--rm", "busybox", "--",
        "sh", "-c", "n=0; while :; do eval \"exec $((n + 10))<>/dev/ptmx\"; n=$((n + 1)); echo $n; done 2>/dev/null",
        check=False,
    )  # fmt: skip
    assert 200 <= int(opened.split()[-1]) <= 256


def test_other_users_of_the_host_reach_nothing_that_a_container_made(layer) -> None:
    """It owns its /etc/hosts, and could leave a setuid program there for somebody on the host to become its root."""
    layer.lamella("run", "-d", "--name", "box", "busybox", "--", "sh", "-c", "chmod 4777 /etc/hosts; sleep 1000")
    bundle = layer.home / "run" / "oci" / layer.show("box")["id"]
    until("not setuid yet", lambda: (bundle / "etc" / "hosts").stat().st_mode & stat.S_ISUID)
    assert bundle.stat().st_mode & stat.S_IRWXO == 0
    layer.lamella("rm", "--force", "box")
