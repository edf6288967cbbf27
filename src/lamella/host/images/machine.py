"""The documents of a machine image: what holds disks, a module, a kernel or a CD beside layers, or instead of them.

An OCI manifest of our own artifact type. Its configuration is an image's with two fields more, ``artifacts`` and ``appliance``; its
layers are the root filesystem's, then one descriptor for each artifact, in the order of the configuration. A descriptor names bytes:
those of the file, or a disk's list of chunks (``formats/digest.py``), which can be made again from the disk at any time.
"""

import msgspec

from lamella.host.images.formats.digest import list_size
from lamella.host.images.manifest import (
    OCI_LAYER,
    Configuration,
    Descriptor,
    Manifest,
    Named,
    RootfsDigests,
    architecture,
    digest_of,
)
from lamella.model.image import Appliance, ArtifactKind

ARTIFACT_TYPE = "application/vnd.lamella.machine.v1"
CONFIG = "application/vnd.lamella.machine.config.v1+json"
MEDIA_TYPES = {
    ArtifactKind.DISK: "application/vnd.lamella.disk.chunks.v1",
    ArtifactKind.CDROM: "application/vnd.lamella.cdrom.v1",
    ArtifactKind.MODULE: "application/wasm",
    ArtifactKind.KERNEL: "application/vnd.lamella.kernel.v1",
    ArtifactKind.INITRD: "application/vnd.lamella.initrd.v1",
}


class MachineManifest(Manifest, kw_only=True):
    artifact_type: str = ARTIFACT_TYPE


def machine_configuration(
    artifacts: list[Named], *, base: Configuration | None = None, appliance: Appliance | None = None
) -> bytes:
    """The configuration of an image of *artifacts*, and of the root filesystem of *base* if there is one.

    A module's is for ``wasi/wasm``; disks, kernels and CDs are for this host's architecture and say nothing of an operating system
    but that of *base*: what is on a disk is the disk's own affair. The same content gives the same bytes.
    """
    module = any(one.kind is ArtifactKind.MODULE for one in artifacts)
    made = base or Configuration(
        architecture="wasm" if module else architecture(),
        os="wasi" if module else "",
        rootfs=RootfsDigests(diff_ids=[]),
    )
    return _encode(msgspec.structs.replace(made, artifacts=artifacts, appliance=appliance))


def machine_manifest(configuration: bytes, layers: list[tuple[str, int]], artifacts: list[Named]) -> bytes:
    """The manifest over *configuration*, uncompressed *layers* (diff_id and size of the tar) and *artifacts*."""
    named = [
        Descriptor(
            media_type=MEDIA_TYPES[one.kind],
            digest=one.digest,
            size=list_size(one.size) if one.kind is ArtifactKind.DISK else one.size,
        )
        for one in artifacts
    ]
    manifest = MachineManifest(
        config=Descriptor(media_type=CONFIG, digest=digest_of(configuration), size=len(configuration)),
        layers=[*(Descriptor(media_type=OCI_LAYER, digest=diff_id, size=size) for diff_id, size in layers), *named],
    )
    return _encode(manifest)


def _encode(document: msgspec.Struct) -> bytes:
    return msgspec.json.encode(_without_nothing(msgspec.to_builtins(document)), order="sorted")


def _without_nothing(value: object) -> object:
    """Fields that are null are left out, as the specification has it."""
    if isinstance(value, dict):
        return {key: _without_nothing(item) for key, item in value.items() if item is not None}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, list):
        return [_without_nothing(item) for item in value]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return value
