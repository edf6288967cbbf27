"""``cp``: files and directories between here and an instance.

What an instance says of its files may be a lie: a name that climbs out, a link where a directory was. So everything is
written through descriptors of directories that we hold, and never through a link.
"""

import os
import stat
import sys
from contextlib import suppress

from lamella.cli.document import Document
from lamella.cli.output import clean
from lamella.cli.progress import Progress
from lamella.cli.session import Session
from lamella.client import routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from lamella.cli.parser import Command, Options, Parser
    from lamella.model.errors import LamellaError

_PIECE = 256 << 10
_DEEPEST = 256
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def _options(parser: "Parser") -> None:
    parser.positional("source", help="PATH, or NAME:PATH in an instance; - is standard input")
    parser.positional("target", help="PATH, or NAME:PATH in an instance; - is standard output")
    parser.option("-q", "--quiet", action="store_true", help="no progress")


def place(text: str) -> tuple[str, str]:
    """Instance and path of *text*; an empty instance for a path of this machine (``./a:b`` is one, as docker has it)."""
    name, colon, path = text.partition(":")
    if not colon or "/" in name or not name or name == ".":
        return "", text
    return name, path if path.startswith("/") else f"/{path}"


def _refuse(message: str, hint: str = "") -> "LamellaError":
    from lamella.model.errors import Invalid

    return Invalid(message, hint=hint)


def _copy(options: "Options") -> int:
    (source_name, source), (target_name, target) = place(options.source), place(options.target)
    if bool(source_name) == bool(target_name):
        raise _refuse(
            "one side of cp is in an instance, and one is here", "lamella cp FILE NAME:/PATH, or NAME:/PATH FILE"
        )
    session = Session(options)
    with Progress(f"copying {clean(options.source)}", quiet=options.quiet) as progress:
        if target_name:
            Upload(session, target_name, progress).copy(source, target)
        else:
            Download(session, source_name, progress).copy(source, target)
    return 0


class Upload:
    """From here into the instance *name*."""

    def __init__(self, session: Session, name: str, progress: Progress) -> None:
        self._session = session
        self._name = name
        self._progress = progress
        self._done = 0

    def copy(self, source: str, target: str) -> None:
        """:raise LamellaError: what the daemon refuses. :raise OSError: what cannot be read here."""
        if source == "-":
            if self._is_folder(target):
                raise _refuse(
                    f"{target} is a directory, and - is one file",
                    f"name the file; a tar goes in by: lamella exec -i {self._name} -- tar x -C {target}",
                )
            self._send(0, target, 0o644)
            return
        folder = self._is_folder(target)
        if os.path.isdir(source):  # noqa: PTH112
            base = os.path.basename(os.path.abspath(source))  # noqa: PTH100, PTH119
            # SOURCE/. is what is in it, as docker and cp have it.
            into = f"{target.rstrip('/')}/{base}" if folder and not source.endswith("/.") else target
            self._tree(source, into, 0)
            return
        if target.endswith("/") and not folder:
            raise _refuse(f"there is no directory {target} in {self._name}", "make it first, or leave out the last /")
        into = f"{target.rstrip('/')}/{os.path.basename(source)}" if folder else target  # noqa: PTH119
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._send(descriptor, into, stat.S_IMODE(os.fstat(descriptor).st_mode))
        finally:
            os.close(descriptor)

    def _is_folder(self, path: str) -> bool:
        from lamella.model.errors import NotFound

        try:
            found = self._session.ask(routes.file_info(self._session.project, self._name, path))
            if found.text("type") == "symlink":
                found = self._session.ask(routes.file_info(self._session.project, self._name, f"{path.rstrip('/')}/."))
        except NotFound:
            return False
        return found.text("type") == "directory"

    def _tree(self, source: str, target: str, depth: int) -> None:
        if depth > _DEEPEST:
            raise _refuse(f"{source} is nested too deeply")
        mode = stat.S_IMODE(os.stat(source).st_mode)  # noqa: PTH116
        self._session.ask(routes.make_directory(self._session.project, self._name, target, mode=mode))
        with os.scandir(source) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                into = f"{target.rstrip('/')}/{entry.name}"
                if entry.is_symlink():
                    sys.stderr.write(f"lamella: {clean(entry.path)} is a link and is left out\n")
                elif entry.is_dir(follow_symlinks=False):
                    self._tree(entry.path, into, depth + 1)
                elif entry.is_file(follow_symlinks=False):
                    descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                    try:
                        self._send(descriptor, into, stat.S_IMODE(os.fstat(descriptor).st_mode))
                    finally:
                        os.close(descriptor)
                else:
                    sys.stderr.write(f"lamella: {clean(entry.path)} is neither file nor directory and is left out\n")

    def _send(self, descriptor: int, target: str, mode: int) -> None:
        request = routes.write_file(
            self._session.project, self._name, target, self._pieces(descriptor, target), mode=mode
        )
        self._session.ask(request)

    def _pieces(self, descriptor: int, target: str) -> "Iterator[bytes]":
        while data := os.read(descriptor, _PIECE):
            self._done += len(data)
            self._progress.update(clean(target), self._done, unit="bytes")
            yield data


class Download:
    """From the instance *name* to here."""

    def __init__(self, session: Session, name: str, progress: Progress) -> None:
        self._session = session
        self._name = name
        self._progress = progress
        self._done = 0

    def copy(self, source: str, target: str) -> None:
        """:raise LamellaError: what the daemon refuses, and names that would climb out. :raise OSError: what cannot be written."""
        if target == "-":
            if self._info(source).text("type") == "directory":
                raise _refuse(
                    f"{source} is a directory, and - is one file",
                    f"name a folder; a tar comes out by: lamella exec {self._name} -- tar c -C {source} .",
                )
            sys.stdout.flush()
            self._receive(source, 1)
            return
        found = self._info(source)
        inside = target.endswith("/") or os.path.isdir(target)  # noqa: PTH112
        contents = source.endswith("/.")
        name = os.path.basename(source.rstrip("/").removesuffix("/.").rstrip("/"))  # noqa: PTH119
        if inside and name and not contents:
            folder, base = target, _component(name)
        else:
            folder, base = os.path.split(target.rstrip("/") or "/")
        if not base or base in (".", ".."):
            folder, base = target, "."
        descriptor = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._entry(descriptor, base, source.rstrip("/") or "/", found, 0)
        finally:
            os.close(descriptor)

    def _info(self, path: str) -> Document:
        found = self._session.ask(routes.file_info(self._session.project, self._name, path))
        if found.text("type") == "symlink":
            # The link that was named is followed, as cp does; those below it are kept.
            found = Document({"type": "file"})
            from lamella.model.errors import LamellaError

            try:
                if (
                    self._session.ask(routes.file_info(self._session.project, self._name, f"{path}/.")).text("type")
                    == "directory"
                ):
                    found = Document({"type": "directory"})
            except LamellaError:
                pass
        return found

    def _entry(self, folder: int, base: str, source: str, found: Document, depth: int) -> None:
        kind = found.text("type")
        mode = (found.integer("mode") or (0o755 if kind == "directory" else 0o644)) & 0o777
        if kind == "directory":
            self._tree(folder, base, source, mode, depth)
        elif kind == "file":
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(base, flags, mode, dir_fd=folder)
            try:
                self._receive(source, descriptor)
                os.fchmod(descriptor, mode)
            finally:
                os.close(descriptor)
        elif kind == "symlink":
            if _linked(folder, base):
                os.unlink(base, dir_fd=folder)
            os.symlink(found.text("target"), base, dir_fd=folder)
        else:
            sys.stderr.write(f"lamella: {clean(source)} is neither file, directory nor link and is left out\n")

    def _tree(self, folder: int, base: str, source: str, mode: int, depth: int) -> None:
        if depth > _DEEPEST:
            raise _refuse(f"{clean(source)} is nested too deeply")
        with suppress(FileExistsError):
            os.mkdir(base, mode | 0o700, dir_fd=folder)
        descriptor = os.open(base, _FOLDER, dir_fd=folder)
        try:
            listed = self._session.ask(routes.list_directory(self._session.project, self._name, source))
            for entry in listed.each():
                name = _component(entry.text("path").rpartition("/")[2])
                self._entry(descriptor, name, f"{source.rstrip('/')}/{name}", entry, depth + 1)
            if base != ".":
                os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)

    def _receive(self, source: str, descriptor: int) -> None:
        with self._session.wire.stream(routes.read_file(self._session.project, self._name, source)) as stream:
            for data in stream:
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
                self._done += len(data)
                self._progress.update(clean(source), self._done, unit="bytes")


def _linked(folder: int, base: str) -> bool:
    try:
        return stat.S_ISLNK(os.stat(base, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _component(name: str) -> str:
    """*name*, when it is one step down.

    :raise Corrupt: when it would lead elsewhere.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        from lamella.model.errors import Corrupt

        raise Corrupt(
            f"the instance calls a file {name!r}", hint="a name like that leads elsewhere; nothing more was copied"
        )
    return name


COMMANDS: "dict[str, Command]" = {"cp": (_options, _copy)}
