"""What a check of storage found."""

import msgspec


class Orphan(msgspec.Struct, kw_only=True, frozen=True):
    """What lies in ``pool`` and no row names: the volume with the id ``volume``, or only its ``snapshot``."""

    pool: str
    volume: str
    snapshot: str = ""


class StorageFinding(msgspec.Struct, kw_only=True):
    """One thing that a check found. ``mended`` says that it is well again. ``orphan`` is set when it is about one."""

    subject: str
    problem: str
    mended: bool = False
    hint: str = ""
    orphan: Orphan | None = None


class Report(msgspec.Struct, kw_only=True):
    """``checked`` counts volumes, ``bytes`` what was read."""

    checked: int = 0
    bytes: int = 0
    findings: list[StorageFinding] = []
