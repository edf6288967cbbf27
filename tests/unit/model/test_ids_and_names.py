"""Ids sort by time and carry their kind; names are what they may be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.model.errors import Invalid, error_for
from lamella.model.ids import PREFIXES, check_image_name, check_name, check_project, check_snapshot_name, is_id, new_id
from lamella.model.kinds import KINDS
from lamella.model.signals import signal_number


def test_every_kind_has_an_id_prefix() -> None:
    assert set(KINDS) == set(PREFIXES)


@given(st.integers(0, 1 << 47), st.integers(1, 10**6))
def test_later_ids_sort_after_earlier_ones(at: int, later: int) -> None:
    assert new_id("volume", now_ms=at) < new_id("volume", now_ms=at + later)


def test_ids_are_ids_and_never_repeat() -> None:
    ids = {new_id(kind) for kind in PREFIXES for _ in range(100)}
    assert len(ids) == 100 * len(PREFIXES)
    assert all(is_id(id) for id in ids)


@pytest.mark.parametrize("name", ["web", "a", "web-1", "db.main", "x_y", "0"])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "-web", "web-", "Web", "a/b", "a b", "a" * 64, "naïve", "..", new_id("instance")])
def test_what_may_not_be_a_name(name: str) -> None:
    with pytest.raises(Invalid):
        check_name(name)


@pytest.mark.parametrize("name", ["debian:12", "team/web:1.0", "localhost:5000/a/b:Latest", "a@sha256"])
def test_image_names(name: str) -> None:
    assert check_image_name(name) == name


@pytest.mark.parametrize("name", ["", "/a", "a//", "A", "a b", ":x", "a\n", "a" * 256])
def test_what_may_not_name_an_image(name: str) -> None:
    with pytest.raises(Invalid):
        check_image_name(name)


def test_a_project_is_a_dns_label() -> None:
    assert check_project("team-1") == "team-1"
    for name in ("", "a.b", "A", "a_b"):
        with pytest.raises(Invalid):
            check_project(name)


def test_errors_are_found_by_their_code() -> None:
    from lamella.model import errors

    mine = [cls for cls in vars(errors).values() if isinstance(cls, type) and cls is not errors.LamellaError]
    for cls in mine:
        assert not issubclass(cls, errors.LamellaError) or error_for(cls.code) is cls
    assert len(mine) > 10
    assert error_for("never heard of") is errors.Internal


@pytest.mark.parametrize(
    ("text", "number"), [("TERM", 15), ("sigkill", 9), ("1", 1), ("HUP", 1), ("RTMIN+1", 35), ("SIGRTMAX-1", 63)]
)
def test_signals(text: str, number: int) -> None:
    assert signal_number(text) == number


@pytest.mark.parametrize(
    "text", ["", "0", "65", "9999999", "TERMINATE", "RTMIN+", "RTMIN+99", "RTMAX+9", "TERM+x", "SIG", "-1"]
)
def test_what_is_no_signal(text: str) -> None:
    with pytest.raises(Invalid):
        signal_number(text)


@pytest.mark.parametrize("hostname", ["abc\n", "a b", "-a", "a" * 64])
def test_a_line_end_after_a_host_name_is_no_host_name(hostname: str) -> None:
    import msgspec

    from lamella.model.instance import InstanceSpec

    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"image": "x", "hostname": hostname}, InstanceSpec)


@pytest.mark.parametrize("text", ["data@nightly", "a@b", f"{'a' * 63}@{'b' * 63}"])
def test_names_of_snapshots(text: str) -> None:
    assert check_snapshot_name(text) == text


@pytest.mark.parametrize(
    "text", ["", "data", "@", "data@", "@x", "a@b@c", "Data@x", "a@b\n", f"a@{'b' * 64}", "../x@y", "a@.."]
)
def test_what_names_no_snapshot(text: str) -> None:
    with pytest.raises(Invalid):
        check_snapshot_name(text)
