"""How an instance has a volume: as its spec names it."""

from typing import Annotated

import msgspec
from msgspec import Meta

VolumePath = Annotated[str, Meta(max_length=4096, pattern=r"^(/[^\x00]*)?$")]


class VolumeMount(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A volume in an instance: mounted at ``target``, or as a bare disk when that is empty. ``volume`` is its name."""

    volume: Annotated[str, Meta(min_length=1, max_length=63)]
    target: VolumePath = ""
    read_only: bool = False
