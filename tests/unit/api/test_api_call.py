"""Reading requests: paths, queries, bodies, from bytes that anybody may have written."""

from typing import Any, cast
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.api.call import canonical, read_json, read_query, segment
from lamella.api.queries import ContentQuery, ListQuery, WaitQuery, WriteQuery
from lamella.model.errors import Invalid, NotFound
from lamella.model.requests import InstanceCreate


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4))
def test_whatever_is_in_a_segment_stays_in_it(parts: list[str]) -> None:
    raw = "/" + "/".join(quote(part, safe="") for part in parts)
    path = canonical(raw.encode())
    assert [segment(part) for part in path.split("/")[1:]] == parts


@given(st.binary(max_size=80))
def test_any_path_is_read_or_refused(raw: bytes) -> None:
    try:
        path = canonical(b"/" + raw)
    except (Invalid, NotFound):
        return
    for part in path.split("/"):
        segment(part)
    assert canonical(path.encode()) == path


@given(st.binary(max_size=80), st.sampled_from([ListQuery, WriteQuery, WaitQuery, ContentQuery]))
def test_any_query_is_read_or_refused(raw: bytes, type: Any) -> None:
    try:
        assert isinstance(read_query(raw, type), type)
    except Invalid as error:
        assert error.message


@given(st.binary(max_size=80))
def test_any_body_is_read_or_refused(raw: bytes) -> None:
    try:
        assert isinstance(read_json(raw, InstanceCreate), InstanceCreate)
    except Invalid as error:
        assert error.message


def test_labels_come_as_often_as_wanted() -> None:
    assert read_query(b"label=a%3Db&label=c=d=e&limit=5", ListQuery) == ListQuery(label=["a=b", "c=d=e"], limit=5)


@pytest.mark.parametrize(
    ("query", "type", "field"),
    [
        (b"limit=0", ListQuery, "limit"),
        (b"limit=", ListQuery, "limit"),
        (b"limit=1&limit=1", ListQuery, "limit"),
        (b"label=x", ListQuery, "label[0]"),
        (b"wait=nan", WriteQuery, "wait"),
        (b"wait=-1", WriteQuery, "wait"),
        (b"wait=1e999", WriteQuery, "wait"),
        (b"for=", WaitQuery, "for"),
        (b"path=/a&mode=999", ContentQuery, "mode"),
        (b"path=/a&uid=-1", ContentQuery, "uid"),
    ],
)
def test_a_parameter_that_is_wrong_is_named(query: bytes, type: Any, field: str) -> None:
    with pytest.raises(Invalid) as caught:
        read_query(query, type)
    assert caught.value.field == field


def test_a_missing_parameter_is_named() -> None:
    with pytest.raises(Invalid, match="path"):
        read_query(b"", ContentQuery)


def test_depth_is_refused_not_a_crash() -> None:
    with pytest.raises(Invalid):
        read_json(b'{"spec":' * 300_000, cast("Any", dict[str, Any]))
