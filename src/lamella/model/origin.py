"""The machine whose memory a snapshot holds, as it was then: whoever goes on from it must be the same hardware."""

import msgspec

from lamella.model.instance import InstanceSpec


class Origin(msgspec.Struct, kw_only=True):
    """``id`` and ``name`` are the instance's, which may be gone since. ``board`` is the machine type that ran; ``cpu`` (milli-cores) and
    ``memory`` (bytes) are what it was launched with, ``None`` where that was not told."""

    id: str
    name: str
    spec: InstanceSpec
    image_digest: str
    board: str = ""
    cpu: int | None = None
    memory: int | None = None
