"""What was measured, second by second and minute by minute, in bounded space: 201 KiB an instance.

A slot holds what happened in it. One in which nobody looked holds nothing: a gap is a gap.
"""

from array import array
from collections.abc import Iterator

import msgspec

SECONDS = 900
MINUTES = 1440


class Slot(msgspec.Struct, kw_only=True):
    """What befell one instance in *seconds* of measuring; every field is a sum but for ``memory``, the most bytes at one time.

    Seconds of processor: *cpu* used, *throttled* by its own ceiling, *waited* for others; of its guarantee *owed* is what it wanted of
    what is *promised*, *short* what it did not get of that; *capped* is used under a ceiling and *allowed* what that allows.
    ``memory_capped`` are seconds under a ceiling of memory, *over* those above it; ``floored`` seconds with a floor, ``below`` those in
    which that was not there. ``kills`` were made by the kernel when memory ran out, ``outside`` those at a time when the instance had
    not reached its own limit. Bytes of the first NIC: ``received`` and ``received_allowed``, ``sent`` and ``sent_allowed``."""

    seconds: float = 0.0
    cpu: float = 0.0
    throttled: float = 0.0
    waited: float = 0.0
    promised: float = 0.0
    owed: float = 0.0
    short: float = 0.0
    capped: float = 0.0
    allowed: float = 0.0
    memory: float = 0.0
    memory_waited: float = 0.0
    memory_capped: float = 0.0
    over: float = 0.0
    floored: float = 0.0
    below: float = 0.0
    kills: float = 0.0
    outside: float = 0.0
    io_waited: float = 0.0
    received: float = 0.0
    received_allowed: float = 0.0
    sent: float = 0.0
    sent_allowed: float = 0.0


FIELDS = Slot.__struct_fields__
_PEAK = FIELDS.index("memory")


class Ring:
    """The newest *size* slots, by their number: a column of 32 bit floats a field."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._last = -1
        self._columns = [array("f", bytes(4 * size)) for _ in FIELDS]

    def add(self, number: int, slot: Slot) -> None:
        """Add *slot* to what slot *number* holds. One that is older than the newest is too late, and left out."""
        if number < self._last:
            return
        if number > self._last:
            for gone in range(max(self._last + 1, number - self.size + 1), number + 1):
                for column in self._columns:
                    column[gone % self.size] = 0.0
            self._last = number
        place = number % self.size
        for index, value in enumerate(msgspec.structs.astuple(slot)):
            column = self._columns[index]
            column[place] = max(column[place], value) if index == _PEAK else column[place] + value

    def over(self, first: int, last: int) -> Slot:
        """All of the slots *first* to *last* together."""
        first, last = max(first, self._last - self.size + 1, 0), min(last, self._last)
        if first > last:
            return Slot()
        start, end = first % self.size, last % self.size + 1
        made: list[float] = []
        for index, column in enumerate(self._columns):
            parts = [column[start:end]] if start < end else [column[start:], column[:end]]
            made.append(max(map(max, parts)) if index == _PEAK else float(sum(map(sum, parts))))
        return Slot(**dict(zip(FIELDS, made, strict=True)))

    def each(self, first: int, last: int) -> Iterator[tuple[int, Slot]]:
        """The slots *first* to *last* that hold something, with their numbers."""
        for number in range(max(first, self._last - self.size + 1, 0), min(last, self._last) + 1):
            slot = self.over(number, number)
            if slot.seconds:
                yield number, slot


class History:
    """One instance's seconds of the last quarter of an hour and minutes of the last day."""

    def __init__(self) -> None:
        self.seconds = Ring(SECONDS)
        self.minutes = Ring(MINUTES)

    def add(self, at: float, slot: Slot) -> None:
        self.seconds.add(int(at), slot)
        self.minutes.add(int(at) // 60, slot)

    def window(self, length: int, at: float) -> Slot:
        """The last *length* seconds before *at*: by the second up to a quarter of an hour, else by the minute."""
        if length <= SECONDS:
            return self.seconds.over(int(at) - length + 1, int(at))
        return self.minutes.over(int(at) // 60 - length // 60 + 1, int(at) // 60)
