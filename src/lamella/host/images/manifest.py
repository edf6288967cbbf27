"""The documents of an image: index, manifest and configuration (OCI image-spec 1.1; Docker image manifest v2, schema 2).

Types for what is read, and pure functions from them to what the model knows.
"""

import hashlib
import platform
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from lamella.model.errors import Corrupt, Unsupported
from lamella.model.image import Appliance, ArtifactKind, Digest, ImageConfig

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
ACCEPTED = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)
LARGEST_DOCUMENT = 4 << 20
# What a WebAssembly artefact's layer is called: by the CNCF's guidance, and by the tools before it.
_MODULE_TYPES = ("application/wasm", "application/vnd.wasm.", "application/vnd.module.wasm.")
_WASI = (("wasi", "wasip1", "wasip2"), ("wasm", "wasm32"))
_MOST_LAYERS = 500  # overlayfs takes as many below one mount

Size = Annotated[int, Meta(ge=0)]
T = TypeVar("T")


class Platform(msgspec.Struct):
    architecture: str = ""
    os: str = ""
    variant: str = ""


class Descriptor(msgspec.Struct, rename="camel", kw_only=True):
    """What points at content: its type, its digest, its size in bytes as stored."""

    media_type: str = ""
    digest: Digest
    size: Size
    platform: Platform | None = None
    annotations: dict[str, str] | None = None


class Index(msgspec.Struct, rename="camel", kw_only=True):
    schema_version: int = 2
    manifests: list[Descriptor]


class Manifest(msgspec.Struct, rename="camel", kw_only=True):
    schema_version: int = 2
    media_type: str = OCI_MANIFEST
    config: Descriptor
    layers: list[Descriptor]


class Process(msgspec.Struct, rename="pascal", kw_only=True):
    """The ``config`` of an image configuration: what it says of the process that it wants run."""

    user: str | None = ""
    exposed_ports: dict[str, msgspec.Raw] | None = None
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    working_dir: str | None = ""
    labels: dict[str, str] | None = None
    stop_signal: str | None = ""


class Named(msgspec.Struct, kw_only=True):
    """An artifact as the configuration of a machine image names it: the digest and size of what a guest reads."""

    kind: ArtifactKind
    digest: Digest
    size: Size


class RootfsDigests(msgspec.Struct, kw_only=True):
    type: str = "layers"
    diff_ids: list[Digest]


class Configuration(msgspec.Struct, kw_only=True):
    """``artifacts`` and ``appliance`` are in machine images alone (``machine.py``)."""

    architecture: str
    os: str
    variant: str = ""
    config: Process | None = None
    rootfs: RootfsDigests
    artifacts: list[Named] = []
    appliance: Appliance | None = None


class _Said(msgspec.Struct):
    config: Process | None = None


class Kind(msgspec.Struct, rename="camel"):
    """Enough of a document to tell which one it is."""

    media_type: str = ""
    schema_version: int = 2
    manifests: list[msgspec.Raw] | None = None
    layers: list[msgspec.Raw] | None = None


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def check_digest(data: bytes, digest: str, what: str) -> bytes:
    """*data*, when it is what *digest* names.

    :raise Corrupt: otherwise.
    """
    if digest_of(data) != digest:
        raise Corrupt(
            f"the {what} is not what its digest {digest} names",
            hint="the source is damaged or lies; fetch it from elsewhere",
        )
    return data


def read(data: bytes, type: type[T], what: str) -> T:
    """*data* as a document of *type*.

    :raise Corrupt: when it is not one.
    """
    try:
        return msgspec.json.decode(data, type=type)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"the {what} cannot be read: {error}", hint="the source is damaged, or not an image") from error


def read_manifest(data: bytes, what: str) -> Manifest | Index:
    """An index of several architectures, or the manifest of one.

    :raise Unsupported: when it is a manifest of another time or of another thing than an image.
    """
    kind = read(data, Kind, what)
    if kind.schema_version != 2:
        raise Unsupported(
            f"the {what} is of Docker's schema {kind.schema_version}", hint="push it again with a tool of this decade"
        )
    if kind.manifests is not None and kind.layers is None:
        return read(data, Index, what)
    manifest = read(data, Manifest, what)
    if manifest.config.media_type not in (OCI_CONFIG, DOCKER_CONFIG) and module_layer(manifest) is None:
        raise Unsupported(
            f"the {what} is of {manifest.config.media_type!r}, not of an image",
            hint="name an image with a root filesystem, or a WebAssembly artefact",
        )
    if len(manifest.layers) > _MOST_LAYERS:
        raise Unsupported(
            f"the image has {len(manifest.layers)} layers", hint=f"at most {_MOST_LAYERS} can be mounted; squash it"
        )
    for layer in manifest.layers:
        if (
            "foreign" in layer.media_type
            or "nondistributable" in layer.media_type
            or layer.media_type.endswith("+encrypted")
        ):
            raise Unsupported(
                f"a layer is of {layer.media_type!r}", hint="only layers that anybody may read can be unpacked"
            )
    return manifest


def module_layer(manifest: Manifest) -> Descriptor | None:
    """The layer that is a WebAssembly module or component itself; ``None`` in an image of file trees.

    :raise Unsupported: when there are several.
    """
    found = [
        layer
        for layer in manifest.layers
        if layer.media_type.startswith(_MODULE_TYPES) or layer.media_type.endswith("+wasm")
    ]
    if len(found) > 1:
        raise Unsupported(f"the artefact has {len(found)} modules", hint="only one can be run: compose them first")
    return found[0] if found else None


def module_configuration(data: bytes, module: Named) -> Configuration:
    """The configuration of a WebAssembly artefact, whatever kind of document *data* is: only what it may say of the process counts."""
    try:
        process = msgspec.json.decode(data, type=_Said).config
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        process = None
    return Configuration(
        architecture="wasm", os="wasi", config=process, rootfs=RootfsDigests(diff_ids=[]), artifacts=[module]
    )


def read_configuration(data: bytes, layers: int) -> Configuration:
    """The configuration of an image of *layers* layers; for ``wasi/wasm`` by whatever name when its layers hold a module.

    :raise Corrupt: when it is not one, or tells another number of layers.
    :raise Unsupported: when it is for another machine than this.
    """
    configuration = read(data, Configuration, "image's configuration")
    if len(configuration.rootfs.diff_ids) != layers:
        raise Corrupt(
            f"the configuration names {len(configuration.rootfs.diff_ids)} layers and the manifest {layers}",
            hint="the image contradicts itself",
        )
    if configuration.os in _WASI[0] and configuration.architecture in _WASI[1]:
        return msgspec.structs.replace(configuration, os="wasi", architecture="wasm")
    if configuration.os != "linux" or configuration.architecture != architecture():
        raise Unsupported(
            f"the image is for {configuration.os}/{configuration.architecture}, this host is linux/{architecture()}",
            hint="name an image for this architecture",
        )
    return configuration


_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


def architecture() -> str:
    """This host's, as images write it (GOARCH)."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def choose(manifests: list[Descriptor], what: str) -> list[Descriptor]:
    """Those for this host; one that names no platform may be for anybody, and WebAssembly runs anywhere. Attestations and the like
    name ``unknown``.

    :raise Unsupported: when there is none.
    """
    ours = [
        one
        for one in manifests
        if one.platform and (one.platform.os, one.platform.architecture) == ("linux", architecture())
    ]
    wasi = [
        one
        for one in manifests
        if one.platform and one.platform.os in _WASI[0] and one.platform.architecture in _WASI[1]
    ]
    chosen = ours or [one for one in manifests if one.platform is None] or wasi
    if not chosen:
        has = sorted(
            {f"{one.platform.os}/{one.platform.architecture}" for one in manifests if one.platform}
            - {"unknown/unknown"}
        )
        raise Unsupported(
            f"{what} is not there for linux/{architecture()}, only for {', '.join(has[:12]) or 'nothing'}",
            hint="name an image for this architecture",
        )
    return chosen


def image_config(configuration: Configuration) -> ImageConfig:
    """What the model keeps of *configuration*."""
    process = configuration.config or Process()
    return ImageConfig(
        entrypoint=process.entrypoint or [],
        command=process.cmd or [],
        environment=process.env or [],
        working_directory=process.working_dir or "/",
        user=process.user or "",
        stop_signal=process.stop_signal or "SIGTERM",
        exposed_ports=sorted(process.exposed_ports or {}),
        labels=process.labels or {},
    )


def configuration_for(diff_id: str, command: list[str]) -> bytes:
    """The configuration of a root filesystem that came without one. The same root gives the same bytes."""
    process = {
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "Cmd": command,
        "WorkingDir": "/",
    }
    return msgspec.json.encode(
        {
            "architecture": architecture(),
            "os": "linux",
            "config": process,
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        },
        order="sorted",
    )


def manifest_for(configuration: bytes, layers: list[tuple[str, int]]) -> bytes:
    """A manifest for *configuration* over uncompressed *layers* (diff_id and size of the tar), for archives that carry none."""
    manifest = Manifest(
        config=Descriptor(media_type=OCI_CONFIG, digest=digest_of(configuration), size=len(configuration)),
        layers=[Descriptor(media_type=OCI_LAYER, digest=diff_id, size=size) for diff_id, size in layers],
    )
    return msgspec.json.encode(msgspec.json.decode(msgspec.json.encode(manifest)), order="sorted")
