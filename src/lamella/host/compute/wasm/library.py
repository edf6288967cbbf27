"""The wasmtime library that the wheel brings, found without loading it: the daemon never has it in its own memory."""

import importlib.metadata
import importlib.util
import platform
from pathlib import Path

import msgspec

from lamella.model.errors import Unavailable


class Library(msgspec.Struct, frozen=True, kw_only=True):
    """The shared library and the release that it is of."""

    path: Path
    version: str


def find() -> Library:
    """:raise Unavailable: when the package is not installed, or has no library for this machine."""
    found = importlib.util.find_spec("wasmtime")
    places = list(found.submodule_search_locations or []) if found else []
    if not places:
        raise Unavailable("the Python package wasmtime is not installed", hint="pip install lamella brings it")
    path = Path(places[0]) / f"linux-{platform.machine()}" / "_libwasmtime.so"
    if not path.is_file():
        raise Unavailable(f"the package wasmtime has no library for {platform.machine()}", hint=f"{path} is missing")
    return Library(path=path, version=importlib.metadata.version("wasmtime"))
