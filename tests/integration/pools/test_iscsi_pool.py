"""The iscsi driver on a real target: labels outlive everything, what others keep is left alone, and CHAP's secret is on no command line."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.tgt import Tgt, missing, small_tgt

from lamella.host.storage import qemu_io
from lamella.host.storage.driver import Base
from lamella.host.storage.iscsi import IscsiDriver
from lamella.host.storage.iscsi.label import DATA, Label, State, decoded, encoded
from lamella.model.errors import Invalid, NoRoom, NotFound, Unavailable, Unsupported
from lamella.model.ids import new_id
from lamella.model.storage import VolumeForm

pytestmark = pytest.mark.root
MIB = 1 << 20
SECRET = "open-sesame-12"


@pytest.fixture
def tgt(tmp_path: Path) -> Iterator[Tgt]:
    if reason := missing():
        pytest.skip(reason)
    with small_tgt(tmp_path / "tgt") as running:
        for number, size in ((1, 64 * MIB), (2, 16 * MIB), (3, 32 * MIB)):
            running.lun(number, size)
        yield running


def driver(tgt: Tgt, **options: str) -> IscsiDriver:
    return IscsiDriver(Path(tgt.path), options)


async def test_a_volume_takes_the_smallest_lun_that_holds_it(tgt: Tgt) -> None:
    pool = driver(tgt)
    status = await pool.open()
    assert status.free == status.capacity == (64 + 16 + 32 - 3) * MIB
    first, second, third = new_id("volume"), new_id("volume"), new_id("volume")
    await pool.create(first, VolumeForm.BLOCK, 10 * MIB)
    await pool.create(second, VolumeForm.BLOCK, 10 * MIB)
    node = await pool.node(first)
    assert (node["file"]["lun"], (await pool.node(second))["file"]["lun"]) == (2, 3)
    with pytest.raises(NoRoom, match="no free LUN"):
        await pool.create(third, VolumeForm.BLOCK, 64 * MIB)
    assert (await pool.create(third, VolumeForm.BLOCK, 0)).size == 63 * MIB
    assert await driver(tgt).inventory() == {first, second, third}
    assert (await pool.resize(first, 15 * MIB)).size == 15 * MIB
    with pytest.raises(NoRoom, match="grow the LUN"):
        await pool.resize(first, 16 * MIB)
    await qemu_io.tell(await pool.node(first), ["write -P 9 0 15M", "flush"])
    await pool.delete(first)
    again = new_id("volume")
    await pool.create(again, VolumeForm.BLOCK, 15 * MIB)
    await qemu_io.tell(await pool.node(again), ["read -P 0 0 15M"])
    with pytest.raises(NotFound):
        await pool.handle(first)


async def test_luns_that_hold_something_of_others_are_left_alone(tgt: Tgt) -> None:
    precious = b"\x53\xef" + b"precious" * 100
    with (tgt.home / "lun1").open("r+b") as file:
        file.seek(65536 + 1080)
        file.write(precious)
    pool = driver(tgt)
    status = await pool.open()
    assert status.conditions[0].reason == "NotOurs" and "LUNs 1 hold" in status.conditions[0].message
    with pytest.raises(NoRoom):
        await pool.create(new_id("volume"), VolumeForm.BLOCK, 40 * MIB)
    await pool.create(new_id("volume"), VolumeForm.BLOCK, 4 * MIB)
    assert precious in (tgt.home / "lun1").read_bytes()


async def test_what_lay_on_an_adopted_lun_is_not_in_the_volume(tgt: Tgt) -> None:
    with (tgt.home / "lun2").open("r+b") as file:
        file.seek(8 * MIB)
        file.write(b"old news" * 1000)
    pool = driver(tgt)
    await pool.open()
    id = new_id("volume")
    await pool.create(id, VolumeForm.BLOCK, 4 * MIB)
    # Nor when it grows over it.
    await pool.resize(id, 15 * MIB)
    await qemu_io.tell(await pool.node(id), ["read -P 0 0 15M"])


async def test_it_begins_as_the_disk_of_an_image(tgt: Tgt, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(b"\x07" * (3 * MIB))
    pool = driver(tgt)
    await pool.open()
    id = new_id("volume")
    with pytest.raises(Invalid):
        await pool.create(id, VolumeForm.BLOCK, MIB, base=Base(path=disk, size=3 * MIB))
    await pool.create(id, VolumeForm.BLOCK, 8 * MIB, base=Base(path=disk, size=3 * MIB))
    await qemu_io.tell(await pool.node(id), ["read -P 7 0 3M", "read -P 0 3M 5M"])


async def test_what_a_crash_cut_short_is_no_volume_and_is_let_go_by_the_host_that_began_it(
    tgt: Tgt, tmp_path: Path
) -> None:
    pool = driver(tgt)
    pool.place(tmp_path / "place", "lamella-test")
    await pool.open()
    ours = (tmp_path / "place" / "owner").read_text()
    making, releasing, elsewhere = new_id("volume"), new_id("volume"), new_id("volume")
    for number, label in (
        (1, Label(state=State.MAKING, id=making, size=8 * MIB, owner=ours)),
        (2, Label(state=State.RELEASING, id=releasing, size=8 * MIB, owner=ours, clean=True)),
        (3, Label(state=State.RELEASING, id=elsewhere, size=8 * MIB, owner="other", clean=True)),
    ):
        leave(tgt, number, label)
    assert await pool.inventory() == set()
    assert (await pool.create(making, VolumeForm.BLOCK, 8 * MIB)).size == 8 * MIB
    node = await pool.node(making)
    assert node["file"]["lun"] == 1
    await qemu_io.tell(node, ["read -P 0 0 8M"])
    assert [finding.mended for finding in await pool.check(repair=False)] == [False, False]
    await pool.open()
    (finding,) = await pool.check(repair=True)
    assert (finding.subject, finding.mended) == ("LUN 3", False) and "another host" in finding.problem
    await pool.delete(elsewhere)
    assert b"left" not in (tgt.home / "lun2").read_bytes() and b"left" in (tgt.home / "lun3").read_bytes()
    assert (await pool.status()).free == 15 * MIB, "the other host may still be at it"


async def test_what_was_being_made_and_is_not_asked_for_again_is_let_go(tgt: Tgt, tmp_path: Path) -> None:
    pool = driver(tgt)
    pool.place(tmp_path / "place", "lamella-test")
    await pool.open()
    ours = (tmp_path / "place" / "owner").read_text()
    leave(tgt, 1, Label(state=State.MAKING, id=new_id("volume"), size=8 * MIB, owner=ours))
    await pool.open()
    assert await pool.check(repair=False) == [] and (await pool.status()).free == (64 + 16 + 32 - 3) * MIB
    assert b"left" not in (tgt.home / "lun1").read_bytes()


def leave(tgt: Tgt, number: int, label: Label) -> None:
    """A LUN as a crash leaves it."""
    with (tgt.home / f"lun{number}").open("r+b") as file:
        file.write(encoded(label))
        file.seek(DATA)
        file.write(b"left over" * 1000)


async def test_a_shrinking_that_was_cut_short_gives_nothing_away(tgt: Tgt) -> None:
    pool = driver(tgt)
    await pool.open()
    id = new_id("volume")
    await pool.create(id, VolumeForm.BLOCK, 12 * MIB)
    await qemu_io.tell(await pool.node(id), ["write -P 9 0 12M", "flush"])
    # As it is between the label and the zeros.
    await pool.target.write(2, Label(state=State.READY, id=id, size=4 * MIB, clean=False))
    assert (await pool.resize(id, 12 * MIB)).size == 12 * MIB
    await qemu_io.tell(await pool.node(id), ["read -P 9 0 4M", "read -P 0 4M 8M"])


async def test_a_damaged_label_does_not_make_its_lun_free(tgt: Tgt) -> None:
    pool = driver(tgt)
    await pool.open()
    await pool.create(new_id("volume"), VolumeForm.BLOCK, 8 * MIB)
    with (tgt.home / "lun2").open("r+b") as file:
        file.seek(30)
        file.write(b"\xff")
    assert "digest" in (await pool.check(repair=True))[0].problem
    assert await pool.inventory() == set()
    assert (await pool.status()).free == (64 + 32 - 2) * MIB


async def test_chap_lets_in_who_knows_the_secret_and_shows_it_to_nobody(tgt: Tgt, tmp_path: Path) -> None:
    tgt.demand("lamella", SECRET)
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    pool = driver(tgt, user="lamella", secret=str(secret))
    await pool.open()
    id = new_id("volume")
    await pool.create(id, VolumeForm.BLOCK, 4 * MIB)
    node = await pool.node(id)
    assert SECRET not in str(node)
    assert not any(SECRET in part for part in [*qemu_io.source(node)[0], qemu_io.source(node)[1]])
    await qemu_io.tell(node, ["write -P 1 0 1M", "read -P 1 0 1M", "flush"])
    with pytest.raises(Unavailable, match="cannot be used"):
        await driver(tgt).open()
    secret.write_text("something-else")
    with pytest.raises(Unavailable) as caught:
        await pool.status()
    assert "something-else" not in str(caught.value)


async def test_what_it_cannot_do_it_says(tgt: Tgt) -> None:
    pool = driver(tgt)
    await pool.open()
    id = new_id("volume")
    await pool.create(id, VolumeForm.BLOCK, 4 * MIB)
    with pytest.raises(Unsupported, match="no snapshots"):
        await pool.snapshot(id, new_id("snapshot"))
    with pytest.raises(Unsupported, match="while it is open"):
        await pool.resized(id, 8 * MIB)
    with pytest.raises(Unavailable, match="has no target"):
        await IscsiDriver(Path(f"{tgt.portal}/iqn.2026-11.test.lamella:other")).open()
    with pytest.raises(Unavailable):
        await IscsiDriver(Path("127.0.0.1:1/iqn.2026-11.test.lamella:pool")).open()
    with pytest.raises(Invalid):
        await IscsiDriver(Path("nothing")).open()


def test_a_label_is_read_as_it_was_written_or_not_at_all() -> None:
    label = Label(state=State.READY, id=new_id("volume"), size=1 << 40, token="ab", clean=True)
    sector = encoded(label)
    assert len(sector) == 4096 and decoded(sector) == label
    assert decoded(bytes(4096)) is None
    for at in range(18, len(sector.rstrip(b"\0")) - 1):
        with pytest.raises(ValueError):
            decoded(sector[:at] + bytes([sector[at] ^ 1]) + sector[at + 1 :])
