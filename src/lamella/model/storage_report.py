"""What a check of storage found."""

import msgspec


class StorageFinding(msgspec.Struct, kw_only=True):
    """One thing that a check found. ``mended`` says that it is well again."""

    subject: str
    problem: str
    mended: bool = False
    hint: str = ""


class Report(msgspec.Struct, kw_only=True):
    """``checked`` counts volumes, ``bytes`` what was read."""

    checked: int = 0
    bytes: int = 0
    findings: list[StorageFinding] = []
