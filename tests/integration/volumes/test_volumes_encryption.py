"""Encrypted volumes: no plaintext in the pool, no key anywhere it must not be, and nothing opens without it."""

import asyncio
import os
from pathlib import Path

import pytest
from volumes_lab import MIB, VolumesLab, ext4_volume, new_volume, problems

from lamella.host.storage.keys import new_key
from lamella.model.errors import Conflict, Forbidden, LamellaError, Unavailable
from lamella.model.instance import Isolation
from lamella.model.storage import KeyWrap, VolumeStatus
from lamella.model.storage_requests import CheckStorage, RekeyVolume, Report, UnlockVolume

SECRET = b"nobody but the owner reads this: " + os.urandom(16).hex().encode()


def files_with(place: Path, needle: bytes) -> list[Path]:
    return [path for path in place.rglob("*") if path.is_file() and needle in path.read_bytes()]


async def test_nothing_of_the_content_or_the_key_is_in_the_pool_the_home_or_a_command_line(lab: VolumesLab) -> None:
    sealed = await lab.create(ext4_volume("sealed", encryption=KeyWrap.KEY_FILE))
    clear = await lab.create(ext4_volume("clear"))
    assert sealed.status.size == clear.status.size == 64 * MIB
    key = await lab.wing.parts.stacks.key(sealed)
    for volume, user in ((sealed, "inst_one"), (clear, "inst_two")):
        mounted = await lab.attach(volume, user)
        (mounted.path / "file").write_bytes(SECRET * 1000)
    for pid in lab.processes():
        for file in ("cmdline", "environ"):
            text = Path(f"/proc/{pid}/{file}").read_bytes()
            assert key not in text and key.hex().encode() not in text
    await lab.wing.detach("inst_one")
    await lab.wing.detach("inst_two")
    # The search finds what is there to be found.
    assert files_with(lab.pool / "volumes" / clear.id, SECRET)
    assert not files_with(lab.pool / "volumes" / sealed.id, SECRET)
    assert not files_with(lab.home.path, key)
    assert (await lab.attach(sealed, "inst_one")).path.joinpath("file").read_bytes() == SECRET * 1000


async def test_a_passphrase_is_needed_after_a_restart_and_the_right_one(lab: VolumesLab) -> None:
    data = await lab.create(ext4_volume(encryption=KeyWrap.PASSPHRASE), passphrase="open sesame")
    mounted = await lab.attach(data, "inst_one")
    (mounted.path / "file").write_bytes(SECRET)
    # What is open stays open, and can be attached again by its own instance.
    await lab.restart()
    assert (await lab.attach(data, "inst_one")).path.joinpath("file").read_bytes() == SECRET
    await lab.wing.detach("inst_one")
    with pytest.raises(Unavailable, match="locked away"):
        await lab.attach(data, "inst_one")
    assert await lab.wing.attached() == {}
    with pytest.raises(Forbidden):
        await lab.ask(UnlockVolume(volume=data, passphrase="open barley"), type(None))
    await lab.ask(UnlockVolume(volume=data, passphrase="open sesame"), type(None))
    assert (await lab.attach(data, "inst_one")).path.joinpath("file").read_bytes() == SECRET
    assert not files_with(lab.home.path, b"open sesame")


async def test_another_volumes_wrapped_key_is_refused(lab: VolumesLab) -> None:
    one = await lab.create(new_volume("one", 16 * MIB, encryption=KeyWrap.KEY_FILE))
    lab.wing.parts.records.made.forget(one.id)
    one.status.key = await lab.wing.parts.stacks.keys.wrap("vol_of_another", new_key(), KeyWrap.KEY_FILE)
    with pytest.raises(LamellaError, match="not one of volume"):
        await lab.attach(one, "inst_vm", Isolation.VM)


async def test_a_clone_shares_the_key_wrapped_anew_and_a_copy_has_its_own(lab: VolumesLab) -> None:
    data = await lab.create(ext4_volume(encryption=KeyWrap.KEY_FILE))
    mounted = await lab.attach(data, "inst_one")
    (mounted.path / "file").write_bytes(SECRET)
    snapshot = await lab.take(data, consistent=True)
    clone = ext4_volume("clone", 0, encryption=KeyWrap.PASSPHRASE)
    clone = await lab.create(clone, source=data, snapshot=snapshot, passphrase="another")
    stacks = lab.wing.parts.stacks
    assert clone.status.key != data.status.key and await stacks.key(clone) == await stacks.key(data)
    assert (await lab.attach(clone, "inst_two")).path.joinpath("file").read_bytes() == SECRET
    # From an encrypted one to a clear one goes by a copy, and so the other way.
    clear = await lab.create(ext4_volume("clear", 0), source=data, snapshot=snapshot)
    assert (await lab.attach(clear, "inst_three")).path.joinpath("file").read_bytes() == SECRET
    await lab.wing.detach("inst_three")
    again = await lab.take(clear)
    sealed = await lab.create(ext4_volume("sealed", 0, encryption=KeyWrap.KEY_FILE), source=clear, snapshot=again)
    assert (await lab.attach(sealed, "inst_four")).path.joinpath("file").read_bytes() == SECRET
    assert await stacks.key(sealed) != await stacks.key(data)
    await lab.wing.detach("inst_four")
    assert not files_with(lab.pool / "volumes" / sealed.id, SECRET)


async def test_after_a_rekey_the_old_key_opens_nothing(lab: VolumesLab) -> None:
    data = await lab.create(ext4_volume(encryption=KeyWrap.KEY_FILE))
    mounted = await lab.attach(data, "inst_one")
    (mounted.path / "file").write_bytes(SECRET)
    old, old_text = await lab.wing.parts.stacks.key(data), data.status.key
    data.spec.encryption = KeyWrap.PASSPHRASE
    request = RekeyVolume(volume=data, new_passphrase="open sesame")
    with pytest.raises(Conflict, match="inst_one"):
        await lab.ask(request, VolumeStatus)
    await lab.wing.detach("inst_one")
    data.status = await lab.ask(request, VolumeStatus)
    assert data.status.key != old_text and await lab.wing.parts.stacks.key(data) != old
    assert (await lab.attach(data, "inst_one")).path.joinpath("file").read_bytes() == SECRET
    await lab.wing.detach("inst_one")
    made = lab.wing.parts.stacks.made(data.id)
    made.key = old_text
    lab.wing.parts.records.made.write(data.id, made)
    with pytest.raises(LamellaError):
        await lab.attach(data, "inst_one")
    assert await lab.wing.attached() == {}


async def test_growing_an_encrypted_volume_open_and_closed(lab: VolumesLab) -> None:
    data = await lab.create(ext4_volume(encryption=KeyWrap.KEY_FILE))
    await lab.attach(data, "inst_one")
    assert (await lab.resize(data, 96 * MIB)).status.size == 96 * MIB
    await lab.wing.detach("inst_one")
    assert (await lab.resize(data, 128 * MIB)).status.size == 128 * MIB
    assert (await lab.resize(data, 80 * MIB)).status.size == 80 * MIB
    mounted = await lab.attach(data, "inst_one")
    assert mounted.size == 80 * MIB
    assert os.statvfs(mounted.path).f_blocks * 4096 > 60 * MIB


async def test_a_corrupted_header_is_named_and_nothing_else_suffers(lab: VolumesLab) -> None:
    broken = await lab.create(ext4_volume("broken", encryption=KeyWrap.KEY_FILE))
    whole = await lab.create(ext4_volume("whole"))
    [disk] = list((lab.pool / "volumes" / broken.id).glob("disk.*"))

    def tear() -> None:
        data = bytearray(disk.read_bytes())
        place = data.index(b"LUKS\xba\xbe")
        data[place + 8 : place + 400] = os.urandom(392)
        disk.write_bytes(data)

    await asyncio.to_thread(tear)
    with pytest.raises(LamellaError):
        await lab.attach(broken, "inst_one")
    assert await lab.wing.attached() == {} and not lab.loops()
    report = await lab.ask(CheckStorage(volumes=[broken, whole], snapshots=[]), Report)
    assert [finding.subject for finding in report.findings] == [broken.id], problems(report)
    (await lab.attach(whole, "inst_one")).path.joinpath("file").write_bytes(SECRET)
