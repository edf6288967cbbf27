"""Traffic control in force: a port's plan is compared with what its link has, and the difference applied.

Everything here runs in the thread of the layer's namespace.
"""

import errno

from lamella.host.network import rtnetlink
from lamella.host.network.driver import DesiredPort, Rate, Rates
from lamella.host.network.names import port_name, shaper_name
from lamella.host.network.namespace import Seat
from lamella.host.network.rtnetlink import RouteSocket
from lamella.host.network.traffic import messages
from lamella.host.network.traffic.messages import INWARD, OUTWARD, Lead, Queue
from lamella.host.network.traffic.plan import Bucket, Hook, traffic
from lamella.model.errors import Unsupported
from lamella.model.host import Capability

_BITS = 8


def shape(seat: Seat, port: DesiredPort, mtu: int) -> None:
    """Have exactly what *port* asks for on its link, which may be gone; *mtu* is its network's.

    :raise Unsupported: when the kernel lacks a part of it.
    """
    route = seat.route
    link = route.link(port_name(port.id))
    if link is None:
        return
    asked = traffic(port, mtu)
    try:
        _have_bucket(route, link.index, asked.into)
        if asked.out_of is None:
            _have_hooks(route, link.index, asked.hooks)
            if route.link(shaper_name(port.id)) is not None:
                route.send(rtnetlink.delete_link(shaper_name(port.id)))
            return
        ifb = _have_ifb(route, port, mtu)
        _have_bucket(route, ifb, asked.out_of)
        _have_hooks(route, link.index, asked.hooks)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EOPNOTSUPP):
            raise Unsupported(
                f"this host cannot limit what a network port carries: {error.strerror}",
                hint="load the kernel modules sch_tbf, ifb, cls_u32 and act_mirred",
                field="spec.nics",
            ) from error
        raise


def rates(seat: Seat, port: str) -> Rates:
    """What is in force for the port with this id."""
    return Rates(into=_rate(seat.route, port_name(port)), out_of=_rate(seat.route, shaper_name(port)))


def finding(seat: Seat) -> Capability:
    """Whether this kernel has what ceilings are made of; nothing is changed to find out."""
    lacking = [
        *(["tbf"] if not messages.known(seat.route, "tbf") else []),
        *(["ifb"] if not rtnetlink.knows_kind(seat.route, "ifb") else []),
        *(["mirred"] if not messages.knows_action(seat.route, "mirred") else []),
    ]
    reason = f"the kernel has no {', '.join(lacking)}" if lacking else "the kernel has tbf, ifb and mirred"
    return Capability(name="network.rate", available=not lacking, value="" if lacking else "tbf", reason=reason)


def _have_ifb(route: RouteSocket, port: DesiredPort, mtu: int) -> int:
    name = shaper_name(port.id)
    there = route.link(name)
    if there is not None and there.up:
        return there.index
    route.send(rtnetlink.add_ifb(name, mtu=mtu), rtnetlink.set_link(name, alias=port.id))
    made = route.link(name)
    if made is None:
        raise OSError(errno.ENODEV, f"link {name} vanished")
    return made.index


def _have_bucket(route: RouteSocket, link: int, wanted: Bucket | None) -> None:
    queue = messages.queue(route, link)
    if wanted is None:
        if queue is not None and queue.handle == messages.HANDLE:
            route.send(messages.remove_queue(link))
    elif queue is None or queue.handle != messages.HANDLE or queue.kind != "tbf" or not _alike(queue, wanted):
        if queue is not None and queue.handle == messages.HANDLE and queue.kind != "tbf":
            route.send(messages.remove_queue(link))
        route.send(messages.set_bucket(link, wanted))


def _alike(queue: Queue, wanted: Bucket) -> bool:
    """The kernel keeps a burst as a time, and rounds it."""
    there = queue.bucket
    return (
        there is not None
        and (there.rate, there.queue) == (wanted.rate, wanted.queue)
        and abs(there.burst - wanted.burst) <= 1 + wanted.burst // 100
    )


def _have_hooks(route: RouteSocket, link: int, wanted: frozenset[Hook]) -> None:
    """Have exactly these filters; one that leads to a link that is not there is left out."""
    leads: dict[int, set[Lead]] = {INWARD: set(), OUTWARD: set()}
    for hook in wanted:
        to = route.link(hook.to)
        if to is not None:
            leads[INWARD if hook.inward else OUTWARD].add(Lead(hook.priority, to.index, hook.copies))
    if not any(leads.values()):
        route.send(messages.set_hooked(link, False))
        return
    route.send(messages.set_hooked(link, True))
    for parent, asked in leads.items():
        there = messages.leads(route, link, parent)
        for lead in there:
            if lead not in asked or there.count(lead) > 1:
                route.send(messages.remove_leads(link, parent, lead.priority))
        kept = {lead for lead in there if lead in asked and there.count(lead) == 1}
        route.send(*(messages.add_lead(link, parent, lead) for lead in asked - kept))


def _rate(route: RouteSocket, name: str) -> Rate | None:
    link = route.link(name)
    queue = None if link is None else messages.queue(route, link.index)
    if queue is None or queue.bucket is None:
        return None
    return Rate(
        ceiling=queue.bucket.rate * _BITS, measured=queue.measured * _BITS, evidence=f"the token bucket of link {name}"
    )
