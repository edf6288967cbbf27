"""The image: layers, disks, modules or kernels, and a configuration, found by the digest of their manifest."""

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from lamella.model.board import Firmware, Hardware
from lamella.model.resource import Condition, Resource

# The image of nothing: a machine without a disk of an image, as docker's ``scratch`` is without a layer.
SCRATCH_NAME = "scratch"
SCRATCH = "sha256:" + "0" * 64

Digest = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}$(?!\n)")]


class ImageConfig(msgspec.Struct, kw_only=True):
    """What an image says of the process that it wants run (OCI image-spec, config.md). ``environment`` keeps the order."""

    entrypoint: list[str] = []
    command: list[str] = []
    environment: list[str] = []
    working_directory: str = "/"
    user: str = ""
    stop_signal: str = "SIGTERM"
    exposed_ports: list[str] = []
    labels: dict[str, str] = {}


class Layer(msgspec.Struct, kw_only=True):
    """One layer: ``diff_id`` is the digest of its uncompressed tar, ``size`` what it takes unpacked, in bytes."""

    diff_id: Digest
    size: int


class ArtifactKind(StrEnum):
    """What an image can hold beside layers."""

    DISK = "disk"
    CDROM = "cdrom"
    MODULE = "module"
    KERNEL = "kernel"
    INITRD = "initrd"


class Artifact(msgspec.Struct, kw_only=True):
    """``digest`` is of the bytes that a guest reads (a disk's: docs/images.md), ``size`` counts them, ``stored`` is what they take on
    this host's disk."""

    kind: ArtifactKind
    digest: Digest
    size: int
    stored: int


class Appliance(msgspec.Struct, kw_only=True):
    """The machine that an image was made for (an OVF says so): defaults for whoever runs it.

    ``cpu`` in milli-cores, ``memory`` in bytes.
    """

    cpu: int | None = None
    memory: int | None = None
    nics: int = 1
    firmware: Firmware = Firmware.BIOS
    secure_boot: bool = False
    hardware: Hardware = Hardware.VIRTIO


class ImageSpec(msgspec.Struct, kw_only=True):
    """Where the image came from: ``docker://…``, ``file:…`` or ``mmdebstrap:…``."""

    source: str


class ImageStatus(msgspec.Struct, kw_only=True):
    """``digest`` is the manifest's; layers are bottom first, artifacts in the order in which a machine has them; ``size`` is bytes on
    disk, layers counted whole. ``os`` ``wasi`` marks layers that hold a WebAssembly module."""

    digest: str = ""
    architecture: str = ""
    os: str = "linux"
    config: ImageConfig = msgspec.field(default_factory=ImageConfig)
    layers: list[Layer] = []
    artifacts: list[Artifact] = []
    appliance: Appliance | None = None
    size: int = 0
    conditions: list[Condition] = []


Image = Resource[ImageSpec, ImageStatus]
