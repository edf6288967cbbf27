"""Wrapped keys: what opens them, and what must not."""

import asyncio
import base64
import os
import stat
from pathlib import Path

import msgspec
import pytest

from lamella.host.compute.driver import Home
from lamella.host.storage import keys
from lamella.host.storage.keys import KeyRing, new_key
from lamella.model.errors import Corrupt, Forbidden, Invalid, LamellaError, Unavailable
from lamella.model.ids import new_id
from lamella.model.storage import KeyWrap


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(path=tmp_path, mark="lamella-keys")


async def test_a_key_file_is_made_once_for_root_alone_and_opens_what_it_wrapped(home: Home) -> None:
    id, key = new_id("volume"), new_key()
    text = await KeyRing(home).wrap(id, key, KeyWrap.KEY_FILE)
    assert await KeyRing(home).unwrap(id, text) == key
    files = list((home.state / "keys").iterdir())
    assert len(files) == 1
    assert stat.S_IMODE(files[0].stat().st_mode) == 0o600
    assert stat.S_IMODE((home.state / "keys").stat().st_mode) == 0o700
    other = await KeyRing(home).wrap(new_id("volume"), new_key(), KeyWrap.KEY_FILE)
    assert len(list((home.state / "keys").iterdir())) == 1
    assert other != text


@pytest.mark.parametrize("left", [b"", b"half a key"])
async def test_what_a_crash_left_of_the_first_key_file_is_no_key(home: Home, left: bytes) -> None:
    place = home.state / "keys"
    place.mkdir(parents=True)
    for name in (".0123456789abcdef.key", ".key.new", "ffffffffffffffff.key"):
        (place / name).write_bytes(left)
    id, key = new_id("volume"), new_key()
    text = await KeyRing(home).wrap(id, key, KeyWrap.KEY_FILE)
    assert await KeyRing(home).unwrap(id, text) == key
    assert not (place / ".key.new").exists()


async def test_the_newest_key_file_is_the_one_that_was_made_last(home: Home) -> None:
    place = home.state / "keys"
    place.mkdir(parents=True)
    for made, name in enumerate(("ffffffffffffffff.key", "0000000000000000.key")):
        (place / name).write_bytes(os.urandom(keys.KEY_BYTES))
        os.utime(place / name, (made, made))
    text = await KeyRing(home).wrap(new_id("volume"), new_key(), KeyWrap.KEY_FILE)
    assert keys.parse(text).file == "0000000000000000.key"


async def test_volumes_that_are_made_at_once_share_one_key_file(home: Home) -> None:
    ring = KeyRing(home)
    await asyncio.gather(*(ring.wrap(new_id("volume"), new_key(), KeyWrap.KEY_FILE) for _ in range(16)))
    assert len(list((home.state / "keys").iterdir())) == 1


@pytest.mark.parametrize("method", [KeyWrap.KEY_FILE, KeyWrap.PASSPHRASE])
async def test_a_wrapped_key_that_is_put_to_another_volume_is_refused(home: Home, method: KeyWrap) -> None:
    text = await KeyRing(home).wrap(new_id("volume"), new_key(), method, "open sesame")
    with pytest.raises((Corrupt, Forbidden)):
        await KeyRing(home).unwrap(new_id("volume"), text, "open sesame")


async def test_the_wrapped_text_holds_neither_key_nor_passphrase(home: Home) -> None:
    id, key = new_id("volume"), new_key()
    for method in (KeyWrap.KEY_FILE, KeyWrap.PASSPHRASE):
        plain = base64.b64decode(await KeyRing(home).wrap(id, key, method, "open sesame"))
        assert key not in plain
        assert base64.b64encode(key) not in plain
        assert b"sesame" not in plain
    secret = next((home.state / "keys").iterdir()).read_bytes()
    assert base64.b64encode(secret) not in plain


async def test_a_passphrase_is_asked_for_checked_and_remembered_until_the_daemon_ends(home: Home) -> None:
    id, key, ring = new_id("volume"), new_key(), KeyRing(home)
    text = await ring.wrap(id, key, KeyWrap.PASSPHRASE, "open sesame")
    # Whoever made it had it.
    assert await ring.unwrap(id, text) == key
    fresh = KeyRing(home)
    with pytest.raises(Unavailable, match="locked away"):
        await fresh.unwrap(id, text)
    with pytest.raises(Forbidden) as wrong:
        await fresh.unlock(id, text, "open barley")
    assert "barley" not in str(wrong.value)
    with pytest.raises(Unavailable):
        await fresh.unwrap(id, text)
    await fresh.unlock(id, text, "open sesame")
    assert await fresh.unwrap(id, text) == key
    with pytest.raises(Invalid):
        await fresh.wrap(id, key, KeyWrap.PASSPHRASE)


async def test_a_lost_or_cut_key_file_is_said(home: Home) -> None:
    id = new_id("volume")
    text = await KeyRing(home).wrap(id, new_key(), KeyWrap.KEY_FILE)
    file = next((home.state / "keys").iterdir())
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(Corrupt):
        await KeyRing(home).unwrap(id, text)
    file.unlink()
    with pytest.raises(Unavailable, match="cannot be read"):
        await KeyRing(home).unwrap(id, text)


async def test_no_changed_bit_of_a_wrapped_key_opens_anything(home: Home) -> None:
    id, key, ring = new_id("volume"), new_key(), KeyRing(home)
    text = await ring.wrap(id, key, KeyWrap.KEY_FILE)
    plain = base64.b64decode(text)
    for place in range(0, len(plain), 3):
        torn = bytearray(plain)
        torn[place] ^= 1
        with pytest.raises(LamellaError):
            await ring.unwrap(id, base64.b64encode(torn).decode())


@pytest.mark.parametrize("text", ["", "x", "e30=", base64.b64encode(b"\xff" * 40).decode()])
def test_what_is_no_wrapped_key_is_corrupt(text: str) -> None:
    with pytest.raises(Corrupt):
        keys.parse(text)


@pytest.mark.parametrize(
    "change", [{"version": 2}, {"cost": 1 << 40}, {"cost": 3}, {"method": "key-file", "file": "../../etc/shadow"}]
)
async def test_a_wrapped_key_asks_for_nothing_beyond_its_kind(home: Home, change: dict[str, object]) -> None:
    id = new_id("volume")
    text = await KeyRing(home).wrap(id, new_key(), KeyWrap.PASSPHRASE, "open sesame")
    fields = msgspec.json.decode(base64.b64decode(text)) | change
    with pytest.raises(Corrupt):
        await KeyRing(home).unwrap(id, base64.b64encode(msgspec.json.encode(fields)).decode(), "open sesame")
