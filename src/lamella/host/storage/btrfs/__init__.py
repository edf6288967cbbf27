"""The pool on a btrfs: :class:`BtrfsDriver`."""

from lamella.host.storage.btrfs.driver import BtrfsDriver

__all__ = ["BtrfsDriver"]
