"""What the sampler is given of the instances of a host, and what others are given of what it read."""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from lamella.host.compute.driver import Home
from lamella.host.linux.room import Room
from lamella.host.measure.counters import Counters
from lamella.host.measure.promise import Watched, promise_of
from lamella.host.network.names import port_name, shaper_name
from lamella.model.assignment import Assignment
from lamella.model.usage import Usage


def watched(assignments: Iterable[tuple[Assignment, bool]]) -> list[Watched]:
    """What is asked of each instance, and whether it runs."""
    return [
        Watched(
            id=asked.instance.id,
            promise=promise_of(asked.instance.spec),
            links=(port_name(asked.port.id), shaper_name(asked.port.id)) if asked.port is not None else None,
            running=running,
        )
        for asked, running in assignments
    ]


def net_of(home: Home) -> Path | None:
    """The counters of all links in the layer's namespace; ``None`` when it is not there."""
    holder = Room(home).holder()
    return Path(f"/proc/{holder}/net/dev") if holder is not None else None


def with_waits(usage: Usage, counted: Counters | None) -> Usage:
    """*usage* with what was *counted* last beside it."""
    if counted is None:
        return usage
    waits = (counted.cpu_waits, counted.memory_waits, counted.io_waits)
    cpu, memory, io = (None if wait is None else wait.some for wait in waits)
    return msgspec.structs.replace(
        usage,
        cpu_waited=cpu,
        throttled=counted.throttled,
        memory_waited=memory,
        io_waited=io,
        oom_kills=counted.oom_kills,
    )
