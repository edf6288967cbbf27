"""The routes of pools, volumes and snapshots as functions to a :class:`Request`. Bodies are JSON already, as bytes."""

import os

from lamella.client.request import Request
from lamella.client.routes import target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.client.request import Request as _Request

_JSON = {"Content-Type": "application/json"}
# For how many seconds a verb waits for its host: volumes are made, merged and shredded meanwhile.
SETTLE = 600.0


def create(project: str, kind: str, body: bytes, *, wait: float = SETTLE) -> "_Request":
    """Make a ``pool``, a ``volume`` or a ``snapshot`` (``PoolCreate`` …). Sent twice it makes one."""
    headers = {**_JSON, "Idempotency-Key": os.urandom(16).hex()} if kind != "pool" else _JSON
    path = target("projects", project, f"{kind}s", query=[("wait", f"{wait:g}")])
    return Request("POST", path, body=body, headers=headers, wait=wait)


def verb(
    project: str, kind: str, name: str, verb: str, body: "bytes | None" = None, *, wait: "float | None" = SETTLE
) -> "_Request":
    """``resize``, ``rename``, ``attach``, ``detach``, ``unlock`` or ``rekey`` a volume, ``restore`` a snapshot, ``scrub`` a pool."""
    query = [("wait", f"{wait:g}")] if wait is not None else []
    path = target("projects", project, f"{kind}s", name, verb, query=query)
    return Request("POST", path, body=body, headers=_JSON if body is not None else None, wait=wait or 0)


def fsck(body: bytes) -> "_Request":
    """Check all storage (``StorageCheck``); the answer is an operation."""
    return Request("POST", target("fsck"), body=body, headers=_JSON)


def import_volume(project: str, body: bytes) -> "_Request":
    """Make a volume of a file of the host (``VolumeImport``); the answer is an operation."""
    return Request("POST", target("projects", project, "volumes", "import"), body=body, headers=_JSON)


def export_volume(project: str, name: str, *, format: str) -> "_Request":
    """The answer is a disk in *format*; most are converted first."""
    return Request("GET", target("projects", project, "volumes", name, "export", query=[("format", format)]), wait=3600)


def export_digest(project: str, name: str, *, format: str) -> "_Request":
    """What was exported last (``ExportedDigest``)."""
    return Request("GET", target("projects", project, "volumes", name, "digest", query=[("format", format)]))
