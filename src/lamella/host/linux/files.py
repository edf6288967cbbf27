"""Whole writes to a descriptor."""

import os


def write_all(descriptor: int, content: bytes) -> None:
    """All of *content*: write(2) takes less than it is given when the disk fills up meanwhile.

    :raise OSError: when the rest cannot be written.
    """
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
