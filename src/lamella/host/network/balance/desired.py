"""What a network driver is told of a balancer."""

import msgspec

from lamella.model.balancer import BalancerTask, Check, Listener
from lamella.model.instance import Publish


class Rule(msgspec.Struct, kw_only=True, frozen=True):
    """Which requests: for a host, for a path and what is below; empty is any."""

    host: str = ""
    path: str = ""


class Backend(msgspec.Struct, kw_only=True, frozen=True):
    """One instance behind the listener at the place ``listener``; ``port`` is its own. ``draining``: no new connection."""

    listener: int
    instance: str
    name: str
    address: str
    port: int
    draining: bool = False
    rule: Rule = Rule()


class DesiredBalancer(msgspec.Struct, kw_only=True, frozen=True):
    """``drain`` is in seconds: how long connections to a backend that leaves may go on."""

    id: str
    name: str
    network: str
    address: str
    listeners: list[Listener]
    backends: list[Backend] = []
    check: Check = Check()
    source: bool = False
    publish: list[Publish] = []
    drain: float = 30.0
    certificate: str = ""


def desired(task: BalancerTask) -> DesiredBalancer:
    """What control tells, as a driver wants it: each listener with its backends. One that several targets mean is one backend."""
    spec = task.balancer.spec
    backends: dict[tuple[int, str, int, Rule], Backend] = {}
    for place, listener in enumerate(spec.listeners):
        for target, members in zip(spec.targets, task.members, strict=True):
            rule = Rule(host=target.host, path=target.path.rstrip("/"))
            if rule != Rule() and not listener.reads:
                continue
            for member in members:
                port = target.port or listener.port
                backends[place, member.address, port, rule] = Backend(
                    listener=place,
                    instance=member.instance,
                    name=member.name,
                    address=member.address,
                    port=port,
                    draining=member.draining,
                    rule=rule,
                )
    return DesiredBalancer(
        id=task.balancer.id,
        name=task.balancer.name,
        network=spec.network,
        address=spec.address,
        listeners=spec.listeners,
        backends=list(backends.values()),
        check=spec.check,
        source=spec.spread == "source",
        publish=spec.publish,
        drain=spec.drain,
        certificate=spec.certificate,
    )
