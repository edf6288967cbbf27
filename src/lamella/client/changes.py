"""What a person wants changed of an instance, turned into patches: ``memory="1GiB"``, ``rate_in="100Mbit"``, ``rate_out=None``."""

from collections.abc import Mapping
from typing import Any, TypedDict

import msgspec

from lamella.client import calls, wish
from lamella.client.call import Call
from lamella.model.errors import Conflict, Invalid, NotFound
from lamella.model.instance import Instance
from lamella.model.requests import ResourcePatch

_RATES = ("rate_in", "rate_out")


class Changes(TypedDict, total=False):
    """What may be changed of an instance. ``None`` takes a limit away, or a label.

    ``rate_in`` and ``rate_out`` are ceilings in bits a second, or ``"100Mbit"``, of the NIC called ``nic`` (left out: the first).
    """

    cpu: wish.Cores | None
    cpu_guarantee: wish.Cores | None
    cpu_pin: bool
    memory: wish.Size | None
    priority: str
    pids: int
    restart: str
    stop_timeout: float | str
    labels: Mapping[str, str | None]
    rate_in: int | str | None
    rate_out: int | str | None
    nic: str


def patch(changes: Changes) -> ResourcePatch:
    """The merge patch that *changes* are, but for those of a NIC. :raise Invalid: when one of them is not understood."""
    spec: dict[str, Any] = {}
    given: dict[str, Any] = {**changes}
    for name in ("cpu", "cpu_guarantee"):
        if name in given:
            spec[name] = None if given[name] is None else wish.cores(given[name], field=name)
    if "memory" in changes:
        spec |= {"memory": None} if changes["memory"] is None else wish.memory(changes["memory"])
    spec |= {name: given[name] for name in ("pids", "cpu_pin", "priority") if name in given}
    if "restart" in changes:
        spec["restart"] = msgspec.to_builtins(wish.restart(changes["restart"]))
    if "stop_timeout" in changes:
        spec["stop_timeout"] = wish.seconds(changes["stop_timeout"], field="stop_timeout")
    return ResourcePatch(
        spec=spec or msgspec.UNSET, labels=dict(changes["labels"]) if "labels" in changes else msgspec.UNSET
    )


def of_a_nic(changes: Changes) -> bool:
    """Whether the instance has to be read first: its NICs are one list.

    :raise Invalid: when a NIC is named, and nothing of it is to be changed.
    """
    if any(field in changes for field in _RATES):
        return True
    if "nic" in changes:
        raise Invalid("nothing of the NIC is to be changed", hint="say what: rate_in or rate_out", field="nic")
    return False


def to_instance(instance: Instance, changes: Changes) -> Call[Instance]:
    """The patch that makes all *changes*, rates too, to *instance* as it was read.

    :raise Invalid: when one is not understood. :raise NotFound: when it has no such NIC. :raise Conflict: when it has none at all.
    """
    body = patch(changes)
    spec: dict[str, Any] = {} if isinstance(body.spec, msgspec.UnsetType) else dict(body.spec)
    body = msgspec.structs.replace(body, spec={**spec, "nics": _nics(instance, changes)})
    return calls.patch_instance(instance.project, instance.id, body, revision=instance.revision)


def _nics(instance: Instance, changes: Changes) -> list[dict[str, Any]]:
    """All its NICs, one of them with other rates: a list in a patch takes the place of the one that was there."""
    found: list[dict[str, Any]] = msgspec.to_builtins(instance.spec.nics)
    names = [nic["name"] if number else "nic" for number, nic in enumerate(found)]
    if not found:
        raise Conflict(f"{instance.name} has no network", hint="rates are of a NIC")
    wanted = changes.get("nic", names[0])
    if wanted not in names:
        raise NotFound(f"{instance.name} has no NIC {wanted!r}", hint=f"it has {', '.join(names)}", field="nic")
    given: dict[str, Any] = {**changes}
    rates = {field: wish.rate(given[field], field=field) for field in _RATES if field in given}
    found[names.index(wanted)] |= rates
    return found
