"""Floors, ceilings and guarantees as people write them, on the command line and in Python."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.cli.commands import SUMMARIES
from lamella.cli.main import load
from lamella.cli.parser import Parser
from lamella.cli.set import patch
from lamella.cli.spec import instance as asked
from lamella.client import changes, wish
from lamella.model import memory_range
from lamella.model.errors import Invalid
from lamella.model.instance import Priority

GIB = 1 << 30


def parse(words: list[str]):
    parser = Parser(words[0], SUMMARIES[words[0]])
    load(words[0])[0](parser)
    return parser.read(words[1:])


@given(st.none() | st.integers(0, 1 << 20), st.none() | st.integers(0, 1 << 20))
def test_what_is_written_is_what_is_read(floor: int | None, ceiling: int | None) -> None:
    said = {"memory_guarantee": floor, "memory": ceiling}
    wanted = {name: size for name, size in said.items() if size is not None}
    text = "..".join("" if size is None else format(size) for size in (floor, ceiling))
    if not wanted or (floor is not None and ceiling is not None and floor > ceiling):
        with pytest.raises(Invalid):
            memory_range.parse(text)
    else:
        assert memory_range.parse(text) == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("4GiB", {"memory": 4 * GIB}),
        ("..4GiB", {"memory": 4 * GIB}),
        ("1GiB..", {"memory_guarantee": GIB}),
        ("none", {"memory": None}),
        ("none..4GiB", {"memory_guarantee": None, "memory": 4 * GIB}),
    ],
)
def test_either_end_may_be_left_out(text: str, said) -> None:
    assert memory_range.parse(text) == said


@pytest.mark.parametrize("text", ["", "..", "4GiB..1GiB", "1GiB..much", "1..2..3"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="memory") as refused:
        memory_range.parse(text)
    assert refused.value.hint


def test_the_command_and_the_library_ask_for_the_same() -> None:
    words = ["--cpu", "2", "--cpu-guarantee", "1", "--cpu-pin", "--memory", "1GiB..4GiB", "--priority", "high"]
    typed = asked(parse(["run", *words, "debian:12"]))
    made = wish.instance(
        "debian:12", {"cpu": 2, "cpu_guarantee": 1, "cpu_pin": True, "memory": "1GiB..4GiB", "priority": "high"}
    )
    spec = made.spec
    fields = ("cpu", "cpu_guarantee", "cpu_pin", "memory", "memory_guarantee", "priority")
    assert [typed[field] for field in fields] == [getattr(spec, field) for field in fields]
    assert [typed[field] for field in fields] == [2000, 1000, True, 4 * GIB, GIB, Priority.HIGH]


def test_set_changes_what_is_said_and_leaves_the_rest() -> None:
    typed = patch(parse(["set", "web", "--cpu", "4", "--memory", "..8GiB", "--cpu-guarantee", "none", "--no-cpu-pin"]))
    assert typed["spec"] == {"cpu": 4000, "memory": 8 * GIB, "cpu_guarantee": None, "cpu_pin": False}
    body = changes.patch({"cpu": 4, "memory": "..8GiB", "cpu_guarantee": None, "cpu_pin": False})
    assert body.spec == typed["spec"]
    with pytest.raises(Invalid, match="contradict"):
        patch(parse(["set", "web", "--cpu-pin", "--no-cpu-pin"]))
