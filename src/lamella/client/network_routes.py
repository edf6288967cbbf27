"""The routes of networks and firewalls as functions to a :class:`Request`. Bodies are JSON already, as bytes."""

from lamella.client.request import Request
from lamella.client.routes import target

_JSON = {"Content-Type": "application/json"}


def create(project: str, body: bytes) -> Request:
    """Make a network (``NetworkCreate``)."""
    return Request("POST", target("projects", project, "networks"), body=body, headers=_JSON)


def create_firewall(project: str, body: bytes) -> Request:
    """Make a firewall (``FirewallCreate``)."""
    return Request("POST", target("projects", project, "firewalls"), body=body, headers=_JSON)


def create_balancer(project: str, body: bytes) -> Request:
    """Make a balancer (``BalancerCreate``)."""
    return Request("POST", target("projects", project, "balancers"), body=body, headers=_JSON)


def default_firewall(project: str, body: bytes) -> Request:
    """Choose the project's default firewall (``FirewallDefault``)."""
    return Request("POST", target("projects", project, "default-firewall"), body=body, headers=_JSON)


def member(project: str, name: str, verb: str, body: bytes) -> Request:
    """``attach`` or ``detach`` an instance (``FirewallMember``)."""
    return Request("POST", target("projects", project, "firewalls", name, verb), body=body, headers=_JSON)


def mirror(project: str, name: str, body: bytes) -> Request:
    """Mirror a NIC, or end that (``PortMirror``)."""
    return Request("POST", target("projects", project, "instances", name, "mirror"), body=body, headers=_JSON)


def capture(
    project: str,
    name: str,
    *,
    nic: str | None = None,
    filter: str = "",
    duration: float | None = None,
    packets: int | None = None,
) -> Request:
    """The answer is a capture file (pcap), for as long as it is read."""
    asked = {"nic": nic, "filter": filter or None, "duration": duration, "packets": packets}
    query = [(key, str(value)) for key, value in asked.items() if value is not None]
    return Request("GET", target("projects", project, "instances", name, "capture", query=query), wait=60)


def trace(project: str, name: str, to: str, *, protocol: str, port: int, type: int) -> Request:
    """What becomes of a packet (``Trace``)."""
    query = [("to", to), ("protocol", protocol), ("port", str(port)), ("type", str(type))]
    return Request("GET", target("projects", project, "instances", name, "trace", query=query))
