"""Bodies of requests about routers and floating addresses."""

from typing import Annotated

import msgspec
from msgspec import Meta

from lamella.model.requests import Labels
from lamella.model.router import Routes

_Name = Annotated[str, Meta(max_length=63)]


class RouterCreate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``networks`` are names or ids."""

    name: Annotated[str, Meta(min_length=1, max_length=63)]
    labels: Labels = {}
    networks: Annotated[list[_Name], Meta(max_length=64)] = []
    uplink: bool = False
    routes: Routes = []


class AddressCreate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``network`` is an external one (default: the only one there is), ``address`` one of its (default: a free one), ``instance`` whom it
    leads to at once. Without a ``name`` it is called by itself."""

    name: _Name = ""
    labels: Labels = {}
    network: _Name = ""
    address: Annotated[str, Meta(max_length=15)] = ""
    instance: _Name = ""


class AddressAttach(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Whom it leads to: the first port of that instance whose network has a router with an uplink."""

    instance: Annotated[str, Meta(min_length=1, max_length=63)]
