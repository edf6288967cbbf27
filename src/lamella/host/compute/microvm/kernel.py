"""The kernel that guests boot: the distribution's, for clouds, taken from its package without installing it."""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import msgspec

from lamella.model.errors import Unavailable

_APT = ["-q", "-o", "APT::Sandbox::User=root"]
_TIMEOUT = 600


class KernelTree(msgspec.Struct, kw_only=True, frozen=True):
    """An unpacked kernel package."""

    path: Path
    version: str

    @property
    def image(self) -> Path:
        return self.path / "boot" / f"vmlinuz-{self.version}"

    @property
    def modules(self) -> Path:
        """Debian 13 has /usr/lib/modules, Debian 12 /lib/modules."""
        places = [self.path / place / "modules" / self.version for place in ("usr/lib", "lib")]
        return next((place for place in places if (place / "kernel").is_dir()), places[-1])


def kernel_tree(path: Path) -> KernelTree:
    """What a kernel package left in *path*.

    :raise Unavailable: when there is no kernel in it.
    """
    images = sorted(path.glob("boot/vmlinuz-*"))
    if not images:
        raise Unavailable(f"there is no kernel in {path}", hint="remove that directory and run ./dev setup again")
    return KernelTree(path=path, version=images[-1].name.removeprefix("vmlinuz-"))


def fetch_kernel(destination: Path) -> KernelTree:
    """Unpack the newest linux-image-cloud package of this distribution into *destination*; one that is there already is kept.

    :raise Unavailable: when apt cannot deliver it.
    """
    if destination.is_dir():
        return kernel_tree(destination)
    architecture = _run(["dpkg", "--print-architecture"]).strip()
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent) as scratch:
        work = Path(scratch)
        try:
            _download(architecture, work)
        except Unavailable:
            _run(["apt-get", *_APT, "update"])  # the lists may name a version that has been superseded
            _download(architecture, work)
        tree = work / "tree"
        _run(["dpkg-deb", "-x", str(next(work.glob("*.deb"))), str(tree)])
        found = kernel_tree(tree)
        for part in ("usr/share", "boot/System.map-" + found.version):
            _forget(tree / part)
        tree.rename(destination)
    return kernel_tree(destination)


def real_package(description: str) -> str:
    """The package that the metapackage's *description* (apt-cache show) depends on.

    :raise Unavailable: when it names none.
    """
    match = re.search(r"^Depends:.*?\b(linux-image-[0-9][\w.+-]*)", description, re.MULTILINE)
    if match is None:
        raise Unavailable("apt knows no kernel for clouds", hint="run apt-get update, and look at your apt sources")
    return match[1]


def _download(architecture: str, into: Path) -> None:
    description = _run(["apt-cache", "show", "--no-all-versions", f"linux-image-cloud-{architecture}"])
    _run(["apt-get", *_APT, "download", real_package(description)], cwd=into)


def _forget(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _run(argv: list[str], *, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{argv[0]} could not be run: {error}") from error
    if done.returncode != 0:
        raise Unavailable(f"{' '.join(argv[:2])} failed: {done.stderr.strip()[-500:]}", hint="is the network there?")
    return done.stdout
