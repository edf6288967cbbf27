"""What of backups is a function of values: which pieces are read, which backups are kept, keys, places, locks."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.control.backup.policies import next_due
from lamella.control.backup.retention import kept
from lamella.host.storage.backup import recovery_key, sealed, table
from lamella.host.storage.backup.location import locate
from lamella.host.storage.backup.restic_errors import damage
from lamella.host.storage.backup.restic_locks import Lock, is_dead
from lamella.host.storage.driver import Extent
from lamella.model.backup import Credentials, Retention
from lamella.model.errors import Corrupt, Invalid

PIECE = 4096
T0 = datetime(2026, 1, 1, tzinfo=UTC)

extents = st.lists(
    st.builds(
        lambda offset, length: Extent(offset=offset, length=length), st.integers(0, 40_000), st.integers(1, 20_000)
    ),
    max_size=5,
)


def covered(spans: list[Extent], piece: int) -> bool:
    start, end = piece * PIECE, (piece + 1) * PIECE
    return any(span.offset < end and start < span.offset + span.length for span in spans)


@given(size=st.integers(1, 60_000), bigger=st.integers(0, 20_000), data=extents, now_data=extents, changed=extents)
def test_what_changed_is_read_and_nothing_else(
    size: int, bigger: int, data: list[Extent], now_data: list[Extent], changed: list[Extent]
) -> None:
    before = table.everything(size, data, 7, PIECE)
    after, stamp = table.since(before, size + bigger, now_data, changed, 9)
    assert stamp > 7 and table.decoded(after.encoded()) is not None
    for index, seen in enumerate(after.stamps):
        if not covered(now_data, index):
            assert seen == 0
        elif (
            covered(changed, index)
            or index >= len(before.stamps)
            or not before.stamps[index]
            or (bigger and index == len(before.stamps) - 1)
        ):
            assert seen == stamp
        else:
            assert seen == 7


def test_stamps_grow_even_when_the_clock_goes_back() -> None:
    before = table.everything(PIECE, [Extent(offset=0, length=1)], 5000, PIECE)
    assert table.since(before, PIECE, [Extent(offset=0, length=1)], [Extent(offset=0, length=1)], 10)[1] == 5001


@pytest.mark.parametrize("data", [b"", b"x" * 16, b"\0" * 24, table.everything(PIECE * 3, [], 1, PIECE).encoded()[:-8]])
def test_what_is_no_table_is_none(data: bytes) -> None:
    assert table.decoded(data) is None


@given(
    hours=st.lists(st.integers(0, 24 * 400), min_size=1, max_size=60),
    keep=st.builds(
        Retention,
        last=st.integers(0, 5),
        hourly=st.integers(0, 5),
        daily=st.integers(0, 9),
        weekly=st.integers(0, 5),
        monthly=st.integers(0, 5),
    ),
)
def test_retention(hours: list[int], keep: Retention) -> None:
    backups = [(str(number), T0 + timedelta(hours=hour)) for number, hour in enumerate(hours)]
    found = kept(backups, keep)
    newest = max(backups, key=lambda item: item[1])[1]
    assert any(at == newest for id, at in backups if id in found)
    asked = keep.last + keep.hourly + keep.daily + keep.weekly + keep.monthly
    if not asked:
        assert found == {id for id, _ in backups}
        return
    assert len(found) <= max(1, keep.last) + asked
    days = sorted({at.date() for _, at in backups}, reverse=True)[: keep.daily]
    assert {at.date() for id, at in backups if id in found} >= set(days)
    # What is forgotten today is not wanted tomorrow.
    assert kept([item for item in backups if item[0] in found], keep) == found


@given(st.binary(min_size=32, max_size=32))
def test_a_recovery_key_is_read_as_it_was_written(key: bytes) -> None:
    text = recovery_key.written(key)
    assert recovery_key.read(text) == key
    assert recovery_key.read(f"  {text.lower().replace('-', ' ')}\n".replace("0", "O").replace("1", "l")) == key


@given(st.binary(min_size=32, max_size=32), st.integers(0, 55), st.sampled_from("ABCDEFGH0123"))
def test_a_slip_of_the_pen_is_noticed(key: bytes, place: int, letter: str) -> None:
    plain = recovery_key.written(key).replace("-", "")
    if plain[place] == letter:
        return
    with pytest.raises(Invalid):
        recovery_key.read(plain[:place] + letter + plain[place + 1 :])


def test_credentials_are_worth_nothing_to_another_repository() -> None:
    credentials = Credentials(access_key="a", secret_key="s")
    text = sealed.seal("repo_1", b"k" * 32, credentials)
    assert "secret" not in text
    assert sealed.unseal("repo_1", b"k" * 32, text) == credentials
    for id, key, what in (("repo_2", b"k" * 32, text), ("repo_1", b"x" * 32, text), ("repo_1", b"k" * 32, "abc")):
        with pytest.raises(Corrupt):
            sealed.unseal(id, key, what)


def test_places() -> None:
    assert locate("/mnt/usb/").engine == "/mnt/usb"
    assert locate("s3://s3.example.org/bucket/a/b").engine == "s3:https://s3.example.org/bucket/a/b"
    assert locate("s3+http://127.0.0.1:9000/bucket").engine == "s3:http://127.0.0.1:9000/bucket"
    place = locate("sftp://backup@host.example.org:2222/srv/vault")
    assert (place.engine, place.user, place.host, place.port) == (
        "sftp:backup@host.example.org:/srv/vault",
        "backup",
        "host.example.org",
        2222,
    )


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/",
        "relative",
        "/a/../b",
        "s3://host",
        "s3://user:secret@host/bucket",
        "sftp://-oProxyCommand=x/y",
        "sftp://-l@host/y",
        "sftp://u:p@host/y",
        "http://host/x",
        "sftp://host",
        "s3://host:nine/bucket",
    ],
)
def test_what_is_no_place(url: str) -> None:
    with pytest.raises(Invalid):
        locate(url)


def test_locks() -> None:
    now = datetime.now(UTC)
    old = Lock(time=now - timedelta(hours=1), hostname="elsewhere", pid=1)
    assert is_dead(old, "here", now)
    assert not is_dead(Lock(time=now, hostname="elsewhere", pid=2**22), "here", now)
    assert is_dead(Lock(time=now, hostname="here", pid=2**22), "here", now)
    # A pid that is somebody else's by now.
    assert is_dead(Lock(time=now, hostname="here", pid=1), "here", now)


def test_what_a_check_names_first_is_what_is_broken() -> None:
    want, got = "a" * 64, "b" * 64
    found = damage(
        f"check all packs\nPack ID does not match, want {want}, got {got}\nFatal: repository contains errors"
    )
    assert found.packs == [want] and len(found.problems) == 1


@given(st.integers(0, 10**7), st.integers(60, 10**6))
def test_what_was_missed_is_made_up_for_once(late: int, every: int) -> None:
    at = T0 + timedelta(seconds=late)
    due = next_due(T0, at, every)
    assert at < due <= at + timedelta(seconds=every)
