"""Tables, documents, times: nothing that came from outside reaches a terminal raw."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from lamella.cli import output, when
from lamella.cli.copy import place
from lamella.cli.document import Document, parse, render
from lamella.cli.ps import outline
from lamella.cli.top import rows

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.text())
def test_nothing_raw_reaches_a_terminal(text: str) -> None:
    assert output.clean(text).isprintable()


@given(st.lists(st.lists(st.text(max_size=8), min_size=3, max_size=3), max_size=5))
def test_columns_are_aligned(cells: list[list[str]]) -> None:
    lines = output.table(["A", "B", "C"], cells)
    assert len(lines) == len(cells) + 1
    start = output.width(lines[0][: lines[0].index("C")])
    for line, row in zip(lines[1:], cells, strict=True):
        if output.clean(row[2]).strip():
            head = line[: len(line) - len(output.clean(row[2]).rstrip())]
            assert output.width(head) == start


@given(JSON)
def test_any_document_can_be_shown(value: object) -> None:
    document = Document(value)
    assert parse(render(value)).value == value
    for line in outline(document):
        assert line.isprintable()
    assert document.text("a", "b") == (value["a"]["b"] if _has(value) else "")  # type: ignore[index]


def _has(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("a"), dict) and isinstance(value["a"].get("b"), str)


def test_how_long_ago() -> None:
    now = datetime(2026, 1, 10, tzinfo=UTC)
    for seconds, text in ((0, "0s"), (90, "90s"), (120, "2m"), (7200, "2h"), (5 * 86400, "5d"), (-5, "0s")):
        assert when.since((now - timedelta(seconds=seconds)).isoformat(), now) == text
    assert when.since("", now) == ""


def test_sides_of_a_copy() -> None:
    assert place("web:/tmp/a:b") == ("web", "/tmp/a:b")
    assert place("web:tmp") == ("web", "/tmp")
    assert place("./web:tmp") == ("", "./web:tmp")
    assert place("/a:b") == ("", "/a:b")
    assert place("-") == ("", "-")


def test_the_busiest_comes_first_and_an_unknown_one_is_not_guessed() -> None:
    at = ["2026-01-01T00:00:00Z", "2026-01-01T00:00:02Z"]
    before = {"a": Document({"at": at[0], "cpu_seconds": 1}), "b": Document({"at": at[0], "cpu_seconds": 1})}
    after = {
        "new": Document({"at": at[1], "cpu_seconds": 9}),
        "a": Document({"at": at[1], "cpu_seconds": 2}),
        "b": Document({"at": at[1], "cpu_seconds": 5}),
    }
    shown = rows(before, after, [])
    assert [(row.text("name"), row.number("cpu")) for row in shown] == [("b", 2.0), ("a", 0.5), ("new", None)]
    assert [row.text("name") for row in rows(before, after, ["a"])] == ["a"]
