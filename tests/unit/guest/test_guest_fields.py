"""Message bodies: what is written is read back, and what a hostile guest may write is refused or harmless."""

import contextlib
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.host.compute.guest import answers
from lamella.host.compute.guest.fields import Fields, Tag, body, nanoseconds, when
from lamella.host.compute.guest.frames import Frame, FrameType
from lamella.host.compute.guest.setup import GuestPhase
from lamella.model.errors import Corrupt

moments = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))


@given(st.text(), st.integers(0, (1 << 63) - 1), st.binary())
def test_values_come_back(text: str, number: int, raw: bytes) -> None:
    fields = Fields(body((Tag.PATH, text), (Tag.SIZE, number), (Tag.ENTROPY, raw), (Tag.UID, None)))
    assert fields.text(Tag.PATH) == text
    assert fields.number(Tag.SIZE) == number
    assert fields.number(Tag.UID) is None
    assert Tag.UID not in fields


@given(moments)
def test_times_come_back(moment: datetime) -> None:
    assert when(nanoseconds(moment)) == moment


@given(st.binary(max_size=400))
def test_any_answer_is_a_value_or_corrupt(message: bytes) -> None:
    for read in (answers.state, answers.file_info, answers.usage, answers.hello):
        with contextlib.suppress(Corrupt):
            read(Fields(message))
    with contextlib.suppress(Corrupt):
        answers.log_piece(Frame(1, FrameType.ITEM, message))


@given(st.lists(st.tuples(st.sampled_from(list(Tag)), st.integers(0, (1 << 64) - 1)), max_size=20))
def test_any_numbers_are_a_value_or_corrupt(pairs: list[tuple[Tag, int]]) -> None:
    message = body(*pairs)
    for read in (answers.state, answers.file_info, answers.usage, answers.hello):
        with contextlib.suppress(Corrupt):
            read(Fields(message))


@pytest.mark.parametrize("message", [b"\1", b"\1\0\5\0\0\0abc", b"\1\0\xff\xff\xff\xff"])
def test_a_message_that_ends_inside_a_field_is_corrupt(message: bytes) -> None:
    with pytest.raises(Corrupt):
        Fields(message)


def test_an_exit_code_beyond_a_byte_is_corrupt() -> None:
    with pytest.raises(Corrupt, match="exit_code"):
        answers.state(Fields(body((Tag.PHASE, 3), (Tag.EXIT_CODE, 256))))


def test_a_state_is_read() -> None:
    state = answers.state(Fields(body((Tag.PHASE, 3), (Tag.EXIT_CODE, 137), (Tag.LOG_END, 12))))
    assert (state.phase, state.exit_code, state.log_end, state.pid) == (GuestPhase.EXITED, 137, 12, None)
    assert not state.held, "an agent that does not know of holds holds nothing"
    assert answers.state(Fields(body((Tag.PHASE, 2), (Tag.HELD, 1)))).held
