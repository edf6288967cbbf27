"""The machine as it was given, kept beside its bundle: what a new daemon needs to know of a container that it did not make."""

import os
from pathlib import Path, PurePath

import msgspec

from lamella.host.compute.driver import Machine


def write(path: Path, machine: Machine) -> None:
    """Write it whole or not at all."""
    write_private(path, msgspec.json.encode(machine, enc_hook=_encode))


def write_private(path: Path, data: bytes) -> None:
    """Whole or not at all, and for us alone: environments hold secrets."""
    new = path.with_suffix(".new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
    new.rename(path)


def read(path: Path) -> Machine | None:
    """The machine; ``None`` when it was never written."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Machine, dec_hook=_decode)
    except (OSError, msgspec.DecodeError):
        return None


def _encode(value: object) -> str:
    if isinstance(value, PurePath):
        return str(value)
    raise NotImplementedError


def _decode(kind: type, value: object) -> object:
    if kind is Path:
        return Path(str(value))
    raise NotImplementedError
