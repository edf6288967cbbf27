"""Routers between networks, and floating addresses: addresses from outside that lead to an instance behind one."""

from typing import Annotated

import msgspec
from msgspec import Meta

from lamella.model.resource import Condition, Resource


class StaticRoute(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """To ``destination``, a prefix, by ``via``, an address on one of the router's networks."""

    destination: Annotated[str, Meta(max_length=43)]
    via: Annotated[str, Meta(max_length=39)]


Routes = Annotated[list[StaticRoute], Meta(max_length=256)]


class RouterSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``networks`` (kept as ids) reach each other by it and, with ``uplink``, what the host reaches, under the host's address."""

    networks: Annotated[list[Annotated[str, Meta(max_length=63)]], Meta(max_length=64)] = []
    uplink: bool = False
    routes: Routes = []


class RouterStatus(msgspec.Struct, kw_only=True):
    conditions: list[Condition] = []


class AddressSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``address`` is one of the external network ``network`` (an id). ``port`` is the id of the port that it leads to."""

    address: str
    network: str
    port: str = ""


class AddressStatus(msgspec.Struct, kw_only=True):
    """``instance`` is the id of whose port it is."""

    instance: str = ""
    conditions: list[Condition] = []


Router = Resource[RouterSpec, RouterStatus]
FloatingAddress = Resource[AddressSpec, AddressStatus]
