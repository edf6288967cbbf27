"""Volumes out as files of every format and in again: the same bytes, sparse, with a digest that a reader can check."""

import asyncio
import gzip
import hashlib
import io
import os
import random
import subprocess
import tarfile
from pathlib import Path

import pytest
from volumes_lab import MIB, VolumesLab, guest_of, new_volume

from lamella.host.storage.transfer import OUTPUTS
from lamella.model.errors import Conflict, Corrupt, Invalid, NotFound
from lamella.model.instance import Isolation
from lamella.model.replication_requests import DigestExport, ExportedDigest
from lamella.model.storage import KeyWrap, Volume, VolumeStatus
from lamella.model.storage_requests import ImportVolume

SIZE = 24 * MIB


def content(seed: int = 1) -> bytes:
    """A disk with a partition table's mark, islands of data, and holes between them."""
    chance = random.Random(seed)
    disk = bytearray(SIZE)
    for place in (0, 3 * MIB + 512, 9 * MIB, SIZE - 64 * 1024):
        disk[place : place + 64 * 1024] = chance.randbytes(64 * 1024)
    disk[510:512] = b"\x55\xaa"
    return bytes(disk)


async def brought(lab: VolumesLab, path: Path, *, format: str = "", size: int = 0, **spec: object) -> Volume:
    volume = new_volume("brought", size, **spec)
    volume.status = await lab.ask(ImportVolume(volume=volume, path=str(path), format=format), VolumeStatus)
    return volume


async def taken(lab: VolumesLab, volume: Volume, path: Path, *, format: str = "raw", snapshot: str = "") -> None:
    done = hashlib.sha256()
    with path.open("wb") as out:
        async for piece in lab.wing.export(volume, snapshot, format):
            done.update(piece)
            out.write(piece)
    told = await lab.ask(DigestExport(volume=volume, snapshot=snapshot, format=format), ExportedDigest)
    assert told == ExportedDigest(sha256=done.hexdigest(), size=path.stat().st_size)


def raw(path: Path, format: str) -> bytes:
    plain = path.with_suffix(".plain")
    driver = {"vhd": "vpc"}.get(format, format)
    subprocess.run(["qemu-img", "convert", "-f", driver, "-O", "raw", path, plain], check=True, timeout=90)
    return plain.read_bytes()


async def test_every_format_out_and_in_again(lab: VolumesLab, tmp_path: Path) -> None:
    disk = content()
    (tmp_path / "disk.raw").write_bytes(disk)
    volume = await brought(lab, tmp_path / "disk.raw")
    assert volume.status.size == SIZE
    assert volume.status.used < 2 * MIB, "holes stay holes"
    for format in ("raw", *OUTPUTS):
        path = tmp_path / f"out.{format}"
        await taken(lab, volume, path, format=format)
        assert raw(path, format)[:SIZE] == disk, format
        if format != "raw":
            # A VHD has blocks of 2 MiB; a VHDX begins with several MiB of tables and a log.
            assert path.stat().st_size < {"vhd": 10, "vhdx": 14}.get(format, 6) * MIB, f"{format} is sparse"
        again = await brought(lab, path, format=format)
        assert again.status.used < 2 * MIB
        await taken(lab, again, tmp_path / "again.raw")
        assert (tmp_path / "again.raw").read_bytes()[:SIZE] == disk, format
        await lab.delete(again)
    await lab.delete(volume)


async def test_an_encrypted_volume_goes_out_plain_and_lies_in_its_pool_as_noise(
    lab: VolumesLab, tmp_path: Path
) -> None:
    disk = bytearray(content())
    disk[MIB : MIB + 4096] = b"a secret that must not be there!" * 128
    (tmp_path / "disk.raw").write_bytes(disk)
    volume = await brought(lab, tmp_path / "disk.raw", encryption=KeyWrap.KEY_FILE)
    await taken(lab, volume, tmp_path / "out.qcow2", format="qcow2")
    assert raw(tmp_path / "out.qcow2", "qcow2") == bytes(disk)
    for path in lab.pool.rglob("*"):
        if path.is_file():
            assert b"a secret that must not be" not in path.read_bytes(), path


async def test_an_appliance_a_compressed_disk_and_a_larger_volume(lab: VolumesLab, tmp_path: Path) -> None:
    disk = content(2)
    (tmp_path / "d.raw").write_bytes(disk)
    (tmp_path / "d.raw.gz").write_bytes(gzip.compress(disk, 1))
    subprocess.run(
        ["qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", "d.raw", "d.vmdk"],
        cwd=tmp_path,
        check=True,
        timeout=90,
    )
    ovf = b"""<?xml version="1.0"?><Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
<References><File ovf:id="f" ovf:href="d.vmdk"/></References>
<DiskSection><Info/><Disk ovf:diskId="d" ovf:fileRef="f" ovf:capacity="25165824"/></DiskSection>
<VirtualSystem ovf:id="m"><Info/><VirtualHardwareSection><Info/>
<Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>20</rasd:ResourceType></Item>
<Item><rasd:HostResource>ovf:/disk/d</rasd:HostResource><rasd:InstanceID>2</rasd:InstanceID>
<rasd:Parent>1</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
</VirtualHardwareSection></VirtualSystem></Envelope>"""
    with tarfile.open(tmp_path / "m.ova", "w", format=tarfile.USTAR_FORMAT) as tar:
        head = tarfile.TarInfo("m.ovf")
        head.size = len(ovf)
        tar.addfile(head, io.BytesIO(ovf))
        tar.add(tmp_path / "d.vmdk", "d.vmdk")
    for name in ("d.raw.gz", "m.ova"):
        volume = await brought(lab, tmp_path / name, size=2 * SIZE)
        assert volume.status.size == 2 * SIZE
        await taken(lab, volume, tmp_path / "out.raw")
        assert (tmp_path / "out.raw").read_bytes() == disk + bytes(SIZE), name
        await lab.delete(volume)


async def test_what_is_refused(lab: VolumesLab, tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(content())
    with pytest.raises(NotFound):
        await brought(lab, tmp_path / "nothing.raw")
    with pytest.raises(Invalid, match="is raw, not vmdk"):
        await brought(lab, tmp_path / "disk.raw", format="vmdk")
    with pytest.raises(Invalid, match="the disk has"):
        await brought(lab, tmp_path / "disk.raw", size=MIB)
    torn = tmp_path / "torn.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", tmp_path / "disk.raw", torn], check=True, timeout=90)
    os.truncate(torn, 300 * 1024)
    with pytest.raises(Corrupt):
        await brought(lab, torn)
    backed = tmp_path / "backed.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/shadow", "-F", "raw", backed, "1M"],
        check=True,
        timeout=90,
    )
    with pytest.raises(Corrupt, match="not read"):
        await brought(lab, backed)
    volume = await lab.create(new_volume("busy", 4 * MIB, filesystem="ext4"))
    with pytest.raises(Invalid, match="format"):
        await taken(lab, volume, tmp_path / "out", format="zip")
    await lab.attach(volume, "inst_1")
    with pytest.raises(Conflict, match="being written"):
        await taken(lab, volume, tmp_path / "out")
    await lab.wing.detach("inst_1")


async def test_a_snapshot_goes_out_while_its_volume_is_written(lab: VolumesLab, tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(content())
    volume = await brought(lab, tmp_path / "disk.raw")
    snapshot = await lab.take(volume)
    async with lab.wing.parts.disk(volume) as file:

        def write() -> None:
            with file.open("r+b") as out:
                out.write(b"x" * MIB)

        await asyncio.to_thread(write)
        await taken(lab, volume, tmp_path / "then.raw", snapshot=snapshot.id)
    await taken(lab, volume, tmp_path / "now.raw")
    assert (tmp_path / "then.raw").read_bytes() == content()
    assert (tmp_path / "now.raw").read_bytes() == b"x" * MIB + content()[MIB:]


async def test_an_import_that_was_cut_off_begins_anew(lab: VolumesLab, tmp_path: Path) -> None:
    big = tmp_path / "big.raw"
    with big.open("wb") as out:
        out.write(content()[:MIB])
        for _ in range(400):
            out.write(os.urandom(MIB))
    small = tmp_path / "small.raw"
    small.write_bytes(content())
    volume = new_volume("brought", 0)
    request = ImportVolume(volume=volume, path=str(big))
    work = asyncio.create_task(lab.ask(request, VolumeStatus))
    while volume.id not in await lab.wing.pool("default").inventory():
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    await lab.restart()
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    volume.status = await lab.ask(ImportVolume(volume=volume, path=str(small)), VolumeStatus)
    await taken(lab, volume, tmp_path / "out.raw")
    assert (tmp_path / "out.raw").read_bytes() == content(), "nothing of the first file shows through the holes"


async def test_an_export_that_nobody_reads_on_takes_nothing_from_others(lab: VolumesLab, tmp_path: Path) -> None:
    disk = content(3)
    (tmp_path / "disk.raw").write_bytes(disk)
    volume = await brought(lab, tmp_path / "disk.raw")
    stalled = lab.wing.export(volume, "", "raw")
    first = await anext(stalled)
    async with asyncio.timeout(90):
        await taken(lab, volume, tmp_path / "beside.raw")
    assert (tmp_path / "beside.raw").read_bytes() == disk
    async with asyncio.timeout(90):
        with pytest.raises(Conflict, match="being exported"):
            await lab.attach(volume, "inst_one", Isolation.UNIKERNEL)
        with pytest.raises(Conflict, match="being exported"):
            await lab.resize(volume, 2 * SIZE)
        with pytest.raises(Conflict, match="being exported"):
            await lab.delete(volume)
        snapshot = await lab.take(volume)
    rest = b"".join([piece async for piece in stalled])
    assert first + rest == disk
    mounted = await lab.attach(volume, "inst_one", Isolation.UNIKERNEL)
    # Its snapshot may be read for as long as anybody likes.
    stalled = lab.wing.export(volume, snapshot.id, "raw")
    await anext(stalled)
    async with asyncio.timeout(90), guest_of(mounted.path) as guest:
        await guest.write(b"other")
        await lab.resize(volume, 2 * SIZE)
    await lab.wing.detach("inst_one")
    await stalled.aclose()
    await lab.drop(snapshot, volume)
    await lab.delete(volume)


async def test_exports_that_wait_for_an_attaching_leave_its_disk_alone(lab: VolumesLab, tmp_path: Path) -> None:
    disk = content(4)
    (tmp_path / "disk.raw").write_bytes(disk)
    volume = await brought(lab, tmp_path / "disk.raw")
    attaching = asyncio.create_task(lab.attach(volume, "inst_one", Isolation.UNIKERNEL))
    await asyncio.sleep(0)
    outcomes = await asyncio.gather(
        *(taken(lab, volume, tmp_path / f"out{n}.raw") for n in range(2)), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [Conflict, Conflict]
    mounted = await attaching
    async with guest_of(mounted.path) as guest:
        assert await guest.read(64) == disk[:64]
    await lab.wing.detach("inst_one")


async def test_an_import_that_is_asked_again_while_it_goes_on_is_waited_for(lab: VolumesLab, tmp_path: Path) -> None:
    disk = content(5)
    (tmp_path / "disk.raw.gz").write_bytes(gzip.compress(disk, 1))
    volume = new_volume("brought", 0)
    request = ImportVolume(volume=volume, path=str(tmp_path / "disk.raw.gz"))
    asked = [lab.ask(request, VolumeStatus) for _ in range(3)]
    assert [status.size for status in await asyncio.gather(*asked)] == [SIZE] * 3
    await taken(lab, volume, tmp_path / "out.raw")
    assert (tmp_path / "out.raw").read_bytes() == disk
