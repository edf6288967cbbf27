"""From what is plugged in and what shall be, to steps. Pure."""

from collections.abc import Iterable

import msgspec

from lamella.host.compute.vm.devices import Part, Wanted
from lamella.model.errors import Unsupported


class Device(msgspec.Struct, kw_only=True, frozen=True):
    """A device that is plugged in. ``port`` is its root port, or empty; ``identity`` as in :class:`Wanted`, empty when nobody knows."""

    part: Part
    port: str = ""
    identity: str = ""


class Medium(msgspec.Struct, kw_only=True, frozen=True):
    """The image that lies in a CD drive."""

    name: str
    identity: str = ""


class Plugged(msgspec.Struct, kw_only=True, frozen=True):
    """What QEMU has. ``drives`` says which image lies in each CD drive, ``leftovers`` are names whose block node, netdev or files are
    there without a device (half-done by somebody who was interrupted, or let go of by the guest later), ``boot`` the ``bootindex``
    of each device by its id."""

    devices: dict[str, Device] = {}
    drives: dict[str, Medium | None] = {}
    ports: list[str] = []
    leftovers: frozenset[str] = frozenset()
    boot: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        return sorted({*self.devices, *(medium.name for medium in self.drives.values() if medium is not None)})


class Unplug(msgspec.Struct, kw_only=True, frozen=True):
    """Have the guest let go of it."""

    name: str
    part: Part


class Eject(msgspec.Struct, kw_only=True, frozen=True):
    name: str
    drive: str


class Clear(msgspec.Struct, kw_only=True, frozen=True):
    """Remove block node, netdev and files of a device that is gone."""

    name: str


class Plug(msgspec.Struct, kw_only=True, frozen=True):
    name: str
    part: Part
    port: str = ""


class Insert(msgspec.Struct, kw_only=True, frozen=True):
    name: str
    drive: str


class Order(msgspec.Struct, kw_only=True, frozen=True):
    """Give a device (by its id) another ``bootindex``; -1 is none. The firmware reads it when the machine is reset."""

    name: str
    device: str
    index: int


Step = Unplug | Eject | Clear | Plug | Insert | Order


def plan(plugged: Plugged, wanted: Iterable[Wanted], boot: dict[str, int]) -> list[Step]:
    """How to come from *plugged* to *wanted* and the order *boot* (by name): first what goes, then what comes.

    :raise Unsupported: when there is no root port or drive left for it.
    """
    wished = {item.name: item for item in wanted}
    steps: list[Step] = []
    kept: set[str] = set()
    placed: dict[str, str] = {}
    for name, device in sorted(plugged.devices.items()):
        if _same(wished.get(name), device.part, device.identity):
            kept.add(name)
        else:
            steps += [Unplug(name=name, part=device.part), Clear(name=name)]
    for drive, medium in sorted(plugged.drives.items()):
        if medium is None:
            continue
        if medium.name not in kept and _same(wished.get(medium.name), Part.CDROM, medium.identity):
            kept.add(medium.name)
            placed[medium.name] = drive
        else:
            steps += [Eject(name=medium.name, drive=drive), Clear(name=medium.name)]
    steps += [Clear(name=name) for name in sorted(plugged.leftovers)]
    # A port is taken until the guest has let go; those of what goes now are given again last.
    stays = {plugged.devices[name].port for name in kept if name in plugged.devices}
    leaves = [device.port for device in plugged.devices.values() if device.port and device.port not in stays]
    ports = [port for port in plugged.ports if port not in stays and port not in leaves] + leaves
    drives = [drive for drive in sorted(plugged.drives) if drive not in placed.values()]
    for item in wished.values():
        if item.name in kept:
            continue
        if item.part is Part.CDROM:
            if not drives:
                raise Unsupported(
                    f"there is no CD drive left for {item.name}: this machine started with {len(plugged.drives)}",
                    hint="take another CD out, or restart the machine: it then gets a drive for each",
                )
            placed[item.name] = drives.pop(0)
            steps.append(Insert(name=item.name, drive=placed[item.name]))
            continue
        port = ""
        if item.part is not Part.USB:
            if not ports:
                raise Unsupported(
                    f"there is no place left for {item.name}: this machine started with {len(plugged.ports)} "
                    "places for disks and NICs",
                    hint="take something out, or restart the machine: it then gets places for all and some to spare",
                )
            port = ports.pop(0)
        steps.append(Plug(name=item.name, part=item.part, port=port))
    there = {
        device: index
        for device, index in plugged.boot.items()
        if device.removeprefix("dev-") in kept or not device.startswith("dev-")
    }
    return [*steps, *_order(there, wished, placed, boot)]


def _same(wish: Wanted | None, part: Part, identity: str) -> bool:
    return wish is not None and wish.part is part and identity in ("", wish.identity)


def _order(
    there: dict[str, int], wished: dict[str, Wanted], placed: dict[str, str], boot: dict[str, int]
) -> list[Step]:
    """From the ``bootindex`` of devices that stay to that of all. No two may have the same, so those that change lose theirs first.

    What the machine has of its own (its first disk and NIC, say) is a device whose id is its name.
    """
    shall: dict[str, tuple[str, int]] = {}
    for name, index in boot.items():
        if name in wished and wished[name].part is not Part.USB:
            shall[placed.get(name, f"dev-{name}")] = (name, index)
        elif name in there:
            shall[name] = (name, index)
    steps: list[Step] = [
        Order(name=shall.get(device, ("", 0))[0], device=device, index=-1)
        for device, index in sorted(there.items())
        if index >= 0 and shall.get(device, ("", -1))[1] != index
    ]
    return steps + [
        Order(name=name, device=device, index=index)
        for device, (name, index) in sorted(shall.items())
        if there.get(device, -1) != index
    ]
