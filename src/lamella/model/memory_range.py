"""Floor and ceiling of an instance's memory as people write them: ``1GiB..4GiB``."""

from lamella.model.errors import Invalid
from lamella.model.quantity import parse_size

BETWEEN = ".."


def parse(text: str, *, field: str = "memory") -> dict[str, int | None]:
    """The fields of a spec that *text* says, in bytes: ``4GiB`` and ``..4GiB`` are the ceiling, ``1GiB..`` is the floor, ``1GiB..4GiB``
    both; ``none`` in place of one takes it away.

    :raise Invalid: when one is no size, none is said, or the floor is above the ceiling.
    """
    floor, between, ceiling = text.partition(BETWEEN)
    if not between:
        floor, ceiling = "", text
    if not floor and not ceiling:
        raise Invalid(f"{field} {text!r} says nothing", hint="write it like 4GiB, ..4GiB or 1GiB..4GiB", field=field)
    said = {"memory_guarantee": floor.strip(), "memory": ceiling.strip()}
    made = {name: None if size == "none" else parse_size(size, field=field) for name, size in said.items() if size}
    least, most = made.get("memory_guarantee"), made.get("memory")
    if least is not None and most is not None and least > most:
        raise Invalid(
            f"{field} {text!r} has its floor above its ceiling", hint=f"turn it round: {ceiling}..{floor}", field=field
        )
    return made
