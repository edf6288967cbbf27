"""The log on disk: nothing lost, nothing twice, bounded, whatever the daemon dies of."""

import asyncio
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.host.compute.qemu.log import Log, last_lines
from lamella.model.usage import LogEntry

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def entry(data: bytes, stream: str = "stdout", at: datetime = AT) -> LogEntry:
    return LogEntry(at=at, stream=stream, data=data)


async def everything(log: Log, **how: object) -> list[LogEntry]:
    options = {"follow": False, "tail": None, "since": None, **how}
    return [found async for found in log.read(**options)]  # type: ignore[arg-type]


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=20), st.data())
def test_a_torn_end_is_cut_off_and_sent_again(pieces: list[bytes], data: st.DataObject) -> None:
    """The file is cut anywhere; the guest sends again from where the host says it is; the log is whole."""
    with tempfile.TemporaryDirectory() as directory:
        whole = b"".join(pieces)
        log = Log(Path(directory))
        log.open()
        log.begin()
        offset = 0
        for piece in pieces:
            log.append(offset, entry(piece))
            offset += len(piece)
        log.close()
        path = Path(directory) / "log.1"
        content = path.read_bytes()
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        again = Log(Path(directory))
        again.open()
        assert again.end <= len(whole)
        # A guest may send more than was asked for: from an earlier byte on.
        start = data.draw(st.integers(0, again.end))
        if start < len(whole):
            again.append(start, entry(whole[start:]))
        again.close()
        found = asyncio.run(everything(Log(Path(directory))))
        assert b"".join(one.data for one in found) == whole


def test_what_is_on_disk_stays_below_the_bound(tmp_path: Path) -> None:
    log = Log(tmp_path, largest=64 << 10)
    log.open()
    log.begin()
    offset = 0
    for number in range(4000):
        line = b"line %06d and some more of it\n" % number
        log.append(offset, entry(line))
        offset += len(line)
    log.close()
    files = list(tmp_path.iterdir())
    assert len(files) == 2
    assert sum(file.stat().st_size for file in files) <= 64 << 10
    found = asyncio.run(everything(Log(tmp_path)))
    lines = b"".join(one.data for one in found).splitlines()
    assert lines[-1] == b"line 003999 and some more of it"
    numbers = [int(line.split()[1]) for line in lines]
    assert numbers == list(range(numbers[0], 4000))


def test_a_new_run_begins_at_zero_and_the_old_one_stays(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.open()
    log.begin()
    log.append(0, entry(b"first\n"))
    log.begin()
    assert log.end == 0
    log.append(0, entry(b"second\n", "stderr"))
    log.close()
    found = asyncio.run(everything(Log(tmp_path)))
    assert [(one.stream, one.data, one.at) for one in found] == [
        ("stdout", b"first\n", AT),
        ("stderr", b"second\n", AT),
    ]
    again = Log(tmp_path)
    again.open()
    assert again.end == len(b"second\n")
    again.close()


async def test_whoever_follows_sees_all_and_the_end(tmp_path: Path) -> None:
    log = Log(tmp_path, largest=8 << 10)
    log.open()
    log.begin()
    lines = [b"%05d and what follows it\n" % number for number in range(300)]

    async def write() -> None:
        offset = 0
        for line in lines:
            log.append(offset, entry(line))
            offset += len(line)
            await asyncio.sleep(0.001)
        await log.sync()
        log.close()

    async with asyncio.timeout(90), asyncio.TaskGroup() as tasks:
        tasks.create_task(write())
        found = [one.data async for one in log.read(follow=True, tail=None, since=None)]
    assert b"".join(found) == b"".join(lines)


@given(st.lists(st.sampled_from([b"a\n", b"b", b"\n", b"cd\nef\n", b"g\nh"]), max_size=12), st.integers(0, 8))
def test_the_last_lines_are_the_last_lines(pieces: list[bytes], count: int) -> None:
    expected = b"".join(b"".join(pieces).splitlines(keepends=True)[-count:]) if count else b""
    assert b"".join(one.data for one in last_lines([entry(piece) for piece in pieces], count)) == expected


@pytest.mark.parametrize("junk", [b"\0" * 100, b"\xff" * 100, b"some text that is no frame at all, but long enough"])
def test_a_file_that_is_no_log_is_empty(tmp_path: Path, junk: bytes) -> None:
    (tmp_path / "log.1").write_bytes(junk)
    log = Log(tmp_path)
    log.open()
    log.begin()
    log.append(0, entry(b"new\n"))
    log.close()
    assert [one.data for one in asyncio.run(everything(Log(tmp_path)))] == [b"new\n"]
