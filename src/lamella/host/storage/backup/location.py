"""Where a repository is: from the address that a person gives to the engine's words.

``/mnt/usb`` and ``file:///mnt/usb`` are a directory of the host; ``s3://host[:port]/bucket[/path]`` is S3 over TLS,
``s3+http://…`` without; ``sftp://user@host[:port]/path`` is a server's directory, absolute.
"""

import re
from pathlib import PurePosixPath
from urllib.parse import SplitResult, urlsplit

import msgspec

from lamella.model.errors import Invalid

_HINT = "give /DIRECTORY, s3://HOST/BUCKET/PATH or sftp://USER@HOST/PATH"
# What begins with a dash would be an option of ssh.
_WORD = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*|\[[0-9a-fA-F:.]+\]")


class Location(msgspec.Struct, kw_only=True, frozen=True):
    """``engine`` is restic's way to write it. ``directory`` is set for a directory; ``user``, ``host`` and ``port`` for SFTP."""

    engine: str
    directory: str = ""
    user: str = ""
    host: str = ""
    port: int = 0

    @property
    def sftp(self) -> bool:
        return self.engine.startswith("sftp:")

    @property
    def s3(self) -> bool:
        return self.engine.startswith("s3:")


def locate(url: str) -> Location:
    """:raise Invalid: when *url* is none of those, or has a password in it."""
    if url.startswith("/"):
        return _directory(url)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Invalid(f"{url} is no address of a repository: {error}", hint=_HINT, field="spec.url") from None
    if parts.password is not None or parts.query or parts.fragment:
        raise Invalid(
            "a repository's address has no password and no query",
            hint="give credentials in the environment or as files",
            field="spec.url",
        )
    if parts.scheme == "file" and not parts.netloc:
        return _directory(parts.path)
    if parts.scheme in ("s3", "s3+http"):
        return _s3(parts)
    if parts.scheme == "sftp":
        return _sftp(parts, port)
    raise Invalid(f"{url} is no address of a repository", hint=_HINT, field="spec.url")


def _directory(path: str) -> Location:
    if not path.startswith("/") or ".." in PurePosixPath(path).parts or len(PurePosixPath(path).parts) < 2:
        raise Invalid(f"{path!r} is no directory for a repository", hint="name it from the root", field="spec.url")
    plain = str(PurePosixPath(path))
    return Location(engine=plain, directory=plain)


def _s3(parts: SplitResult) -> Location:
    path = [part for part in parts.path.split("/") if part]
    if parts.username or not _WORD.fullmatch(_host(parts)) or not path:
        raise Invalid("an S3 repository needs a host and a bucket", hint="s3://HOST/BUCKET/PATH", field="spec.url")
    scheme = "http" if parts.scheme == "s3+http" else "https"
    return Location(engine=f"s3:{scheme}://{parts.netloc}/{'/'.join(path)}")


def _sftp(parts: SplitResult, port: int | None) -> Location:
    host, user = _host(parts), parts.username or "root"
    if not _WORD.fullmatch(host) or not _WORD.fullmatch(user) or not parts.path.strip("/"):
        raise Invalid("an SFTP repository needs a host and a path", hint="sftp://USER@HOST:PORT/PATH", field="spec.url")
    return Location(engine=f"sftp:{user}@{host}:{parts.path}", user=user, host=host, port=port or 22)


def _host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    return f"[{host}]" if ":" in host else host
