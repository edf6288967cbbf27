"""Text becomes keys of a US keyboard."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.host.compute.vm.keyboard import KEYS, check, chords
from lamella.model.errors import Invalid

TYPEABLE = [*(chr(code) for code in range(32, 127)), "\n", "\t", "\b", "\x1b"]


@given(st.text(st.sampled_from(TYPEABLE)))
def test_every_character_has_keys_of_its_own(text: str) -> None:
    pressed = chords(text)
    assert len(pressed) == len(text)
    assert all(key in KEYS for chord in pressed for key in chord)
    assert {pressed[place] for place in range(len(text))} == {chords(character)[0] for character in text}


def test_no_two_characters_share_keys() -> None:
    assert len({chords(character)[0] for character in TYPEABLE}) == len(TYPEABLE)


def test_shift_is_held_for_what_needs_it() -> None:
    assert chords("a~") == [("a",), ("shift", "grave_accent")]
    assert chords("A|") == [("shift", "a"), ("shift", "backslash")]


@pytest.mark.parametrize("ending", ["\n", "\r", "\r\n"])
def test_each_kind_of_line_end_is_one_return(ending: str) -> None:
    assert chords(f"x{ending}y") == [("x",), ("ret",), ("y",)]


@given(st.characters().filter(lambda character: character not in [*TYPEABLE, "\r"]))
def test_all_else_is_refused_with_its_place(character: str) -> None:
    with pytest.raises(Invalid, match="character 3"):
        chords(f"ok{character}")


def test_keys_are_checked_and_named() -> None:
    assert check(["ctrl", "alt", "delete", "alt"]) == ("ctrl", "alt", "delete")
    with pytest.raises(Invalid, match="did you mean"):
        check(["del"])
    with pytest.raises(Invalid, match="none at all"):
        check([])
