"""A few pieces or files of every backup are known by their digest, from when it was made: what comes back is compared with that."""

import os
import random
from hashlib import sha256
from pathlib import Path

from lamella.host.storage.backup.table import Table, path_of
from lamella.model.backup import BackupNote

# How many of each backup, and how large a file may be.
SAMPLES = 4
LARGEST_SAMPLE = 16 << 20


def of_pieces(file: Path, table: Table, changed: list[int]) -> dict[str, str]:
    """Digests of a few pieces, half of them of those that changed."""
    held = [index for index, stamp in enumerate(table.stamps) if stamp]
    chosen = set(random.sample(changed, min(SAMPLES // 2, len(changed))))
    chosen |= set(random.sample(held, min(SAMPLES - len(chosen), len(held))))
    found: dict[str, str] = {}
    with file.open("rb") as source:
        for index in sorted(chosen):
            source.seek(index * table.piece)
            found[path_of(index)] = sha256(source.read(table.length(index))).hexdigest()
    return found


def of_files(directory: Path) -> dict[str, str]:
    """Digests of a few files, each as likely as another (Vitter's algorithm R)."""
    chosen: list[Path] = []
    seen = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            path = Path(parent) / name
            if (
                not str(path).isprintable()
                or path.is_symlink()
                or not path.is_file()
                or path.stat().st_size > LARGEST_SAMPLE
            ):
                continue
            seen += 1
            if len(chosen) < SAMPLES:
                chosen.append(path)
            elif (place := random.randrange(seen)) < SAMPLES:
                chosen[place] = path
    return {str(path.relative_to(directory)): sha256(path.read_bytes()).hexdigest() for path in chosen}


def piece_digest(file: Path, note: BackupNote, name: str) -> str:
    """Of the piece *name* in its place in *file*."""
    directory, _, within = name.partition("/")
    start = (int(directory, 16) << 8 | int(within, 16)) * note.piece
    with file.open("rb") as source:
        source.seek(start)
        return sha256(source.read(min(note.piece, note.size - start))).hexdigest()
