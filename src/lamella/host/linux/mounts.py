"""Mounts by system call: reading the table, and the ones that several wings need. They block: call them in a thread."""

import re
from contextlib import suppress
from pathlib import Path

import msgspec

from lamella.host.linux import syscalls

_ESCAPE = re.compile(r"\\([0-7]{3})")


class MountEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of /proc/PID/mountinfo (proc_pid_mountinfo(5)). ``options`` are the mount's, ``super_options`` the filesystem's."""

    id: int
    parent: int
    root: str
    point: str
    options: list[str]
    propagation: list[str]
    kind: str
    source: str
    super_options: list[str]


def parse(text: str) -> list[MountEntry]:
    """The entries of a mountinfo file, in its order."""
    found: list[MountEntry] = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, rest = left.split(" "), right.split(" ")
        found.append(
            MountEntry(
                id=int(fields[0]),
                parent=int(fields[1]),
                root=_plain(fields[3]),
                point=_plain(fields[4]),
                options=fields[5].split(","),
                propagation=fields[6:],
                kind=rest[0],
                source=_plain(rest[1]) if len(rest) > 1 else "",
                super_options=rest[2].split(",") if len(rest) > 2 else [],
            )
        )
    return found


def table(pid: int | str = "self") -> list[MountEntry]:
    """The mounts that *pid* sees; none when it is gone."""
    try:
        return parse(Path(f"/proc/{pid}/mountinfo").read_text(errors="surrogateescape"))
    except (FileNotFoundError, ProcessLookupError, OSError):
        return []


def below(directory: Path) -> list[MountEntry]:
    """Our mounts at or below *directory*, the newest first: the order in which to take them away."""
    prefix = f"{directory}/"
    return [entry for entry in reversed(table()) if entry.point == str(directory) or entry.point.startswith(prefix)]


def release(directory: Path) -> None:
    """Take away every mount at or below *directory*."""
    for entry in below(directory):
        with suppress(OSError):
            syscalls.umount(entry.point)


def _plain(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text) if "\\" in text else text
