"""The routes of templates as functions to a :class:`Request`. Bodies are JSON already, as bytes."""

import os

from lamella.client.request import Request
from lamella.client.routes import target

_JSON = {"Content-Type": "application/json"}
# For how many seconds a verb waits for a template: it boots, and its warm-up runs.
SETTLE = 3600.0


def create(project: str, body: bytes, *, wait: float = SETTLE) -> Request:
    """Make a template (``TemplateCreate``). Sent twice it makes one."""
    headers = {**_JSON, "Idempotency-Key": os.urandom(16).hex()}
    path = target("projects", project, "templates", query=[("wait", f"{wait:g}")])
    return Request("POST", path, body=body, headers=headers, wait=wait)


def rebuild(project: str, name: str, *, wait: float = SETTLE) -> Request:
    """Make a template anew."""
    return Request(
        "POST", target("projects", project, "templates", name, "rebuild", query=[("wait", f"{wait:g}")]), wait=wait
    )
