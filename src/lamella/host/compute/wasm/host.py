"""What this level needs of the host, looked for once when the driver opens."""

import ctypes
from collections.abc import Callable

import msgspec

from lamella.host.compute.driver import Home, Limits
from lamella.host.compute.qemu.places import boot_id
from lamella.host.compute.wasm import library, places
from lamella.host.compute.wasm.modules import Modules
from lamella.host.compute.wasm.zygote import Zygote
from lamella.host.linux.blocking import blocking
from lamella.host.linux.cgroup import Cgroup
from lamella.model.host import Capability

# The control group of the zygote and all monitors.
MONITORS = "wasm-monitors"

_LANDLOCK_CREATE_RULESET, _VERSION = 444, 1


class Parts(msgspec.Struct, kw_only=True):
    """``landlock`` is the kernel's ABI version, 0 where it has none; ``boot`` says which boot of the host this is."""

    library: library.Library
    zygote: Zygote
    modules: Modules
    landlock: int
    boot: str

    def capabilities(self) -> list[Capability]:
        return [
            Capability(
                name="compute.wasm",
                available=True,
                value=f"wasmtime {self.library.version}",
                reason=f"lamella-wasm loaded {self.library.path} and made its room",
            ),
            Capability(
                name="compute.wasm.landlock",
                available=self.landlock > 0,
                value=f"ABI {self.landlock}" if self.landlock else "",
                reason="landlock_create_ruleset(2) said so",
            ),
        ]


async def look(home: Home, group: Callable[[str], Cgroup]) -> Parts:
    """:raise Unavailable: when the library or our program is not there, or does not start."""
    found = library.find()
    monitors = group(MONITORS)
    await blocking(monitors.create, Limits())
    zygote = Zygote(found, places.room(home), monitors, home.mark)
    await zygote.open()
    modules = Modules(places.modules(home), found.version, zygote, group)
    await blocking(modules.open)
    return Parts(library=found, zygote=zygote, modules=modules, landlock=landlock(), boot=boot_id())


def landlock() -> int:
    """The kernel's Landlock ABI (Documentation/userspace-api/landlock.rst); 0 when there is none."""
    libc = ctypes.CDLL(None)
    return max(0, int(libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))))
