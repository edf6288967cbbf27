"""Pools of a Ceph cluster: each block volume is an RBD image."""

from lamella.host.storage.rbd.driver import RbdDriver

__all__ = ["RbdDriver"]
