"""Bodies of requests about networks."""

from typing import Annotated

import msgspec
from msgspec import Meta

from lamella.model.network import Mtu
from lamella.model.requests import Labels


class NetworkCreate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Without a ``subnet`` a free one is chosen."""

    name: Annotated[str, Meta(min_length=1, max_length=63)]
    labels: Labels = {}
    subnet: Annotated[str, Meta(max_length=43)] = ""
    mtu: Mtu = 1500
    isolated: bool = False
