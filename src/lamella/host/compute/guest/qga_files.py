"""Files and usage of a Unix guest through qemu-guest-agent: small shell programs, and what they print taken apart.

The shell programs run with every POSIX shell and the ``stat`` of coreutils or busybox. File names travel as arguments and come back
ended by NUL, so no name is read as anything else. Sources: qemu-ga-ref; proc(5); getconf(1).
"""

import secrets
import stat
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from lamella.host.compute.guest.qga import LARGEST_OUTPUT, Ended, QgaClient
from lamella.model.errors import Conflict, Corrupt, Forbidden, Internal, Invalid, LamellaError, NoRoom, NotFound
from lamella.model.files import FileInfo, FileType
from lamella.model.resource import now
from lamella.model.usage import Usage

_DESCRIBE = r"""
describe() {
    facts=$(stat -c '%f %s %u %g %Y' -- "$1") || return 1
    printf '%s %s\0' "$facts" "$1"
    [ ! -L "$1" ] || readlink -n -- "$1"
    printf '\0'
}
"""
_STAT = _DESCRIBE + 'describe "$0"'
_LIST = (
    _DESCRIBE
    + r"""
cd -- "$0" || exit 1
for name in * .[!.]* ..?*; do
    [ ! -e "$name" ] && [ ! -L "$name" ] || describe "./$name"
done
exit 0
"""
)
_PLACE = 'chown -- "$2" "$0" && chmod -- "$3" "$0" && { [ ! -d "$1" ] || { echo "$1: Is a directory" >&2; false; }; } && mv -f -- "$0" "$1"'
_REMOVE = 'rm -f -- "$0"'
_MAKE = '[ -d "$0" ] || { mkdir -p -- "$0" && chown -- "$1" "$0" && chmod -- "$2" "$0"; }'
_USAGE = """
head -n 1 /proc/stat
getconf CLK_TCK 2>/dev/null || echo 100
grep -E '^Mem(Total|Available):' /proc/meminfo
df -P -k / | tail -n 1
"""

_REASONS: list[tuple[str, type[LamellaError]]] = [
    ("No such file or directory", NotFound),
    ("Not a directory", NotFound),
    ("can't cd to", NotFound),
    ("Permission denied", Forbidden),
    ("Operation not permitted", Forbidden),
    ("Is a directory", Conflict),
    ("File exists", Conflict),
    ("Read-only file system", Conflict),
    ("No space left on device", NoRoom),
    ("nvalid", Invalid),
]
_HINT = "what answers in it is broken or hostile"


async def stat_path(client: QgaClient, path: str) -> FileInfo:
    """What is at *path*, a link at the end not followed.

    :raise NotFound: when nothing is.
    """
    ended = await _shell(client, _STAT, path)
    found = _entries(ended.out, "")
    if len(found) != 1:
        raise Corrupt(f"the guest described {path} {len(found)} times", hint=_HINT)
    return found[0]


async def list_directory(client: QgaClient, path: str) -> list[FileInfo]:
    """:raise NoRoom: when it holds more than the agent passes on at once."""
    ended = await _shell(client, _LIST, path)
    if ended.truncated:
        raise NoRoom(f"{path} has too many entries to list", hint="list it with a command inside")
    return sorted(_entries(ended.out, path), key=lambda entry: entry.path)


async def write_file(
    client: QgaClient, path: str, data: AsyncIterator[bytes], *, mode: int = 0o644, uid: int = 0, gid: int = 0
) -> None:
    """Write beside *path* and rename over it when all is there; what fails leaves nothing."""
    beside = f"{path}.{secrets.token_hex(6)}.new"
    try:
        await client.write_file(beside, data)
        await _shell(client, _PLACE, beside, path, f"{uid}:{gid}", f"{mode:o}")
    except BaseException:
        if not client.closed.is_set():
            await _shell(client, _REMOVE, beside)
        raise


async def make_directory(client: QgaClient, path: str, *, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None:
    """Make it with its parents; an existing directory is fine."""
    await _shell(client, _MAKE, path, f"{uid}:{gid}", f"{mode:o}")


async def usage(client: QgaClient) -> Usage:
    """What a Linux guest uses: processor time since its boot, memory, the root file system, bytes over all NICs."""
    ended = await _shell(client, _USAGE)
    interfaces = await client.interfaces()
    try:
        processor, ticks, total, available, disk = ended.out.decode().splitlines()
        spent = [int(number) for number in processor.split()[1:8]]
        memory = int(total.split()[1]) << 10
        return Usage(
            at=now(),
            cpu_seconds=(sum(spent) - spent[3] - spent[4]) / int(ticks),
            memory=memory - (int(available.split()[1]) << 10),
            memory_limit=memory,
            disk_used=int(disk.split()[-4]) << 10,
            received=sum(nic.statistics.rx_bytes for nic in interfaces if nic.name != "lo"),
            sent=sum(nic.statistics.tx_bytes for nic in interfaces if nic.name != "lo"),
        )
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise Corrupt("the guest's own figures cannot be read", hint=_HINT) from error


async def _shell(client: QgaClient, script: str, *arguments: str) -> Ended:
    """Run *script* with *arguments* as ``$0``, ``$1``, …

    :raise LamellaError: what its complaint stands for, when it fails.
    """
    ended = await client.run("/bin/sh", ["-c", f"LC_ALL=C; export LC_ALL; {script}", *arguments])
    if ended.code == 0:
        return ended
    said = ended.err.decode(errors="replace").strip()[-500:]
    error = next((error for words, error in _REASONS if words in said), Internal)
    raise error(said or f"a shell in the guest ended with {ended.code}")


def _entries(raw: bytes, directory: str) -> list[FileInfo]:
    """What ``describe`` printed: pairs of facts and name, and the target of a link, each ended by NUL."""
    parts = raw.split(b"\0")[:-1]
    if len(raw) > LARGEST_OUTPUT or len(parts) % 2:
        raise Corrupt("the guest's listing cannot be read", hint=_HINT)
    return [_entry(facts, target, directory) for facts, target in zip(parts[::2], parts[1::2], strict=True)]


def _entry(line: bytes, target: bytes, directory: str) -> FileInfo:
    try:
        raw_mode, size, uid, gid, seconds, name = line.decode(errors="replace").split(" ", 5)
        mode = int(raw_mode, 16)
        if min(int(size), int(uid), int(gid)) < 0:
            raise ValueError(line)
        path = f"{directory.rstrip('/')}/{name.removeprefix('./')}" if directory else name
        return FileInfo(
            path=path,
            type=_TYPES.get(stat.S_IFMT(mode), FileType.OTHER),
            size=int(size),
            mode=stat.S_IMODE(mode),
            uid=int(uid),
            gid=int(gid),
            modified_at=datetime.fromtimestamp(int(seconds), UTC),
            target=target.decode(errors="replace"),
        )
    except (ValueError, OverflowError, OSError) as error:
        raise Corrupt("the guest's description of a file cannot be read", hint=_HINT) from error


_TYPES = {stat.S_IFREG: FileType.FILE, stat.S_IFDIR: FileType.DIRECTORY, stat.S_IFLNK: FileType.SYMLINK}
