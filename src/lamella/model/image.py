"""The image: layers and a configuration, found by the digest of their manifest."""

from typing import Annotated

import msgspec
from msgspec import Meta

from lamella.model.resource import Condition, Resource

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


class ImageSpec(msgspec.Struct, kw_only=True):
    """Where the image came from: ``docker://…``, ``file:…`` or ``mmdebstrap:…``."""

    source: str


class ImageStatus(msgspec.Struct, kw_only=True):
    """``digest`` is the manifest's; layers are bottom first; ``size`` is bytes on disk, layers counted whole."""

    digest: str = ""
    architecture: str = ""
    os: str = "linux"
    config: ImageConfig = msgspec.field(default_factory=ImageConfig)
    layers: list[Layer] = []
    size: int = 0
    conditions: list[Condition] = []


Image = Resource[ImageSpec, ImageStatus]
