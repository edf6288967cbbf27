"""What there is at a path inside an instance."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

InstancePath = Annotated[str, Meta(min_length=1, max_length=4095, pattern=r"^/[^\x00]*$")]


class FileType(StrEnum):
    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"


class FileInfo(msgspec.Struct, kw_only=True):
    """``size`` is bytes, ``mode`` the permission bits; ``target`` is set for a symlink."""

    path: str
    type: FileType
    size: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    modified_at: datetime
    target: str = ""
