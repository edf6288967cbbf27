"""Pools of a thin pool of LVM: each block volume is a thin logical volume."""

from lamella.host.storage.lvm.driver import LvmDriver

__all__ = ["LvmDriver"]
