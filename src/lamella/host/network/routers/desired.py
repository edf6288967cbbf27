"""What a router is to a host."""

import msgspec


class DesiredRoute(msgspec.Struct, frozen=True):
    """To *destination*, a prefix, by the address *via* on one of the router's networks."""

    destination: str
    via: str


class DesiredRouter(msgspec.Struct, kw_only=True, frozen=True):
    """``networks`` are ids. Without ``uplink`` nothing goes out by it. ``floating`` are addresses from outside, each with the address of
    the port that it leads to."""

    id: str
    name: str
    networks: list[str]
    uplink: bool = False
    routes: list[DesiredRoute] = []
    floating: dict[str, str] = {}
