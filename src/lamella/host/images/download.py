"""A blob as it arrives: what came is kept in a file and hashed, so that a cut connection costs only what was not yet written."""

import hashlib
from pathlib import Path

from lamella.host.images.manifest import Descriptor
from lamella.model.errors import Corrupt

_PIECE = 1 << 20


class Arriving:
    """The file of a blob under way. Opening it reads what an earlier attempt left; what acts is for a thread.

    ``size`` is what is there. ``arrived`` is the most there ever was: it grows only when an attempt brings the blob further.
    """

    def __init__(self, path: Path, descriptor: Descriptor) -> None:
        self.size = 0
        self.arrived = 0
        self._path = path
        self._descriptor = descriptor
        self._hash = hashlib.sha256()
        self._file = path.open("a+b")
        self._file.seek(0)
        while piece := self._file.read(_PIECE):
            self._hash.update(piece)
            self.size += len(piece)
        if self.size > descriptor.size:
            self.restart()
        self.arrived = self.size

    def restart(self) -> None:
        """Forget what came."""
        self._file.truncate(0)
        self._hash = hashlib.sha256()
        self.size = 0

    def take(self, piece: bytes) -> None:
        """:raise Corrupt: when there is more than the descriptor says."""
        if self.size + len(piece) > self._descriptor.size:
            self._path.unlink(missing_ok=True)
            raise Corrupt(
                f"the blob {self._descriptor.digest} is longer than it says", hint="the registry is damaged or lies"
            )
        self._file.write(piece)
        self._hash.update(piece)
        self.size += len(piece)
        self.arrived = max(self.arrived, self.size)

    def close(self) -> None:
        self._file.close()

    def check(self) -> None:
        """:raise Corrupt: when it is not, to the byte, what the descriptor says; the file is gone then."""
        if self.size != self._descriptor.size:
            self._path.unlink(missing_ok=True)
            raise Corrupt(
                f"the blob {self._descriptor.digest} has {self.size} bytes, not {self._descriptor.size}",
                hint="the registry is damaged or lies",
            )
        if f"sha256:{self._hash.hexdigest()}" != self._descriptor.digest:
            self._path.unlink(missing_ok=True)
            raise Corrupt(
                f"the blob {self._descriptor.digest} is not what its digest names",
                hint="the registry is damaged or lies",
            )
