"""The names of the layer's links: at most 15 characters (IFNAMSIZ), each told from an id or the mark by its tail alone.

Ids end in 80 random bits; the last 12 characters carry 60 of them.
"""

import zlib

_TAIL = 12

BRIDGE_PREFIX = "lam"
PORT_PREFIX = "lap"
ROUTER_PREFIX = "lar"
GATEWAY_PREFIX = "lag"
SHAPER_PREFIX = "laq"
OVERLAY_PREFIX = "lax"
# Every link of the layer's namespace that is ours, but for the uplink.
OURS = (BRIDGE_PREFIX, PORT_PREFIX, ROUTER_PREFIX, GATEWAY_PREFIX, SHAPER_PREFIX, OVERLAY_PREFIX)


def bridge_name(network: str) -> str:
    """The bridge of the network with id *network*, in the layer's namespace."""
    return BRIDGE_PREFIX + network[-_TAIL:]


def port_name(port: str) -> str:
    """The link of the port with id *port* on our side, in the layer's namespace."""
    return PORT_PREFIX + port[-_TAIL:]


def shaper_name(port: str) -> str:
    """The ifb that holds back what the port with id *port* sends, in the layer's namespace."""
    return SHAPER_PREFIX + port[-_TAIL:]


def overlay_name(network: str) -> str:
    """The tunnel of the network with id *network* to other hosts, in its bridge."""
    return OVERLAY_PREFIX + network[-_TAIL:]


def router_name(router: str) -> str:
    """The layer's end of the link to the router with id *router*."""
    return ROUTER_PREFIX + router[-_TAIL:]


def gateway_name(network: str) -> str:
    """Both ends of a router's leg on the network with id *network*: one in the bridge, one in the router's namespace."""
    return GATEWAY_PREFIX + network[-_TAIL:]


def uplink_names(mark: str) -> tuple[str, str]:
    """(the host's end, the layer's end) of the uplink; of ``lamella-1a2b3c4d`` they are ``la1a2b3c4d-h`` and ``la1a2b3c4d-u``."""
    short = "la" + mark.rpartition("-")[2][:9]
    return short + "-h", short + "-u"


def zone_of(network: str) -> int:
    """The zone of connection tracking of the network with this id, 1 to 65535: the same for every daemon."""
    return zlib.crc32(network.encode()) % 65535 + 1
