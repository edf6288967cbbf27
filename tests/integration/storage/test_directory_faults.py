"""What breaks by itself or by hand: damaged layers and records, a full pool, a second daemon, a flipped bit."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from lamella.host.storage.directory import DirectoryDriver
from lamella.host.storage.directory.record import Record, decoded
from lamella.host.storage.driver import Node
from lamella.model.errors import Corrupt, NoRoom, NotFound
from lamella.model.ids import new_id
from lamella.model.storage import VolumeForm

MIB = 1 << 20


def io(node: Node, *commands: str) -> None:
    given = [part for command in commands for part in ("-c", command)]
    done = subprocess.run(["qemu-io", *given, f"json:{json.dumps(node)}"], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0 and "failed" not in done.stdout + done.stderr, done


def tool(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=90)


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[DirectoryDriver]:
    pool = DirectoryDriver(tmp_path / "pool")
    await pool.open()
    pool.blocks.shares = False
    yield pool
    await pool.close()


@pytest.fixture
async def id(pool: DirectoryDriver) -> str:
    """A volume of three layers: 1 in the first, 2 in the second, 3 in the third."""
    id = new_id("volume")
    await pool.create(id, VolumeForm.BLOCK, 16 * MIB)
    for number in (1, 2, 3):
        io(await pool.node(id), f"write -P {number} {number}M 1M", "flush")
        if number < 3:
            await pool.snapshot(id, new_id("snapshot"))
    return id


def record(pool: DirectoryDriver, id: str) -> Record:
    return decoded((pool.path / "volumes" / id / "volume.json").read_bytes())


async def test_a_healthy_pool_is_found_healthy(pool: DirectoryDriver, id: str) -> None:
    assert await pool.check(repair=False) == [] == await pool.check(repair=True)
    io(await pool.node(id), "read -P 1 1M 1M", "read -P 2 2M 1M", "read -P 3 3M 1M")


@pytest.mark.parametrize("repair", [False, True])
async def test_a_header_that_is_no_more_is_named(pool: DirectoryDriver, id: str, repair: bool) -> None:
    broken = (await pool.chain(id))[1].path
    with broken.open("r+b") as file:
        file.write(bytes(64))
    found = await pool.check(repair=repair)
    assert [finding.subject for finding in found] == [id] and "not a qcow2 file" in found[0].problem
    assert not found[0].mended and found[0].hint
    other = new_id("volume")
    await pool.create(other, VolumeForm.BLOCK, MIB)
    io(await pool.node(other), "read -P 0 0 1M")


async def test_a_torn_qcow2_is_named(pool: DirectoryDriver, id: str) -> None:
    torn = (await pool.chain(id))[0].path
    with torn.open("r+b") as file:
        file.truncate(torn.stat().st_size // 2)
    found = await pool.check(repair=False)
    assert found and all(finding.subject == id and torn.name in finding.problem for finding in found)
    assert not any(finding.mended for finding in found)


async def test_leaked_clusters_are_given_back(pool: DirectoryDriver, id: str) -> None:
    top = (await pool.chain(id))[0].path
    # The refcount table says where the first block of counts is: the last cluster gets a count that nothing needs.
    with top.open("r+b") as file:
        header = file.read(64)
        table, cluster = int.from_bytes(header[48:56], "big"), 1 << int.from_bytes(header[20:24], "big")
        file.seek(table)
        counts = int.from_bytes(file.read(8), "big")
        number = -(-top.stat().st_size // cluster) + 1
        file.truncate((number + 1) * cluster)
        file.seek(counts + 2 * number)
        file.write((1).to_bytes(2, "big"))
    found = await pool.check(repair=False)
    assert len(found) == 1 and "leaked" in found[0].problem and not found[0].mended
    assert [finding.mended for finding in await pool.check(repair=True)] == [True]
    assert await pool.check(repair=False) == []
    io(await pool.node(id), "read -P 1 1M 1M", "read -P 3 3M 1M")


async def test_a_layer_that_was_taken_away_is_named(pool: DirectoryDriver, id: str) -> None:
    gone = (await pool.chain(id))[2].path
    gone.rename(gone.with_suffix(".elsewhere"))
    found = await pool.check(repair=True)
    assert any("is gone" in finding.problem and gone.name in finding.problem for finding in found)
    gone.with_suffix(".elsewhere").rename(gone)
    assert await pool.check(repair=False) == []


@pytest.mark.parametrize(
    "content", [b"", b'{"form":"block"', b'{"form":"block","size":1,"layers":[{"name":"x"}],"top":"y"}']
)
async def test_a_broken_record_harms_that_volume_alone(pool: DirectoryDriver, id: str, content: bytes) -> None:
    other = new_id("volume")
    await pool.create(other, VolumeForm.BLOCK, MIB)
    path = pool.path / "volumes" / id / "volume.json"
    path.write_bytes(content)
    again = DirectoryDriver(pool.path)
    await again.open()
    assert await again.inventory() == {id, other}
    with pytest.raises(Corrupt, match=id):
        await again.node(id)
    assert [finding.subject for finding in await again.check(repair=True)] == [id]
    assert len(list(path.parent.glob("*.qcow2"))) == 2, "nothing of it is thrown away"
    await again.delete(id)
    assert await again.inventory() == {other}
    await again.close()


async def test_names_in_headers_are_not_believed(pool: DirectoryDriver, id: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"\x77" * MIB)
    top = (await pool.chain(id))[0].path
    tool("qemu-img", "rebase", "-u", "-F", "raw", "-b", str(secret), str(top))
    io(await pool.node(id), "read -P 0 0 1M", "read -P 1 1M 1M", "read -P 2 2M 1M")


async def test_a_file_that_was_cut_short_is_made_long_again(pool: DirectoryDriver) -> None:
    id = new_id("volume")
    handle = await pool.create(id, VolumeForm.BLOCK, 8 * MIB)
    with handle.path.open("r+b") as file:
        file.truncate(4 * MIB)
    found = await pool.check(repair=False)
    assert len(found) == 1 and "is lost" in found[0].problem
    assert [finding.mended for finding in await pool.check(repair=True)] == [True]
    assert handle.path.stat().st_size == 8 * MIB


async def test_a_flipped_bit_in_what_is_kept_is_found(pool: DirectoryDriver, id: str) -> None:
    read, found = await pool.scrub(repair=True)
    assert read >= MIB and found == []
    sealed = (await pool.chain(id))[2].path
    with sealed.open("r+b") as file:
        file.seek(MIB + 4711)
        file.write(b"\x03")
    for _ in range(2):
        _, found = await pool.scrub(repair=True)
        assert [finding.subject for finding in found] == [id] and sealed.name in found[0].problem
        assert not found[0].mended
    with sealed.open("r+b") as file:
        file.seek(MIB + 4711)
        file.write(b"\x01")
    assert (await pool.scrub(repair=True))[1] == []


async def test_what_is_written_on_or_merged_is_no_flipped_bit(pool: DirectoryDriver, id: str) -> None:
    await pool.scrub(repair=True)
    io(await pool.node(id), "write -P 9 0 1M", "flush")
    await pool.drop(id, (await pool.snapshots(id))[0])
    assert (await pool.scrub(repair=True))[1] == []
    await pool.snapshot(id, new_id("snapshot"))
    assert (await pool.scrub(repair=True))[1] == []
    assert (await pool.scrub(repair=True))[1] == []


async def test_a_second_daemon_is_kept_out(pool: DirectoryDriver) -> None:
    program = (
        "import asyncio, sys; from pathlib import Path; from lamella.host.storage.directory import DirectoryDriver;"
        "asyncio.run(DirectoryDriver(Path(sys.argv[1])).open())"
    )

    async def other() -> str:
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", program, str(pool.path)], capture_output=True, text=True, timeout=90
        )
        return done.stderr

    assert "is open in another daemon" in await other()
    await pool.close()
    assert await other() == ""
    await pool.open()


async def test_shredding_goes_on_after_a_crash(pool: DirectoryDriver, tmp_path: Path) -> None:
    id = new_id("volume")
    handle = await pool.create(id, VolumeForm.BLOCK, 2 * MIB)
    handle.path.write_bytes(b"secret" * 1000)
    witness = tmp_path / "witness"
    witness.hardlink_to(handle.path)
    # What a crash leaves between the two halves of a deletion.
    pool.ground.discard(handle.path.parent, shred=True)
    with pytest.raises(NotFound):
        await pool.handle(id)
    again = DirectoryDriver(pool.path)
    await again.open()
    assert not list((pool.path / ".shred").iterdir()) and not witness.read_bytes().strip(b"\0")
    await again.close()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", mount], check=True, timeout=90)
    yield mount
    subprocess.run(["umount", mount], check=True, timeout=90)


@pytest.mark.root
async def test_a_full_pool_changes_nothing(small: Path) -> None:
    pool = DirectoryDriver(small)
    await pool.open()
    id, snapshot, tree = new_id("volume"), new_id("snapshot"), new_id("volume")
    await pool.create(id, VolumeForm.BLOCK, 1 << 40)
    data = (await pool.create(tree, VolumeForm.FILESYSTEM, 0)).path
    await pool.snapshot(id, snapshot)
    (data / "big").write_bytes(b"x" * (300 << 10))
    free = (await pool.status()).free
    (small / "ballast").write_bytes(bytes(max(0, free - (100 << 10))))
    before = sorted(path.name for path in (small / "volumes" / id).iterdir())
    for verb in (
        pool.snapshot(id, new_id("snapshot")),
        pool.snapshot(tree, new_id("snapshot")),
        pool.restore(id, snapshot),
        pool.begin_layer(id, new_id("snapshot")),
    ):
        with pytest.raises(NoRoom, match="full"):
            await verb
    assert sorted(path.name for path in (small / "volumes" / id).iterdir()) == before
    assert await pool.snapshots(id) == [snapshot] and await pool.snapshots(tree) == []
    assert not list((small / ".staging").iterdir()) and await pool.check(repair=False) == []
    (small / "ballast").unlink()
    await pool.snapshot(tree, new_id("snapshot"))
    await pool.close()
