"""Lines and server-sent events, however they are cut."""

from hypothesis import given
from hypothesis import strategies as st

from lamella.client.lines import EventReader, LineReader


@given(
    st.lists(st.binary(max_size=20).filter(lambda line: not set(line) & set(b"\r\n")), max_size=8), st.integers(1, 30)
)
def test_lines_come_whole(lines: list[bytes], step: int) -> None:
    data = b"".join(line + b"\n" for line in lines)
    reader = LineReader()
    assert [line for start in range(0, len(data), step) for line in reader.feed(data[start : start + step])] == lines


@given(
    st.lists(st.tuples(st.integers(1, 999), st.sampled_from(["created", "updated", "deleted"])), max_size=6),
    st.integers(1, 30),
)
def test_events_come_whole(sent: list[tuple[int, str]], step: int) -> None:
    data = b": still here\n\n" + b"".join(
        b'id: %d\nevent: %s\ndata: {"n":%d}\n\n' % (id, kind.encode(), id) for id, kind in sent
    )
    reader = EventReader()
    seen = [event for start in range(0, len(data), step) for event in reader.feed(data[start : start + step])]
    assert [(int(event.id), event.event, event.data) for event in seen] == [
        (id, kind, b'{"n":%d}' % id) for id, kind in sent
    ]
