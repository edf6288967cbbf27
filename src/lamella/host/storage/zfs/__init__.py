"""Pools of ZFS: block volumes are zvols, filesystem volumes are datasets."""

from lamella.host.storage.zfs.driver import ZfsDriver

__all__ = ["ZfsDriver"]
