"""Reading and writing the one-line files of the cgroup filesystems."""

from pathlib import Path


def read_text(path: Path) -> str:
    """The content, or nothing when the group is gone (ENOENT before the open, ENODEV after it)."""
    try:
        return path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        if error.errno == 19:
            return ""
        raise


def read_number(path: Path) -> int | None:
    """A number, or ``None`` for ``max``, for an absent file and for what is no number."""
    text = read_text(path).strip()
    return int(text) if text.lstrip("-").isdecimal() else None


def read_table(path: Path) -> dict[str, int]:
    """``key value`` lines, as of ``memory.stat``."""
    rows = (line.split() for line in read_text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdecimal()}


def write(path: Path, value: int | str) -> None:
    """Write *value* in one go, which is how the kernel wants it; nothing is a line end, since no byte would be no word at all."""
    with path.open("w") as file:
        file.write(str(value) or "\n")
