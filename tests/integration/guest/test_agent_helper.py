"""``lamella-agent --stdio`` as a process: files and exec, as inside a container."""

import asyncio
import os
import stat
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from guest_talk import hear, run

from lamella.host.compute.guest.client import GuestClient
from lamella.host.compute.guest.frames import GREETING_HOST, Frame, FrameType, encode
from lamella.model.errors import Conflict, Invalid, NotFound, Unsupported
from lamella.model.files import FileType
from lamella.model.stream import ExecSpec, ProcessStream, Resize, Signal, Stdin, Stdout

PATTERN = bytes(range(256)) * 4096  # 1 MiB


async def chunks(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def content(client: GuestClient, path: Path) -> bytes:
    return b"".join([piece async for piece in client.read_file(str(path))])


async def test_it_says_what_it_is(helper: GuestClient) -> None:
    assert helper.hello.mode == "stdio"
    assert helper.hello.kernel == os.uname().release


async def test_a_file_goes_in_and_comes_out(helper: GuestClient, tmp_path: Path) -> None:
    path = tmp_path / "file"
    await helper.write_file(str(path), chunks(PATTERN * 5), mode=0o640)
    assert path.read_bytes() == PATTERN * 5
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert await content(helper, path) == PATTERN * 5
    info = await helper.stat(str(path))
    assert (info.type, info.size, info.mode, info.path) == (FileType.FILE, 5 << 20, 0o640, str(path))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


async def test_an_empty_file_is_a_file(helper: GuestClient, tmp_path: Path) -> None:
    await helper.write_file(str(tmp_path / "empty"), chunks(b""))
    assert await content(helper, tmp_path / "empty") == b""


async def test_nobody_sees_half_a_file(helper: GuestClient, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    halfway = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b"new" * 100_000
        halfway.set()
        await asyncio.sleep(3600)

    task = asyncio.create_task(helper.write_file(str(path), slowly()))
    await halfway.wait()
    await helper.state()
    assert path.read_bytes() == b"old"
    task.cancel()
    await asyncio.wait([task])
    await helper.state()
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "what was begun is removed"
    assert path.read_bytes() == b"old"


async def test_a_link_stays_a_link_when_written_through(helper: GuestClient, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    await helper.write_file(str(tmp_path / "link"), chunks(b"through"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"through"
    info = await helper.stat(str(tmp_path / "link"))
    assert (info.type, info.target) == (FileType.SYMLINK, "target")


async def test_a_large_directory_is_listed_whole(helper: GuestClient, tmp_path: Path) -> None:
    names = [f"{number:04}-{'n' * 200}" for number in range(3000)]
    for name in names:
        (tmp_path / name).touch()
    found = await helper.list_directory(str(tmp_path))
    assert [entry.path for entry in found] == [f"{tmp_path}/{name}" for name in names]


async def test_directories_are_made_with_their_parents(helper: GuestClient, tmp_path: Path) -> None:
    for _ in range(2):
        await helper.make_directory(str(tmp_path / "a/b/c"), mode=0o750)
    assert stat.S_IMODE((tmp_path / "a/b/c").stat().st_mode) == 0o750


async def test_what_cannot_be_is_refused_with_its_reason(helper: GuestClient, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(NotFound, match="nothing"):
        await helper.stat(str(tmp_path / "nothing"))
    with pytest.raises(NotFound):
        await helper.write_file(str(tmp_path / "no/file"), chunks(PATTERN * 3))
    with pytest.raises(Conflict, match="directory"):
        await content(helper, tmp_path)
    with pytest.raises(Conflict, match="directory"):
        await helper.write_file(str(tmp_path), chunks(b"x"))
    with pytest.raises(Invalid, match="not a file"):
        await content(helper, tmp_path / "fifo")
    with pytest.raises(Unsupported, match="init"):
        await helper.freeze(1)
    with pytest.raises(Unsupported, match="init"):
        await helper.hold(1)


async def test_output_and_exit_code_arrive_apart(helper: GuestClient) -> None:
    said = await run(helper, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (said.out, said.err, said.code) == (b"out\n", b"err\n", 7)


async def test_nothing_is_lost_or_held_back_in_either_direction(helper: GuestClient) -> None:
    said = await run(helper, "cat", stdin=PATTERN * 20)
    assert said.out == PATTERN * 20
    assert said.code == 0


async def test_a_command_gets_its_environment_directory_and_arguments(helper: GuestClient, tmp_path: Path) -> None:
    said = await run(
        helper, "sh", "-c", 'pwd; echo "$A|$1"', "sh", "x y", environment={"A": "b=c"}, working_directory=str(tmp_path)
    )
    assert said.out.decode() == f"{tmp_path}\nb=c|x y\n"


async def test_a_command_line_larger_than_a_frame_arrives(helper: GuestClient) -> None:
    said = await run(helper, "sh", "-c", "echo $# ${#1}", "sh", *["a" * 100_000] * 4)
    assert said.out == b"4 100000\n"


async def test_what_cannot_be_run_says_why(helper: GuestClient, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("not a program")
    missing = await run(helper, "no-such-command")
    assert (missing.code, missing.reason) == (127, "there is no command no-such-command in the instance")
    plain = await run(helper, str(tmp_path / "plain"))
    assert plain.code == 126
    assert "Permission denied" in plain.reason
    nobody = await run(helper, "true", user="no-such-user")
    assert nobody.code == 126
    assert "no user no-such-user" in nobody.reason
    nowhere = await run(helper, "true", working_directory="/no/where")
    assert nowhere.code == 126


async def test_a_deadline_ends_a_whole_session(helper: GuestClient, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    # It is given longer where it did not come to say anything.
    for seconds in (0.3, 5.0, 30.0):
        said = await run(
            helper,
            "sh",
            "-c",
            f"(sleep 600; :) & echo $! >{pid}.new; mv {pid}.new {pid}; sleep 600; :",
            timeout=seconds,
        )
        assert said.code == 124
        if pid.exists():
            break
    assert await ends(int(pid.read_text()))


async def ends(pid: int) -> bool:
    """Whether a process is gone (or a zombie of somebody) soon."""
    for _ in range(9000):
        try:
            if " Z " in Path(f"/proc/{pid}/stat").read_text():
                return True
        except FileNotFoundError:
            return True
        await asyncio.sleep(0.01)
    return False


async def test_closing_ends_the_process(helper: GuestClient, tmp_path: Path) -> None:
    stream = await helper.exec(ExecSpec(command=["sh", "-c", f"echo $$ >{tmp_path}/pid; echo up; exec sleep 600"]))
    assert await stream.receive() == Stdout(b"up\n")
    await stream.close()
    assert await ends(int((tmp_path / "pid").read_text()))


async def test_a_signal_arrives(helper: GuestClient) -> None:
    stream = await helper.exec(
        ExecSpec(command=["sh", "-c", "trap 'echo got; exit 5' USR1; echo up; while :; do sleep 0.01; done"])
    )
    assert await stream.receive() == Stdout(b"up\n")
    await stream.send(Signal(10))
    said = await hear(stream)
    assert (said.out, said.code) == (b"got\n", 5)
    killed = await helper.exec(ExecSpec(command=["sleep", "600"]))
    await killed.send(Signal(9))
    assert (await hear(killed)).code == 137


async def test_a_terminal_has_a_size_an_echo_and_an_interrupt(helper: GuestClient) -> None:
    stream = await helper.exec(
        ExecSpec(command=["sh", "-c", "stty size; read x; stty size; cat"], terminal=True, rows=33, columns=99)
    )
    assert await stream.receive() == Stdout(b"33 99\r\n")
    await stream.send(Resize(40, 120))
    await stream.send(Stdin(b"go\n"))
    await until(stream, b"40 120\r\n")
    await stream.send(Stdin(b"echo\n"))
    await until(stream, b"echo\r\necho\r\n")  # the terminal's, and cat's
    await stream.send(Stdin(b"\x03"))
    assert (await hear(stream)).code == 130


async def until(stream: ProcessStream, text: bytes) -> None:
    """Read output until it holds *text*."""
    seen = b""
    async with asyncio.timeout(90):
        while text not in seen:
            frame = await stream.receive()
            assert isinstance(frame, Stdout), (seen, frame)
            seen += frame.data


async def test_a_background_child_does_not_hold_the_answer(helper: GuestClient, tmp_path: Path) -> None:
    async with asyncio.timeout(90):
        said = await run(helper, "sh", "-c", f"sleep 600 & echo $! >{tmp_path}/pid; echo done")
    assert (said.out, said.code) == (b"done\n", 0)
    os.kill(int((tmp_path / "pid").read_text()), 9)


async def test_a_slow_reader_holds_its_own_process_and_nobody_else(helper: GuestClient) -> None:
    flood = await helper.exec(ExecSpec(command=["yes"]))
    async with asyncio.timeout(90):
        for _ in range(20):
            assert (await run(helper, "echo", "hi")).out == b"hi\n"
    await flood.close()


async def test_a_conversation_that_broke_off_inside_a_frame_is_left_behind(agent: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        agent, "--stdio", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    broken = encode(Frame(1, FrameType.REQUEST, bytes(60_000)), 77)[:-30_000]
    process.stdin.write(struct.pack("<16sIQI", GREETING_HOST, 1, 77, 0) + broken)
    client = await GuestClient.over(process.stdout, process.stdin, timeout=90)
    assert (await run(client, "echo", "again")).out == b"again\n"
    await client.close()
    assert await process.wait() == 0
