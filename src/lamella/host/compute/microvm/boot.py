"""Kernel and initramfs that every microVM boots: from Debian's cloud kernel package and our agent.

``python -m lamella.host.compute.microvm.boot DIRECTORY`` makes them (``./dev setup`` calls it); :func:`boot_files` finds them.
"""

import hashlib
import stat
import sys
from pathlib import Path

import msgspec

from lamella.host.compute.microvm import initramfs
from lamella.host.compute.microvm.kernel import KernelTree, fetch_kernel
from lamella.host.compute.microvm.modules import CHANNEL, REST, Module, ModuleTree
from lamella.host.linux import binaries
from lamella.model.errors import LamellaError, Unavailable

_DESCRIPTION = "boot.json"


class BootFiles(msgspec.Struct, kw_only=True, frozen=True):
    """``digest`` names the pair: it changes when kernel, modules or agent do."""

    kernel: Path
    initramfs: Path
    kernel_version: str
    digest: str


def boot_files(state: Path) -> BootFiles:
    """The boot files under *state* (Home.state), else beside our own programs.

    :raise Unavailable: when they were never made (``./dev setup`` makes them).
    """
    places = [state / "boot", *(place.parent / "boot" for place in binaries.places()), binaries.INSTALLED / "boot"]
    for place in places:
        try:
            found = msgspec.json.decode((place / _DESCRIPTION).read_bytes(), type=BootFiles, dec_hook=_path)
        except (OSError, msgspec.MsgspecError):
            continue
        files = msgspec.structs.replace(found, kernel=place / found.kernel, initramfs=place / found.initramfs)
        if files.kernel.is_file() and files.initramfs.is_file():
            return files
    raise Unavailable(
        f"there is no kernel for microVMs in {', '.join(str(place) for place in places)}",
        hint="make it with ./dev setup",
    )


def build_boot(directory: Path, tree: KernelTree, agent: Path) -> BootFiles:
    """Write kernel and initramfs into *directory*, under names that say their content; old ones are left to running guests.

    :raise Unavailable: when the kernel lacks something that a guest needs.
    """
    kernel = tree.image.read_bytes()
    archive = make_initramfs(ModuleTree(tree.modules), agent.read_bytes())
    digest = hashlib.sha256(kernel + archive).hexdigest()
    files = BootFiles(
        kernel=Path(f"vmlinuz-{tree.version}"),
        initramfs=Path(f"initramfs-{digest[:16]}"),
        kernel_version=tree.version,
        digest=f"sha256:{digest}",
    )
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory / files.kernel, kernel)
    _write(directory / files.initramfs, archive)
    _write(directory / _DESCRIPTION, msgspec.json.encode(files, enc_hook=str))
    return msgspec.structs.replace(files, kernel=directory / files.kernel, initramfs=directory / files.initramfs)


def make_initramfs(tree: ModuleTree, agent: bytes) -> bytes:
    """The archive: the agent as /init, the modules that it loads, and the list that says in which order."""
    done: set[str] = set()
    channel = tree.ordered(CHANNEL, done)
    rest = tree.ordered(REST, done)
    listing = "".join([*map(_line, channel), "-\n", *map(_line, rest)])
    console = initramfs.Entry(path="dev/console", mode=stat.S_IFCHR | 0o600, device=(5, 1))
    directories = [initramfs.directory(path) for path in ("dev", "etc", "modules", "proc", "sys")]
    return initramfs.archive(
        [
            *directories,
            console,
            initramfs.file("init", agent, 0o755),
            initramfs.file("etc/modules", listing.encode()),
            *(initramfs.file(f"modules/{module.name}.ko", module.content) for module in [*channel, *rest]),
        ]
    )


def _path(kind: type, value: object) -> object:
    return kind(value)


def _line(module: Module) -> str:
    return f"/modules/{module.name}.ko {module.condition}".rstrip() + "\n"


def _write(path: Path, content: bytes) -> None:
    if path.exists() and path.read_bytes() == content:
        return
    new = path.with_name(path.name + ".new")
    new.write_bytes(content)
    new.chmod(0o644)
    new.replace(path)


def main(arguments: list[str]) -> int:
    """Make the boot files in the directory that the only argument names."""
    if len(arguments) != 1:
        print("usage: python -m lamella.host.compute.microvm.boot DIRECTORY", file=sys.stderr)
        return 2
    directory = Path(arguments[0])
    try:
        tree = fetch_kernel(directory / "kernel")
        files = build_boot(directory, tree, binaries.own("lamella-agent"))
    except LamellaError as error:
        print(f"boot: {error}", file=sys.stderr)
        return 1
    print(f"kernel {files.kernel_version}, initramfs {files.initramfs.stat().st_size >> 10} KiB, {files.digest[:23]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
