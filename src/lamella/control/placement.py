"""Which host gets an instance. Pure."""

from collections.abc import Mapping, Sequence

import msgspec

from lamella.control.capacity import Shortage
from lamella.model.errors import NoRoom, Unavailable, Unsupported
from lamella.model.host import Host
from lamella.model.instance import InstanceSpec


class Placement(msgspec.Struct, kw_only=True, frozen=True):
    """The chosen host and the reason, for ``explain``; ``share`` is what is taken of it, in words."""

    host: Host
    because: str
    share: str = ""


def place(
    spec: InstanceSpec, hosts: Sequence[Host], load: Mapping[str, int], short: Mapping[str, Shortage] | None = None
) -> Placement:
    """The ready host that can do this isolation level, has room and has the fewest instances (*load*, by host id). *short* are hosts that
    have no room, by id, each with the reason.

    :raise NoRoom: when no host is ready, or none that can do the level has room; it says what each has left.
    :raise Unavailable: when there are hosts, and they are away.
    :raise Unsupported: when no host can do the level; the sentence carries each host's own reason.
    """
    ready = [host for host in hosts if host.status.phase == "ready" and host.deleted_at is None]
    if away := [host for host in hosts if host.status.phase == "away" and host.deleted_at is None and not ready]:
        raise Unavailable(
            f"no host is ready: {', '.join(f'{host.name} is away' for host in away)}",
            hint="`lamella host ls` tells when one is back",
        )
    if not ready:
        raise NoRoom("no host is ready", hint="look at `lamella host ls`; a host that was just started needs a moment")
    wanted = f"compute.{spec.isolation}"
    able: list[Host] = []
    reasons: list[str] = []
    for host in ready:
        capability = next((c for c in host.status.capabilities if c.name == wanted), None)
        if capability is not None and capability.available:
            able.append(host)
        else:
            reasons.append(f"{host.name}: {capability.reason if capability else 'no driver for it'}")
    if not able:
        raise Unsupported(
            f"no host can run isolation {spec.isolation} ({'; '.join(reasons)})",
            hint="`lamella doctor` tells what each host can do",
            field="spec.isolation",
        )
    full = {host.id: short[host.id] for host in able if short and host.id in short}
    if len(full) == len(able):
        first = full[able[0].id]
        raise NoRoom("; ".join(item.message for item in full.values()), hint=first.hint, field=first.field)
    able = [host for host in able if host.id not in full]
    chosen = min(able, key=lambda host: (load.get(host.id, 0), host.id))
    if len(able) == 1:
        because = f"it is the only ready host that runs {spec.isolation}{' and has room' if full else ''}"
    else:
        because = f"of {len(able)} able hosts{' with room' if full else ''} it has the fewest instances ({load.get(chosen.id, 0)})"
    return Placement(host=chosen, because=because)
