"""Which run of each instance was launched: known on the host before the command runs, so that a crash never runs it twice."""

from contextlib import suppress
from pathlib import Path


class Journal:
    """One tiny file an instance, written by rename. It need not outlive a reboot: no run does."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.mkdir(parents=True, exist_ok=True, mode=0o700)

    def epoch(self, id: str) -> int:
        """The number of the run that was launched last; 0 when none was."""
        try:
            return int((self._path / id).read_text())
        except (OSError, ValueError):
            return 0

    def write(self, id: str, epoch: int) -> None:
        """Note that run *epoch* is about to begin."""
        draft = self._path / f".{id}"
        draft.write_text(str(epoch))
        draft.rename(self._path / id)

    def forget(self, id: str) -> None:
        with suppress(FileNotFoundError):
            (self._path / id).unlink()
