"""What does not fit is said as a sentence that names the field."""

from enum import StrEnum
from typing import Annotated

import msgspec
import pytest
from msgspec import Meta

from lamella.model.validation import invalid


class Level(StrEnum):
    LOW = "low"


class Asked(msgspec.Struct):
    memory: Annotated[int, Meta(ge=4 << 20)] = 4 << 20
    pids: Annotated[int, Meta(le=10)] = 1
    level: Level = Level.LOW
    hostname: Annotated[str, Meta(pattern="^[a-z]+$")] = "web"


@pytest.mark.parametrize(
    ("asked", "field", "sentence"),
    [
        ({"memory": 1}, "spec.memory", "spec.memory has to be at least 4194304 (4MiB)"),
        ({"pids": 11}, "spec.pids", "spec.pids has to be at most 10"),
        ({"level": "high"}, "spec.level", "spec.level cannot be 'high'"),
        ({"hostname": "a b"}, "spec.hostname", "spec.hostname is not written as it has to be"),
        ({"pids": "x"}, "spec.pids", "the change is not valid: Expected `int`, got `str`, in spec.pids"),
    ],
)
def test_the_sentence(asked: dict[str, object], field: str, sentence: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(asked, Asked)
    error = invalid(str(caught.value), "the change", "spec")
    assert (error.field, error.message) == (field, sentence)
