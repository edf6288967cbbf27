"""Pools of an iSCSI target that others manage: each volume is a LUN that was there."""

from lamella.host.storage.iscsi.driver import IscsiDriver

__all__ = ["IscsiDriver"]
