"""Settings of the host's memory management, and what each was before the layer changed it: saved first, put back when asked.

What was saved is in a file, so that a daemon that is killed leaves it to the next. It is of one boot: the kernel forgets its settings
with the next one, and then there is nothing to put back.
"""

import os
from contextlib import suppress
from pathlib import Path

import msgspec

MM = Path("/sys/kernel/mm")


class _Saved(msgspec.Struct):
    boot: str
    values: dict[str, str] = {}


class Settings:
    """Files below *place* by their relative names (``ksm/run``). *record* is where what was before is kept, *boot* the kernel's id of this
    boot. All methods block."""

    def __init__(self, record: Path, boot: str, place: Path = MM) -> None:
        self._record = record
        self._boot = boot
        self._place = place

    def read(self, name: str) -> str | None:
        """What it is now; ``None`` when the kernel has no such setting."""
        try:
            return (self._place / name).read_text().strip()
        except OSError:
            return None

    def names(self, name: str) -> list[str]:
        """What there is in the directory *name*."""
        with suppress(OSError):
            return sorted(path.name for path in (self._place / name).iterdir())
        return []

    def write(self, name: str, value: str) -> None:
        """Set it, when it is not so already; what it was at first is saved before.

        :raise OSError: when it cannot be saved or set.
        """
        now = self.read(name)
        if now == value:
            return
        saved = self._load()
        if now is not None and name not in saved.values:
            saved.values[name] = now
            self._store(saved)
        (self._place / name).write_text(value)

    def saved(self, beginning: str = "") -> list[str]:
        """Names of what was changed below *beginning*."""
        return [name for name in self._load().values if name.startswith(beginning)]

    def restore(self, beginning: str = "") -> list[str]:
        """Put back everything that was changed below *beginning*. Returns sentences on what could not be; that stays saved."""
        saved = self._load()
        failed: list[str] = []
        # What was changed first is put back last: what makes the kernel begin (``ksm/run``) was changed last.
        for name in reversed([name for name in saved.values if name.startswith(beginning)]):
            try:
                (self._place / name).write_text(saved.values[name])
            except OSError as error:
                failed.append(f"{self._place / name} cannot be set back to {saved.values[name]}: {error.strerror}")
            else:
                del saved.values[name]
                self._store(saved)
        return failed

    def _load(self) -> _Saved:
        with suppress(OSError, msgspec.DecodeError, msgspec.ValidationError):
            saved = msgspec.json.decode(self._record.read_bytes(), type=_Saved)
            if saved.boot == self._boot:
                return saved
        return _Saved(boot=self._boot)

    def _store(self, saved: _Saved) -> None:
        if not saved.values:
            self._record.unlink(missing_ok=True)
            return
        draft = self._record.with_suffix(".new")
        with draft.open("wb") as file:
            file.write(msgspec.json.encode(saved))
            file.flush()
            os.fsync(file.fileno())
        draft.rename(self._record)
