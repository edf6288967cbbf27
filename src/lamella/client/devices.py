"""Plugging devices into an instance and out of it: from its spec, as JSON, to the patch that changes its lists.

A list in a merge patch (RFC 7396) replaces the list that was there: a patch made here goes with the revision that was read.
"""

from lamella.client.machine import free

TYPE_CHECKING = False
if TYPE_CHECKING:
    Json = dict[str, object]

LISTS = {"disk": "disks", "nic": "nics", "cdrom": "cdroms", "usb": "usb"}


def _error(code: str, message: str, hint: str, field: str = "") -> Exception:
    from lamella.model.errors import error_for

    return error_for(code)(message, hint=hint, field=field)


def _list(spec: "Json", kind: str) -> "list[Json]":
    found = spec.get(LISTS[kind])
    return list(found) if isinstance(found, list) else []  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def devices(spec: "Json") -> "list[tuple[str, str, Json]]":
    """Kind, name and description of all that can be unplugged. The first NIC is the machine's own and stays."""
    return [
        (kind, str(item.get("name") or ""), item)
        for kind in LISTS
        for item in (_list(spec, kind)[1:] if kind == "nic" else _list(spec, kind))
    ]


def attach(spec: "Json", kind: str, description: "Json", name: "str | None" = None) -> "tuple[str, Json]":
    """The new device's name and the patch that plugs it in. *kind* is one of ``LISTS``.

    :raise Conflict: when the name is taken.
    :raise Unsupported: when a NIC is asked for and the machine was made without one.
    """
    taken = {known for _, known, _ in devices(spec)}
    if name is not None and name in taken:
        raise _error("conflict", f"there is a device {name!r} already", "choose another name", "name")
    there = _list(spec, kind)
    if kind == "nic" and not there:
        raise _error(
            "unsupported", "it was made without a network", "make it anew with one to be able to add others", "nics"
        )
    name = name or free(kind, taken)
    return name, {LISTS[kind]: [*there, {"name": name, **description}]}


def detach(spec: "Json", name: str, *, force: bool) -> "tuple[str, Json]":
    """The device's kind and the patch that takes it out.

    :raise NotFound: when there is no such device.
    :raise Conflict: when it is a disk and *force* is not set: its content goes with it.
    """
    known = devices(spec)
    kind = next((kind for kind, other, _ in known if other == name), None)
    if kind is None:
        names = ", ".join(other for _, other, _ in known)
        raise _error(
            "not-found",
            f"there is no device {name!r} to take out",
            f"there are: {names}" if names else "what is part of the machine itself stays: it has nothing else",
            "name",
        )
    if kind == "disk" and not force:
        raise _error(
            "conflict",
            f"{name} is a disk, and what is on it goes with it",
            "copy what is needed, then ask with force (--force)",
        )
    return kind, {LISTS[kind]: [item for item in _list(spec, kind) if item.get("name") != name]}
