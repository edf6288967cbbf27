"""The converter's room: what our readers would have refused does no harm there, and nothing of it outlives us."""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import pytest
from tarballs import tool

from lamella.host.images.content import CONVERTER
from lamella.host.images.copying import new_file
from lamella.host.images.disk import DiskLibrary
from lamella.host.images.formats.convert import Input, convert
from lamella.host.images.library import Progress
from lamella.host.linux.processes import marked
from lamella.model.errors import Corrupt

pytestmark = pytest.mark.root
MARK = "lamella-0c04ed00"


async def run(path: Path, tmp_path: Path, driver: str, size: int = 1 << 20) -> Path:
    target, room = tmp_path / "target", tmp_path / "room"
    room.mkdir(exist_ok=True)
    target.unlink(missing_ok=True)
    new_file(target, size, CONVERTER)
    source = Input(path=path, driver=driver, size=size, length=path.stat().st_size)
    await convert(source, target, ["-O", "raw"], room=room, mark=MARK, name="it", progress=lambda _: None)
    return target


async def test_no_file_but_the_two(tmp_path: Path) -> None:
    """A backing file, a data file and an extent that any process of the host could read are not there."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * 1000 + bytes(42960))
    tool("qemu-img", "create", "-f", "qcow2", "-b", secret, "-F", "raw", tmp_path / "backed", "1M")
    tool(
        "qemu-img",
        "create",
        "-f",
        "qcow2",
        "-o",
        f"data_file={tmp_path}/data,data_file_raw=on",
        tmp_path / "apart",
        "1M",
    )
    extent = (tmp_path / "extent").resolve()
    extent.write_text(
        "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n"
        f'createType="monolithicFlat"\nRW 96 FLAT "{secret}" 0\n'
    )
    for path, driver in ((tmp_path / "backed", "qcow2"), (tmp_path / "apart", "qcow2"), (extent, "vmdk")):
        with pytest.raises(Corrupt, match="No such file"):
            await run(path, tmp_path, driver)


async def test_no_more_than_the_header_says(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(2 << 20))
    with pytest.raises(Corrupt, match="more than its header says"):
        await run(path, tmp_path, "raw", 1 << 20)


def converters() -> list[dict[str, str]]:
    """The status of every qemu-img that bears our mark."""
    found: list[dict[str, str]] = []
    for pid in marked(MARK):
        with suppress(OSError, ValueError):
            text = Path(f"/proc/{pid}/status").read_text()
            fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
            if fields["Name"].strip() == "qemu-img":
                found.append({key: value.strip() for key, value in fields.items()} | {"pid": str(pid)})
    return found


T = TypeVar("T")


async def until(look: Callable[[], T]) -> T:
    """What *look* says once it is something, or after twenty seconds."""
    for _ in range(10_000):
        if found := look():
            return found
        await asyncio.sleep(0.002)
    return look()


async def test_without_privileges_and_gone_with_the_import(
    tmp_path: Path, nothing_left: Callable[[], list[str]]
) -> None:
    """Looked at while it works, then the import is cancelled: process and files go."""
    library = DiskLibrary(tmp_path / "images", mark=MARK)
    await library.open()
    raw = tmp_path / "raw"
    with raw.open("wb") as file:
        file.write(bytes(510) + b"\x55\xaa")
        for _ in range(48):
            file.write(os.urandom(1 << 20) * 8)
    started = asyncio.Event()

    def report(progress: Progress) -> None:
        if progress.step == "converting":
            started.set()

    work = asyncio.create_task(library.import_file(str(raw), report))
    await started.wait()
    found = await until(lambda: converters() or work.done())
    assert isinstance(found, list), "the import was over before it could be looked at"
    (status,) = found
    assert status["Uid"].split() == [str(CONVERTER)] * 4 == status["Gid"].split()
    assert status["CapEff"] == status["CapPrm"] == status["CapBnd"] == "0" * 16 and status["NoNewPrivs"] == "1"
    for kind in ("net", "mnt", "pid", "ipc"):
        with suppress(FileNotFoundError):
            assert Path(f"/proc/{status['pid']}/ns/{kind}").readlink() != Path(f"/proc/self/ns/{kind}").readlink()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    await until(lambda: not marked(MARK))
    assert not marked(MARK) and nothing_left() == []
