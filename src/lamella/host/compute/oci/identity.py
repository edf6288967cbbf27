"""Who a process in the container is: ``name|uid[:group|gid]`` looked up in the container's own /etc/passwd and /etc/group.

Both files belong to the guest: they are opened inside its root only, read up to a bound, and a broken line is skipped.
"""

import os

import msgspec

from lamella.host.linux import syscalls
from lamella.model.errors import Invalid

LARGEST_TABLE = 4 << 20
LARGEST_ID = 65535
MOST_GROUPS = 1024


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers as the container counts, and where its home is."""

    uid: int
    gid: int
    groups: list[int] = []
    home: str = "/"


def read_table(root_fd: int, path: str) -> str:
    """The text of a file inside the root; nothing when it is absent, no plain file, or unreadable."""
    try:
        fd = syscalls.open_in_root(root_fd, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return ""
    with os.fdopen(fd, "rb") as file:
        try:
            return file.read(LARGEST_TABLE).decode(errors="replace")
        except OSError:
            return ""


def resolve(user: str, passwd: str, group: str) -> Identity:
    """*user* by the tables; empty is root. A number needs no line in them.

    :raise Invalid: when a name is in no table, or a number is outside of what the container has.
    """
    who, _, which = user.partition(":")
    who = who or "0"
    rows = [row for row in (line.split(":") for line in passwd.splitlines()) if len(row) >= 6]
    by_name = next((row for row in rows if row[0] == who and row[2].isdecimal() and row[3].isdecimal()), None)
    by_number = next((row for row in rows if who.isdecimal() and row[2] == who and row[3].isdecimal()), None)
    row = by_name or by_number
    if row is None and not who.isdecimal():
        raise Invalid(
            f"there is no user {who!r} in the instance", hint="use a name of its /etc/passwd, or a number", field="user"
        )
    uid = int(row[2]) if row else int(who)
    gid = int(row[3]) if row else 0
    groups: list[int] = []
    if which:
        gid = _group(which, group)
    elif row:
        groups = [gid, *_memberships(row[0], group)]
    for number in (uid, gid):
        if not 0 <= number <= LARGEST_ID:
            raise Invalid(
                f"the id {number} of user {user!r} is outside of 0 to {LARGEST_ID}",
                hint="use a smaller one",
                field="user",
            )
    groups = [number for number in dict.fromkeys(groups) if 0 <= number <= LARGEST_ID][:MOST_GROUPS]
    return Identity(uid=uid, gid=gid, groups=groups, home=(row[5] if row and row[5].startswith("/") else "/"))


def _group_rows(group: str) -> list[list[str]]:
    return [row for row in (line.split(":") for line in group.splitlines()) if len(row) >= 3 and row[2].isdecimal()]


def _group(which: str, group: str) -> int:
    row = next((row for row in _group_rows(group) if row[0] == which), None)
    if row is not None:
        return int(row[2])
    if which.isdecimal():
        return int(which)
    raise Invalid(
        f"there is no group {which!r} in the instance", hint="use a name of its /etc/group, or a number", field="user"
    )


def _memberships(name: str, group: str) -> list[int]:
    return [int(row[2]) for row in _group_rows(group) if len(row) >= 4 and name in row[3].split(",")]


def look_up(root_fd: int, user: str) -> Identity:
    """*user* by the tables inside the root. Blocks for the two reads. :raise Invalid: as :func:`resolve`."""
    return resolve(user, read_table(root_fd, "/etc/passwd"), read_table(root_fd, "/etc/group"))
