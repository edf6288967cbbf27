"""The pool that is a directory: :class:`DirectoryDriver`."""

from lamella.host.storage.directory.driver import DirectoryDriver
from lamella.host.storage.directory.record import DEFAULT_BLOCK_SIZE, record_for

__all__ = ["DEFAULT_BLOCK_SIZE", "DirectoryDriver", "record_for"]
