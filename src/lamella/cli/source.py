"""An IMAGE that is a file of this machine: imported under a name from its file's, then used like any other."""

import os

from lamella.cli.document import render
from lamella.cli.output import clean
from lamella.client import routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.session import Session


def name_of(path: str) -> str:
    """The image's name for the file at *path*: what of its file name may be in one (``My App.wasm`` is ``my-app.wasm``)."""
    stem, dot, ending = path.rstrip("/").rpartition("/")[2].lower().rpartition(".")
    parts = [part for part in (_plain(stem), _plain(ending)) if part]
    return (dot if len(parts) == 2 else "").join(parts)[-200:].lstrip("-.") or "file"


def _plain(text: str) -> str:
    letters = "".join(letter if letter.isascii() and letter.isalnum() else " " for letter in text)
    return "-".join(letters.split())


def is_path(word: str) -> bool:
    """Whether *word* can only be a file: no image's name begins so."""
    return word.startswith(("/", "./", "../", "~"))


def image_of(session: "Session", word: str, *, initrd: "str | None" = None, quiet: bool = False) -> str:
    """The name of the image that *word* is: itself, or, when it is a file here and no image of another origin, what that file was
    imported as. The content's digest decides whether anything is new.

    :raise NotFound: when it can only be a file, and there is none.
    :raise Unsupported: when the daemon is on another machine: it reads files of its own.
    """
    from lamella.model.errors import Invalid, NotFound, Unsupported

    if not os.path.isfile(word):  # noqa: PTH113 - pathlib is slow to import
        if is_path(word):
            raise NotFound(f"there is no file {word}", hint="IMAGE is an image's name or a file of this machine")
        if initrd is not None:
            raise Invalid(
                "--initrd goes with a kernel's file, and the image is none",
                hint=f"lamella image import KERNEL --initrd {initrd} --name NAME, then run NAME",
                field="initrd",
            )
        return word
    path = os.path.abspath(word)  # noqa: PTH100
    if not is_path(word) and _of_another_origin(session, word, path):
        return word
    if not session.wire.address.path:
        raise Unsupported(
            f"{word} is a file here, and the daemon is on another machine",
            hint="copy it there, then import it there: lamella image import FILE --name NAME",
        )
    from lamella.cli.image import follow

    asked: dict[str, object] = {"verb": "import", "source": path, "name": name_of(word)}
    if initrd is not None:
        asked["initrd"] = os.path.abspath(initrd)  # noqa: PTH100
    operation = session.ask(routes.bring_image(session.project, render(asked)))
    made = follow(session, operation, f"importing {clean(word)}", quiet=quiet)
    return made.removeprefix("image/")


def _of_another_origin(session: "Session", word: str, path: str) -> bool:
    from lamella.model.errors import Invalid, NotFound

    try:
        found = session.get("image", word)
    except (NotFound, Invalid):
        return False
    return found.text("spec", "source").removeprefix("file:") != path
