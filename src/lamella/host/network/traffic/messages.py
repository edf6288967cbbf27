"""The rtnetlink(7) messages of traffic control: queues, and filters that lead packets to another link.

Layouts: linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h, linux/gen_stats.h, linux/tc_act/tc_mirred.h.
"""

import errno
import struct
from collections.abc import Iterator

import msgspec

from lamella.host.network.rtnetlink import Request, RouteSocket
from lamella.host.network.traffic.plan import Bucket

_MESSAGE = struct.Struct("=B3xiIII")
_RATE = struct.Struct("=BBHhHI")
_MIRRED = struct.Struct("=IIiiiiI")

_REQUEST, _REPLACE, _EXCLUSIVE, _CREATE = 0x1, 0x100, 0x200, 0x400
_NEW_QUEUE, _DELETE_QUEUE, _GET_QUEUE = 36, 37, 38
_NEW_FILTER, _DELETE_FILTER, _GET_FILTER = 44, 45, 46
_NEW_ACTION = 48

ROOT, _CLSACT = 0xFFFFFFFF, 0xFFFFFFF1
INWARD, OUTWARD = 0xFFFFFFF2, 0xFFFFFFF3
# Ours are told from others by it.
HANDLE = 0x4C510000

_KIND, _OPTIONS, _ESTIMATOR, _STATISTICS = 1, 2, 5, 7
_TBF_PARAMETERS, _TBF_RATE64, _TBF_BURST = 1, 4, 6
_U32_SELECTOR, _U32_ACTIONS = 5, 7
_ACTION_KIND, _ACTION_OPTIONS, _MIRRED_PARAMETERS = 1, 2, 2
_REDIRECT, _MIRROR = 1, 2
_STOLEN, _GO_ON = 4, -1
_ETHERNET = 1
_EVERY_PROTOCOL = 0x0300
_BASIC, _RATE_ESTIMATE, _RATE_ESTIMATE64 = 1, 2, 5


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """The queue of a link. ``bucket`` when it is a token bucket; ``measured`` is bytes a second over the last seconds."""

    kind: str
    handle: int
    bucket: Bucket | None = None
    measured: int = 0


class Lead(msgspec.Struct, frozen=True):
    """A filter that leads packets to the link with the index ``to``; 0 for a filter that is of another kind."""

    priority: int
    to: int
    copies: bool


def set_bucket(link: int, bucket: Bucket) -> Request:
    """Have a token bucket as the queue of *link*; one of ours is changed in place. Its rate is measured."""
    rate = _RATE.pack(0, _ETHERNET, 0, 0, 0, min(bucket.rate, 0xFFFFFFFF))
    options = attribute(_TBF_PARAMETERS, rate + bytes(_RATE.size) + struct.pack("=III", bucket.queue, 0, 0))
    options += attribute(_TBF_BURST, struct.pack("=I", bucket.burst))
    if bucket.rate > 0xFFFFFFFF:
        options += attribute(_TBF_RATE64, struct.pack("=Q", bucket.rate))
    body = _MESSAGE.pack(0, link, HANDLE, ROOT, 0) + attribute(_KIND, b"tbf\0") + attribute(_OPTIONS, options)
    # Measured every quarter of a second; of each, a quarter counts.
    body += attribute(_ESTIMATOR, struct.pack("=bB", -2, 2))
    return Request(_NEW_QUEUE, _REQUEST | _CREATE | _REPLACE, body)


def remove_queue(link: int) -> Request:
    """Give *link* the queue back that it began with; a link without another is fine."""
    return Request(
        _DELETE_QUEUE, _REQUEST, _MESSAGE.pack(0, link, 0, ROOT, 0), (errno.ENOENT, errno.EINVAL, errno.ENODEV)
    )


def set_hooked(link: int, hooked: bool) -> Request:
    """Whether filters can be put on *link*; without, all of them go."""
    if hooked:
        body = _MESSAGE.pack(0, link, 0xFFFF0000, _CLSACT, 0) + attribute(_KIND, b"clsact\0")
        return Request(_NEW_QUEUE, _REQUEST | _CREATE | _EXCLUSIVE, body, (errno.EEXIST,))
    body = _MESSAGE.pack(0, link, 0, _CLSACT, 0)
    return Request(_DELETE_QUEUE, _REQUEST, body, (errno.ENOENT, errno.EINVAL, errno.ENODEV))


def add_lead(link: int, parent: int, lead: Lead) -> Request:
    """All packets that pass *parent* (:data:`INWARD` or :data:`OUTWARD`) of *link*."""
    verdict = _GO_ON if lead.copies else _STOLEN
    told = _MIRRED.pack(0, 0, verdict, 0, 0, _MIRROR if lead.copies else _REDIRECT, lead.to)
    action = attribute(_ACTION_KIND, b"mirred\0")
    action += attribute(_ACTION_OPTIONS, attribute(_MIRRED_PARAMETERS, told))
    # A terminal selector with no key to compare: everything matches.
    options = attribute(_U32_SELECTOR, b"\1" + bytes(15)) + attribute(_U32_ACTIONS, attribute(1, action))
    body = _MESSAGE.pack(0, link, 0, parent, lead.priority << 16 | _EVERY_PROTOCOL)
    body += attribute(_KIND, b"u32\0") + attribute(_OPTIONS, options)
    return Request(_NEW_FILTER, _REQUEST | _CREATE | _EXCLUSIVE, body)


def remove_leads(link: int, parent: int, priority: int) -> Request:
    """Everything of that priority."""
    body = _MESSAGE.pack(0, link, 0, parent, priority << 16 | _EVERY_PROTOCOL)
    return Request(_DELETE_FILTER, _REQUEST, body, (errno.ENOENT, errno.EINVAL, errno.ENODEV))


def queue(route: RouteSocket, link: int) -> Queue | None:
    """The queue of *link*. :raise OSError: when the kernel refuses."""
    for kind, body in route.ask(_GET_QUEUE, _MESSAGE.pack(0, link, 0, ROOT, 0)):
        if kind == _NEW_QUEUE:
            return _queue(body)
    return None


def leads(route: RouteSocket, link: int, parent: int) -> list[Lead]:
    """The filters at *parent* of *link*; none when it is not hooked. :raise OSError: when the kernel refuses."""
    found: list[Lead] = []
    for kind, body in route.ask(_GET_FILTER, _MESSAGE.pack(0, link, 0, parent, 0), dump=True):
        if kind != _NEW_FILTER:
            continue
        *_, info = _MESSAGE.unpack_from(body)
        parts = dict(attributes(body[_MESSAGE.size :]))
        options = dict(attributes(parts.get(_OPTIONS, b"")))
        # A filter of u32 comes after the table that it is in, which has no selector.
        if _U32_SELECTOR in options or parts.get(_KIND) != b"u32\0":
            found.append(_lead(info >> 16, options))
    return found


def known(route: RouteSocket, kind: str) -> bool:
    """Whether the kernel has that kind of queue: one without options is refused in another way than one that it does not know."""
    body = _MESSAGE.pack(0, 1, HANDLE, ROOT, 0) + attribute(_KIND, kind.encode() + b"\0")
    try:
        route.send(Request(_NEW_QUEUE, _REQUEST | _CREATE | _EXCLUSIVE, body))
    except OSError as error:
        return error.errno != errno.ENOENT
    return True


def knows_action(route: RouteSocket, kind: str) -> bool:
    """Whether the kernel has that action; nothing is made to find out."""
    body = bytes(4) + attribute(1, attribute(1, attribute(_ACTION_KIND, kind.encode() + b"\0")))
    try:
        route.send(Request(_NEW_ACTION, _REQUEST | _CREATE | _EXCLUSIVE, body))
    except OSError as error:
        return error.errno != errno.ENOENT
    return True


def _queue(body: bytes) -> Queue:
    _, _, handle, _, _ = _MESSAGE.unpack_from(body)
    parts = dict(attributes(body[_MESSAGE.size :]))
    kind = parts.get(_KIND, b"").rstrip(b"\0").decode(errors="replace")
    statistics = dict(attributes(parts.get(_STATISTICS, b"")))
    measured = 0
    if _RATE_ESTIMATE in statistics:
        measured = struct.unpack_from("=I", statistics[_RATE_ESTIMATE])[0]
    if _RATE_ESTIMATE64 in statistics:
        measured = struct.unpack_from("=Q", statistics[_RATE_ESTIMATE64])[0]
    if kind != "tbf":
        return Queue(kind=kind, handle=handle, measured=measured)
    options = dict(attributes(parts.get(_OPTIONS, b"")))
    parameters = options[_TBF_PARAMETERS]
    rate = _RATE.unpack_from(parameters)[5]
    if _TBF_RATE64 in options:
        rate = struct.unpack_from("=Q", options[_TBF_RATE64])[0]
    waiting, ticks, _ = struct.unpack_from("=III", parameters, 2 * _RATE.size)
    # The burst is told as a time, in ticks of 64 ns.
    return Queue(
        kind=kind, handle=handle, bucket=Bucket(rate, round(ticks * 64 * rate / 1e9), waiting), measured=measured
    )


def _lead(priority: int, options: dict[int, bytes]) -> Lead:
    for _, action in attributes(options.get(_U32_ACTIONS, b"")):
        parts = dict(attributes(action))
        told = dict(attributes(parts.get(_ACTION_OPTIONS, b""))).get(_MIRRED_PARAMETERS, b"")
        if parts.get(_ACTION_KIND) == b"mirred\0" and len(told) >= _MIRRED.size:
            *_, what, to = _MIRRED.unpack_from(told)
            return Lead(priority, to, what == _MIRROR)
    return Lead(priority, 0, False)


def attribute(kind: int, data: bytes) -> bytes:
    """One attribute, padded."""
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and content of each."""
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            return
        yield kind & 0x3FFF, data[4:length]
        data = data[(length + 3) & ~3 :]
