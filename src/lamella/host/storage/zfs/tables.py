"""What ``zfs`` and ``zpool`` say, read into values.

Sources: zfs-list(8) and zfs-get(8), ``-H`` (no header, one tab between columns) and ``-p`` (exact numbers); zpool-status(8).
"""

import re

import msgspec

from lamella.model.errors import Unavailable

COLUMNS = "name,type,used,volsize,refquota,mountpoint,origin,creation"
_REDUNDANT = re.compile(r"^\s+(mirror|raidz[1-3]?|draid[1-3]?[^\s]*)-\d+\s", re.MULTILINE)


class Dataset(msgspec.Struct, kw_only=True, frozen=True):
    """One line of ``zfs list``. ``kind`` is ``filesystem``, ``volume`` or ``snapshot``; sizes are bytes, 0 for what it has not."""

    name: str
    kind: str
    used: int
    size: int
    mountpoint: str
    origin: str


def datasets(text: str) -> list[Dataset]:
    """In the order of *text*: with ``-s createtxg``, of their making.

    :raise Unavailable: when *text* is not what ``zfs list -Hp -o COLUMNS`` says.
    """
    found: list[Dataset] = []
    for line in text.splitlines():
        fields = line.split("\t")
        if len(fields) != len(COLUMNS.split(",")):
            raise Unavailable(f"the answer of zfs list cannot be read: {line[:200]}", hint="OpenZFS 2.1 is known")
        name, kind, used, volume, quota, point, origin, _ = fields
        found.append(
            Dataset(
                name=name,
                kind=kind,
                used=number(used),
                size=number(volume) or number(quota),
                mountpoint="" if point in ("-", "none", "legacy") else point,
                origin="" if origin == "-" else origin,
            )
        )
    return found


def number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def redundant(status: str) -> bool:
    """Whether ``zpool status`` shows a mirror, RAID-Z or dRAID."""
    return _REDUNDANT.search(status) is not None


def permanent_errors(status: str) -> list[str]:
    """What ``zpool status -v`` names below "Permanent errors have been detected": files, ``<dataset>:<object>`` or ``dataset:<0x1>``."""
    _, _, rest = status.partition("Permanent errors have been detected in the following files:")
    found: list[str] = []
    for line in rest.splitlines()[1:]:
        if line.strip():
            if not line.startswith((" ", "\t")):
                break
            found.append(line.strip())
    return found


def repaired(status: str) -> str:
    """What the line ``scan:`` says that the last scrub repaired (``0B``, ``128K``); empty when there was none."""
    found = re.search(r"scan: scrub repaired (\S+) in", status)
    return found[1] if found else ""
