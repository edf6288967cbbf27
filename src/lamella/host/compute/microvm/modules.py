"""Which kernel modules a guest needs, and in which order: their own words (``.modinfo``) say what each stands on."""

import lzma
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import zstandard

from lamella.model.errors import Unavailable

_PCI = "/sys/bus/pci/devices"
_MMIO = "/sys/bus/acpi/devices/LNRO0005:00"

CHANNEL = [("virtio", ""), ("virtio_ring", ""), ("virtio_mmio", _MMIO), ("virtio_pci", _PCI), ("virtio_console", "")]
"""Needed before the agent can answer, each with the directory of sysfs that must not be empty for it."""

REST = [(name, "") for name in ("virtio_blk", "overlay", "erofs", "ext4", "virtio_net", "virtio_rng", "virtio_balloon")]
"""Needed before the instance starts."""

_LARGEST = 64 << 20


class Module(msgspec.Struct, kw_only=True, frozen=True):
    """One module to load. ``condition`` is a directory of sysfs that must not be empty for it, or empty."""

    name: str
    content: bytes
    condition: str = ""


class ModuleTree:
    """The modules of one kernel; names are written with underscores."""

    def __init__(self, modules: Path) -> None:
        self._paths = {_name(path): path for path in sorted((modules / "kernel").rglob("*.ko*"))}
        builtin = modules / "modules.builtin"
        lines = builtin.read_text().splitlines() if builtin.exists() else []
        self._builtin = {_name(Path(line)) for line in lines}

    def ordered(self, wanted: list[tuple[str, str]], done: set[str]) -> list[Module]:
        """The *wanted* modules, each after what it depends on; *done* ones are left out and grow by what is returned.

        :raise Unavailable: when one is neither a module nor built in.
        """
        return [module for name, condition in wanted for module in self._with_needs(name, condition, done)]

    def _with_needs(self, name: str, condition: str, done: set[str]) -> Iterator[Module]:
        if name in done or name in self._builtin:
            return
        path = self._paths.get(name)
        if path is None:
            if name in _MAY_BE_ABSENT:
                return
            raise Unavailable(f"this kernel has no {name}", hint="use the distribution's cloud kernel")
        done.add(name)
        content = unpacked(path)
        for need in dependencies(content):
            yield from self._with_needs(need, condition, done)
        yield Module(name=name, content=content, condition=condition)


_MAY_BE_ABSENT = {"virtio_balloon", "virtio_rng", "crc32c", "crc32c_intel"}


def dependencies(content: bytes) -> list[str]:
    """Names that a module's .modinfo says must be loaded before."""
    hard = re.search(rb"\0depends=([^\0]*)\0", content)
    names = hard[1].decode().split(",") if hard else []
    return [name.replace("-", "_") for name in names if name]


def unpacked(path: Path) -> bytes:
    """A module's ELF bytes, whatever it is compressed with."""
    raw = path.read_bytes()
    match path.suffix:
        case ".xz":
            return lzma.decompress(raw)
        case ".zst":
            return zstandard.ZstdDecompressor().decompress(raw, max_output_size=_LARGEST)
        case _:
            return raw


def _name(path: Path) -> str:
    return path.name.partition(".")[0].replace("-", "_")
