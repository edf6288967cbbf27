"""The routes of routers and floating addresses as functions to a :class:`Request`. Bodies are JSON already, as bytes."""

from lamella.client.request import Request
from lamella.client.routes import target

_JSON = {"Content-Type": "application/json"}


def create_router(project: str, body: bytes) -> Request:
    """Make a router (``RouterCreate``)."""
    return Request("POST", target("projects", project, "routers"), body=body, headers=_JSON)


def create_address(project: str, body: bytes) -> Request:
    """Take a floating address (``AddressCreate``)."""
    return Request("POST", target("projects", project, "addresses"), body=body, headers=_JSON)


def attach(project: str, name: str, body: bytes) -> Request:
    """Have it lead to an instance (``AddressAttach``)."""
    return Request("POST", target("projects", project, "addresses", name, "attach"), body=body, headers=_JSON)


def detach(project: str, name: str) -> Request:
    """Have it lead to nobody."""
    return Request("POST", target("projects", project, "addresses", name, "detach"))
