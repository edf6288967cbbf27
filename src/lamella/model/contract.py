"""The contract: what isolates an instance, what it is guaranteed, what limits it, and what is *not* promised."""

from datetime import datetime

import msgspec

# A mechanism that holds one of the limits of a request is named by it: ``limit.cpu``, ``limit.memory``, ``limit.pids``, ``limit.disk``.
LIMIT = "limit."


class Mechanism(msgspec.Struct, kw_only=True):
    """One thing in force around a running instance. ``evidence`` says where it was read (a file of /proc, a QMP answer)."""

    name: str
    value: str
    evidence: str
    in_force: bool = True


class Line(msgspec.Struct, kw_only=True):
    """One line of a contract: ``value`` in words, and what enforces it (empty for what nothing enforces)."""

    subject: str
    value: str
    enforced_by: str = ""
    asked: str = ""


class Contract(msgspec.Struct, kw_only=True):
    """Contract v1 of one instance, as of ``read_at``.

    ``isolation`` was read from the running thing; it is empty, and ``observed`` false, while the instance does not run.
    """

    instance: str
    id: str
    version: int = 1
    read_at: datetime
    level: str
    driver: str
    observed: bool
    isolation: list[Mechanism]
    guarantees: list[Line]
    limits: list[Line]
    accelerator: str
    accelerator_reason: str
    not_promised: list[str]
