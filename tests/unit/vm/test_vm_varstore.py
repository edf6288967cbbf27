"""The store of UEFI variables: the distribution's own, read and added to; anything else refused."""

import contextlib
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.host.compute.vm import firmware, varstore
from lamella.model.errors import Corrupt, Invalid, NoRoom

SECURE = Path("/usr/share/OVMF/OVMF_VARS_4M.ms.fd").read_bytes()
PLAIN = Path("/usr/share/OVMF/OVMF_VARS_4M.fd").read_bytes()
OWNER = uuid.UUID(int=7)


def database(store: bytes) -> bytes:
    (found,) = [variable.data for variable in varstore.read(store) if variable.name == "db"]
    return found


def test_only_the_store_with_keys_enforces() -> None:
    assert varstore.enforced(SECURE) and not varstore.enforced(PLAIN)


@given(st.lists(st.binary(min_size=64, max_size=2000), max_size=4, unique=True))
def test_enrolling_adds_and_changes_nothing_else(certificates: list[bytes]) -> None:
    store = varstore.enrol(SECURE, certificates, OWNER)
    assert len(store) == len(SECURE)
    assert varstore.enrol(store, certificates, OWNER) == store, "again is the same"
    assert database(store).startswith(database(SECURE))
    lists = database(store)[len(database(SECURE)) :]
    for der in certificates:
        # EFI_SIGNATURE_LIST: its size, no header, the size of its one signature, the owner, the certificate.
        size = int.from_bytes(lists[16:20], "little")
        assert size == 28 + 16 + len(der) and int.from_bytes(lists[24:28], "little") == 16 + len(der)
        assert lists[28:44] == OWNER.bytes_le and lists[44:size] == der
        lists = lists[size:]
    assert not lists
    others = [[one for one in varstore.read(data) if one.name != "db"] for data in (SECURE, store)]
    assert others[0] == others[1]


def test_too_much_does_not_fit() -> None:
    with pytest.raises(NoRoom):
        varstore.enrol(SECURE, [bytes([number]) * 60_000 for number in range(10)], OWNER)


@given(st.binary(max_size=300))
def test_what_is_no_store_is_refused(data: bytes) -> None:
    with pytest.raises(Corrupt):
        varstore.read(data)


@given(st.integers(0, len(SECURE) - 1), st.integers(0, 255))
def test_a_damaged_store_never_breaks_the_reader(place: int, value: int) -> None:
    damaged = SECURE[:place] + bytes([value]) + SECURE[place + 1 :]
    with contextlib.suppress(Corrupt):
        varstore.read(damaged)


def test_certificates_are_pem() -> None:
    assert firmware.der([]) == []
    with pytest.raises(Invalid, match="certificate 1"):
        firmware.der(["no"])
