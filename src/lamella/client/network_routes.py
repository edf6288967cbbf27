"""The routes of networks as functions to a :class:`Request`. Bodies are JSON already, as bytes."""

from lamella.client.request import Request
from lamella.client.routes import target


def create(project: str, body: bytes) -> Request:
    """Make a network (``NetworkCreate``)."""
    return Request(
        "POST", target("projects", project, "networks"), body=body, headers={"Content-Type": "application/json"}
    )
