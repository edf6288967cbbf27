"""The image library of one host, as others use it.

Content is addressed by digest: manifests and configurations as files, layers unpacked once into directories shared by every level.
"""

from collections.abc import AsyncIterator, Callable
from typing import Protocol

import msgspec

from lamella.host.compute.driver import Rootfs
from lamella.model.image import ImageStatus


class Progress(msgspec.Struct, kw_only=True):
    """How far a long step is; ``total`` 0 is not known, ``unit`` is ``B`` or empty."""

    step: str
    done: int = 0
    total: int = 0
    unit: str = "B"


Report = Callable[[Progress], None]


class Credentials(msgspec.Struct, kw_only=True):
    """For a registry; never stored, never logged."""

    username: str
    password: str


class ImageLibrary(Protocol):
    """Every verb that fails leaves nothing behind, and the error is a sentence (:class:`Corrupt`, :class:`NotFound`, …)."""

    async def open(self) -> None:
        """Make ready; what an interrupted pull or build left half-made is removed (resumable blobs stay)."""
        ...

    async def pull(
        self, reference: str, report: Report, *, credentials: Credentials | None = None, insecure: bool = False
    ) -> ImageStatus:
        """Fetch ``docker://HOST/NAME[:TAG|@DIGEST]`` for this host's architecture. *insecure* allows plain HTTP beyond loopback."""
        ...

    async def import_file(self, path: str, report: Report, *, initrd: str = "") -> ImageStatus:
        """Take in a file or directory of this host: OCI layout (directory or tar), docker archive, the tar of a root filesystem, a
        disk (qcow2, raw, vmdk, vdi, vhdx), an OVA, an ISO, a WebAssembly module, or a kernel (ELF), with *initrd* if that has one.
        """
        ...

    async def build(self, name: str, report: Report, *, packages: list[str], disk: bool = False) -> ImageStatus:
        """Make a Debian root with ``mmdebstrap``; *name* is ``debian:12``, ``debian:13``, ``debian:bookworm``, …

        With *disk*, the same root on a bootable disk too (BIOS and UEFI), with a kernel, cloud-init, an SSH server and our agent.
        """
        ...

    def export(self, digest: str, format: str) -> AsyncIterator[bytes]:
        """The image's first disk as a file of *format* (``qcow2``, ``raw``, ``vmdk``, ``vdi``, ``vhdx``), or its module, kernel or CD as
        it is (``file``).

        :raise Invalid: when the image has none, or *format* is not known.
        """
        ...

    async def rootfs(self, digest: str) -> Rootfs:
        """:raise NotFound: when the image is not here."""
        ...

    async def inventory(self) -> set[str]:
        """Digests of the images that are here."""
        ...

    async def collect(self, keep: set[str]) -> int:
        """Remove every image whose digest is not in *keep*, then every layer, blob and derived file that
        no image needs. Returns bytes freed.

        Never takes what a pull, import or build in flight has brought.
        """
        ...
