"""What traffic control shall do on a port's link, computed from values alone.

The link that we hold is the instance's other end: what leaves through it goes in to the instance, and a queue there is its ``rate_in``.
What the instance sends arrives there; it is led through a link of the kind ifb, whose queue is its ``rate_out``, and goes on from there
as if it had just arrived.
"""

import msgspec

from lamella.host.network.driver import DesiredPort
from lamella.host.network.names import port_name, shaper_name

# An Ethernet header, and what a VLAN tag adds to it.
_HEADER = 18
_BURST_SECONDS, _QUEUE_SECONDS = 0.02, 0.05
_BURST_FRAMES, _QUEUE_FRAMES = 8, 16


class Bucket(msgspec.Struct, frozen=True):
    """A token bucket (tc-tbf(8)) in bytes: so many a second, so many at once, so many waiting."""

    rate: int
    burst: int
    queue: int


class Hook(msgspec.Struct, frozen=True):
    """All packets that come ``inward`` through the link (from the instance), or leave by it, go to the link ``to``: themselves, or as
    copies. Hooks of a smaller ``priority`` come first."""

    inward: bool
    priority: int
    to: str
    copies: bool


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """Of one port: the bucket on its link, that on its ifb, and the hooks on its link."""

    into: Bucket | None = None
    out_of: Bucket | None = None
    hooks: frozenset[Hook] = frozenset()


# No two have one: the kernel keeps the filters of both directions in one place (tc-u32), and tells them apart by their priorities alone.
COPY_IN, COPY_OUT, REDIRECT = 100, 101, 200


def bucket(rate: int | None, mtu: int) -> Bucket | None:
    """For *rate* bits a second of frames that carry *mtu* bytes at most.

    The burst is 20 ms of the rate, so that a processor that is late loses none of it; a frame always fits. 50 ms more may wait.
    """
    if rate is None:
        return None
    frame, second = mtu + _HEADER, rate / 8
    burst = max(int(second * _BURST_SECONDS), _BURST_FRAMES * frame)
    return Bucket(rate // 8, burst, burst + max(int(second * _QUEUE_SECONDS), _QUEUE_FRAMES * frame))


def traffic(port: DesiredPort, mtu: int) -> Traffic:
    """Everything that *port* asks for."""
    hooks = [Hook(True, REDIRECT, shaper_name(port.id), copies=False)] if port.rate_out is not None else []
    if port.mirror:
        to = port_name(port.mirror)
        hooks += [Hook(True, COPY_IN, to, copies=True), Hook(False, COPY_OUT, to, copies=True)]
    return Traffic(into=bucket(port.rate_in, mtu), out_of=bucket(port.rate_out, mtu), hooks=frozenset(hooks))
