"""Where the layer's own small programs and the tools that it drives are found."""

import os
import shutil
from pathlib import Path

from lamella.model.errors import Unavailable

INSTALLED = Path("/usr/libexec/lamella")


def places() -> list[Path]:
    """Directories that may hold our programs, first match wins: $LAMELLA_LIBEXEC, the checkout's, the system's."""
    chosen = os.environ.get("LAMELLA_LIBEXEC")
    checkout = Path(__file__).resolve().parents[4] / ".lamella" / "libexec"
    return [*([Path(chosen)] if chosen else []), checkout, INSTALLED]


def own(name: str) -> Path:
    """The path of one of our programs, such as ``lamella-pause``.

    :raise Unavailable: when it was not built.
    """
    for place in places():
        if os.access(place / name, os.X_OK):
            return place / name
    raise Unavailable(
        f"{name} is not in {', '.join(str(place) for place in places())}",
        hint="build it with ./dev setup, or point LAMELLA_LIBEXEC at it",
    )


def tool(*names: str) -> Path:
    """The first of *names* that is on the PATH or where distributions put tools for root.

    :raise Unavailable: when none is installed.
    """
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin:/bin"
    for name in names:
        found = shutil.which(name, path=path)
        if found:
            return Path(found)
    raise Unavailable(f"{' or '.join(names)} is not installed", hint=f"apt install {names[0]}")
