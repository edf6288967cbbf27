"""restic over the pieces of a file: what is stored comes back, only what changed is read, and what is broken is found."""

import asyncio
import os
import random
from contextlib import suppress
from pathlib import Path

import pytest
from tests.integration.backup.backup_ground import a_note, bring, content, engine_at, home_in, keep

from lamella.host.storage.backup import table as tables
from lamella.host.storage.driver import Extent
from lamella.model.errors import Conflict, Corrupt, Forbidden, LamellaError, NoRoom, NotFound, Unavailable

pytestmark = [pytest.mark.root, pytest.mark.timeout(600, method="thread")]

MIB = 1 << 20
SIZE = 40 * MIB + 12345


def whole(*holes: tuple[int, int]) -> list[Extent]:
    return [Extent(offset=0, length=SIZE), *(Extent(offset=a, length=b, zero=True) for a, b in holes)]


async def test_a_backup_comes_back_and_the_next_one_reads_only_what_changed(tmp_path: Path) -> None:
    home = home_in(tmp_path / "home")
    engine = engine_at(home, str(tmp_path / "vault"))
    assert await engine.create() == await engine.identify()
    source = content(tmp_path / "disk", SIZE, [(8 * MIB, 16 * MIB)])
    extents = [Extent(offset=0, length=8 * MIB), Extent(offset=24 * MIB, length=SIZE - 24 * MIB)]
    table = tables.everything(SIZE, extents, 1000)
    first = await keep(engine, home, source, table, a_note("first"))
    # Zeros are not read.
    assert first.read == SIZE - 16 * MIB
    with source.open("r+b") as file:
        file.seek(30 * MIB + 100)
        file.write(os.urandom(4096))
    later, stamp = tables.since(table, SIZE, extents, [Extent(offset=30 * MIB + 100, length=4096)], 2000)
    assert later.bytes_of(stamp) == tables.PIECE
    # What is not in a changed piece is not opened: were it read, this other content would be found.
    other = content(tmp_path / "other", SIZE, [(8 * MIB, 16 * MIB)])
    with source.open("rb") as file, other.open("r+b") as changed:
        file.seek(28 * MIB)
        changed.seek(28 * MIB)
        changed.write(file.read(4 * MIB))
    second = await keep(engine, home, other, later, a_note("second"), parent=first.engine_id)
    assert second.added < 6 * MIB
    for summary, name in ((second, "back"),):
        await bring(engine, home, summary.engine_id, tmp_path / name, later)
        assert (tmp_path / name).read_bytes() == source.read_bytes()
    assert (tmp_path / "back").stat().st_blocks * 512 < SIZE - 15 * MIB
    assert [stored.note.name for stored in await engine.stored()] == ["first", "second"]


async def test_the_wrong_key_opens_nothing_and_nothing_is_made_over_something(tmp_path: Path) -> None:
    home = home_in(tmp_path / "home")
    await engine_at(home, str(tmp_path / "vault")).create()
    with pytest.raises(Forbidden):
        await engine_at(home, str(tmp_path / "vault"), key=b"w" * 32).identify()
    with pytest.raises(Conflict):
        await engine_at(home, str(tmp_path / "vault")).create()
    with pytest.raises(NotFound):
        await engine_at(home, str(tmp_path / "nothing")).identify()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").touch()
    with pytest.raises(Conflict):
        await engine_at(home, str(tmp_path / "full")).create()


async def test_a_flipped_bit_is_found_and_only_what_it_hits_is_lost(tmp_path: Path) -> None:
    home = home_in(tmp_path / "home")
    engine = engine_at(home, str(tmp_path / "vault"))
    await engine.create()
    tables_of = {}
    ids = {}
    for name in ("one", "two"):
        source = content(tmp_path / name, SIZE)
        tables_of[name] = tables.everything(SIZE, [Extent(offset=0, length=SIZE)], 1000)
        before = set((tmp_path / "vault" / "data").glob("*/*"))
        ids[name] = (await keep(engine, home, source, tables_of[name], a_note(name))).engine_id
        new = set((tmp_path / "vault" / "data").glob("*/*")) - before
        if name == "one":
            victim = max(new, key=lambda path: path.stat().st_size)
    assert (await engine.check(100)).problems == []
    flip(victim)
    damage = await engine.check(100)
    assert damage.packs == [victim.name]
    assert await engine.hit(damage.packs, list(ids.values())) == [ids["one"]]
    with pytest.raises(Corrupt):
        await bring(engine, home, ids["one"], tmp_path / "back", tables_of["one"])
    await bring(engine, home, ids["two"], tmp_path / "back", tables_of["two"])
    assert (tmp_path / "back").read_bytes() == (tmp_path / "two").read_bytes()


def flip(path: Path) -> None:
    """One bit of it, somewhere in the middle."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1 << random.randrange(8)]))


async def test_after_kills_at_random_moments_the_next_backup_works_and_halves_do_not_count(tmp_path: Path) -> None:
    home = home_in(tmp_path / "home")
    engine = engine_at(home, str(tmp_path / "vault"))
    await engine.create()
    source = content(tmp_path / "disk", SIZE)
    table = tables.everything(SIZE, [Extent(offset=0, length=SIZE)], 1000)
    killed = 0
    for _ in range(4):
        work = asyncio.create_task(keep(engine, home, source, table, a_note("half")))
        await asyncio.sleep(random.uniform(0.3, 1.2))
        killed += kill_engine(home)
        with suppress(LamellaError):
            await engine.forget([(await work).engine_id])
        assert await engine.stored() == []
    assert killed
    work = asyncio.create_task(engine.prune())
    await asyncio.sleep(1.0)
    kill_engine(home)
    with suppress(LamellaError):
        await work
    # A prune that died has left its lock, which keeps everybody out: it is taken away because its owner is dead.
    done = await keep(engine, home, source, table, a_note("whole"))
    await engine.prune()
    assert (await engine.check(100)).problems == []
    await bring(engine, home, done.engine_id, tmp_path / "back", table)
    assert (tmp_path / "back").read_bytes() == source.read_bytes()


def kill_engine(home: object) -> int:
    """SIGKILL to what runs of the engine, as a crash would."""
    from lamella.host.linux.processes import bears_mark, marked

    killed = 0
    for pid in marked("lamella-backup0"):
        comm = Path(f"/proc/{pid}/comm")
        if comm.exists() and comm.read_text().strip() == "restic" and bears_mark(pid, "lamella-backup0"):
            os.kill(pid, 9)
            killed += 1
    return killed


async def test_two_backups_at_once(tmp_path: Path) -> None:
    home = home_in(tmp_path / "home")
    engine = engine_at(home, str(tmp_path / "vault"))
    await engine.create()
    table = tables.everything(SIZE, [Extent(offset=0, length=SIZE)], 1000)
    sources = [content(tmp_path / f"disk{number}", SIZE) for number in range(2)]
    done = await asyncio.gather(
        *(keep(engine, home, source, table, a_note(source.name), name=source.name) for source in sources)
    )
    for summary, source in zip(done, sources, strict=True):
        await bring(engine, home, summary.engine_id, tmp_path / "back", table)
        assert (tmp_path / "back").read_bytes() == source.read_bytes()


async def test_a_full_repository_is_no_room_and_one_that_is_gone_is_told(tmp_path: Path) -> None:
    home = home_in(tmp_path / "home")
    small = tmp_path / "small"
    small.mkdir()
    from lamella.host.linux import syscalls

    syscalls.mount("small", str(small), "tmpfs", 0, "size=24m")
    try:
        engine = engine_at(home, str(small / "vault"))
        await engine.create()
        source = content(tmp_path / "disk", SIZE)
        table = tables.everything(SIZE, [Extent(offset=0, length=SIZE)], 1000)
        with pytest.raises(NoRoom):
            await keep(engine, home, source, table, a_note("large"))
        little = tables.everything(SIZE, [Extent(offset=0, length=MIB)], 1000)
        await engine.prune()
        await keep(engine, home, source, little, a_note("little"))
        assert [stored.note.name for stored in await engine.stored()] == ["little"]
    finally:
        syscalls.umount(str(small))
    with pytest.raises((NotFound, Unavailable)):
        await engine.stored()


async def test_what_cannot_be_read_makes_no_backup(tmp_path: Path) -> None:
    home = home_in(tmp_path / "home")
    engine = engine_at(home, str(tmp_path / "vault"))
    await engine.create()
    source = content(tmp_path / "disk", 8 * MIB)
    # The table promises more than there is: reading beyond the end is an error, as reading a broken disk would be.
    table = tables.everything(SIZE, [Extent(offset=0, length=SIZE)], 1000)
    with pytest.raises(Corrupt):
        await keep(engine, home, source, table, a_note("broken"))
    assert await engine.stored() == []
