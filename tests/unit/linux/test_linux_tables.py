"""Mount tables, cgroup mount options, and processes that are started with chosen descriptors."""

import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.host.linux import binaries, mounts, processes
from lamella.host.linux.room import controllers
from lamella.model.errors import Unavailable

LINES = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
30 22 0:26 / /sys/fs/cgroup/cpu\\040x rw,nosuid shared:4 master:2 - cgroup cgroup rw,cpu,cpuacct
31 22 0:27 /a\\134b /named rw - cgroup none rw,xattr,release_agent=/x,name=systemd
32 22 0:28 / /empty ro - tmpfs  rw
"""


def test_mount_tables() -> None:
    root, group, named, empty = mounts.parse(LINES)
    assert (root.point, root.kind, root.source, root.propagation) == ("/", "ext4", "/dev/vda", ["shared:1"])
    assert (group.point, controllers(group)) == ("/sys/fs/cgroup/cpu x", ["cpu", "cpuacct"])
    assert (named.root, controllers(named)) == ("/a\\b", ["none", "name=systemd"])
    assert (empty.source, empty.propagation) == ("", [])


def test_our_own_table_is_read() -> None:
    assert any(entry.point == "/" for entry in mounts.table())
    assert mounts.table(2**22 - 1) == []
    assert mounts.below(Path("/nowhere/at/all")) == []


@given(st.permutations([0, 1, 2, 3, 4]))
def test_descriptors_arrive_where_they_should(order: list[int]) -> None:
    """However the numbers of the two sides cross."""

    async def once() -> None:
        pipes = [os.pipe() for _ in order]
        script = "".join(f"echo {number} >&{number}; " for number in order if number) + "echo 0 >&5"
        files = {number if number else 5: pipes[place][1] for place, number in enumerate(order)}
        child = processes.spawn(["/bin/sh", "-c", script], environment=processes.environment("lamella-t"), files=files)
        for _, write_end in pipes:
            os.close(write_end)
        assert await child.wait() == 0
        assert await child.wait() == 0
        for place, number in enumerate(order):
            assert await processes.read_all(pipes[place][0]) == f"{number}\n".encode()

    asyncio.run(once())


async def test_a_child_sees_only_what_it_is_given() -> None:
    read_end, write_end = os.pipe()
    os.set_inheritable(read_end, True)
    processes.keep_descriptors()
    child = processes.spawn(["/bin/ls", "/proc/self/fd"], environment={"A": "b"}, files={1: write_end})
    os.close(write_end)
    assert (await processes.read_all(read_end)).split() == [b"0", b"1", b"2", b"3"]
    assert await child.wait() == 0


async def test_ends_are_told_by_code_and_by_signal() -> None:
    one = processes.spawn(["/bin/sh", "-c", "exit 7"], environment={}, files={})
    other = processes.spawn(["/bin/sleep", "100"], environment={}, files={})
    assert other.running
    assert other.poll() is None
    both = asyncio.gather(other.wait(), other.wait())
    await asyncio.sleep(0)
    other.kill()
    assert await both == [137, 137]
    assert await one.wait() == 7
    await other.end()
    with pytest.raises(FileNotFoundError):
        processes.spawn(["/no/such/program"], environment={}, files={})


async def test_a_tools_words_are_kept_and_its_time_is_bounded() -> None:
    assert await processes.run(["/bin/sh", "-c", "echo why >&2; exit 3"], environment={}) == (3, "why")
    with pytest.raises(Unavailable, match=r"0\.1 s"):
        await processes.run(["/bin/sleep", "100"], environment={}, timeout=0.1)


async def test_who_a_process_is() -> None:
    child = processes.spawn(["/bin/sleep", "100"], environment=processes.environment("lamella-test-x"), files={})
    try:
        await asyncio.sleep(0.05)
        assert processes.start_time(child.pid) is not None
        assert processes.parent(child.pid) == os.getpid()
        assert processes.bears_mark(child.pid, "lamella-test-x")
        assert not processes.bears_mark(child.pid, "lamella-test")
        assert child.pid in processes.marked("lamella-test-x")
        assert processes.command_line(child.pid)[0] == b"/bin/sleep"
    finally:
        await child.end()
    assert processes.start_time(child.pid) is None
    assert processes.parent(child.pid) is None


@pytest.mark.parametrize(("text", "pid"), [("12\n", 12), ("", None), ("1", None), ("x", None), ("-5", None)])
def test_pid_files(tmp_path: Path, text: str, pid: int | None) -> None:
    assert processes.read_pid(tmp_path / "absent") is None
    (tmp_path / "pid").write_text(text)
    assert processes.read_pid(tmp_path / "pid") == pid


def test_our_programs_are_looked_for_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMELLA_LIBEXEC", str(tmp_path))
    (tmp_path / "lamella-x").touch(mode=0o755)
    assert binaries.own("lamella-x") == tmp_path / "lamella-x"
    with pytest.raises(Unavailable, match="lamella-nothing"):
        binaries.own("lamella-nothing")
    with pytest.raises(Unavailable, match="no-such-tool"):
        binaries.tool("no-such-tool")
    assert binaries.tool("no-such-tool", "sh").name == "sh"
