"""Pools and the volumes cut from them."""

from enum import StrEnum

import msgspec

from lamella.model.resource import Condition, Resource


class VolumeForm(StrEnum):
    """``filesystem`` is a directory tree (a container's writable layer), ``block`` a disk (a microVM's)."""

    FILESYSTEM = "filesystem"
    BLOCK = "block"


class PoolSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    driver: str = "directory"
    path: str = ""


class PoolStatus(msgspec.Struct, kw_only=True):
    """Bytes, as the filesystem below says."""

    capacity: int = 0
    free: int = 0
    conditions: list[Condition] = []


class VolumeSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``size`` is bytes (0: no bound but the pool's); ``owner`` is the id of the instance that it dies with."""

    pool: str = "default"
    form: VolumeForm
    size: int = 0
    owner: str | None = None


class VolumeStatus(msgspec.Struct, kw_only=True):
    host: str | None = None
    conditions: list[Condition] = []


Pool = Resource[PoolSpec, PoolStatus]
Volume = Resource[VolumeSpec, VolumeStatus]
