"""USB devices of the host: found by their numbers, given to a machine as they are.

Sources: Linux ``Documentation/ABI/testing/sysfs-bus-usb`` (idVendor, idProduct, busnum, devnum); QEMU's usb-host, property ``hostdevice``.
"""

from pathlib import Path

import msgspec

from lamella.model.errors import Unsupported

_SYSFS = Path("/sys/bus/usb/devices")
_NODES = Path("/dev/bus/usb")


class HostDevice(msgspec.Struct, kw_only=True, frozen=True):
    """A device of the host by the node that is opened for it. ``driver`` is QEMU's."""

    path: Path
    driver: str = "usb-host"

    def properties(self, fdset: int) -> dict[str, object]:
        """What QEMU is told to plug it in from descriptor set *fdset*."""
        return {"driver": self.driver, "hostdevice": f"/dev/fdset/{fdset}"}


def find(device: str, *, sysfs: Path = _SYSFS, nodes: Path = _NODES) -> HostDevice:
    """The first device with these numbers (``1d6b:0002``).

    :raise Unsupported: when this host has none.
    """
    present = sorted((numbers, path) for path in sysfs.glob("*") if (numbers := _numbers(path)) is not None)
    for numbers, path in present:
        if numbers == device:
            return HostDevice(path=nodes / f"{_value(path, 'busnum'):0>3}" / f"{_value(path, 'devnum'):0>3}")
    others = ", ".join(sorted({numbers for numbers, _ in present}))
    raise Unsupported(
        f"this host has no USB device {device}",
        hint=f"it has {others}" if others else "it has none at all, or its kernel knows no USB",
        field="usb",
    )


def _numbers(path: Path) -> str | None:
    vendor, product = _value(path, "idVendor"), _value(path, "idProduct")
    return f"{vendor}:{product}" if vendor and product else None


def _value(path: Path, name: str) -> str:
    try:
        return (path / name).read_text().strip()
    except OSError:
        return ""
