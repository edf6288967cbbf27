"""Images in a file or directory: what a source holds and what has to be read of it (OCI image-layout; ``docker save``).

Nothing is unpacked here: the outcome is a :class:`Found`, which names layers and where their bytes are.
"""

import msgspec

from lamella.host.images import manifest
from lamella.host.images.archive import Source, read_document
from lamella.host.images.manifest import Configuration, Descriptor, Index, Manifest, Named
from lamella.model.errors import Corrupt, Invalid, Unsupported
from lamella.model.image import ArtifactKind

_DEEPEST = 4


class Piece(msgspec.Struct, kw_only=True, frozen=True):
    """One layer: ``name`` is its file in the source, ``digest`` that of the file, where it is known."""

    diff_id: str
    name: str
    digest: str = ""


class Found(msgspec.Struct, kw_only=True):
    """An image in a source. ``manifest`` is empty where the format has none: it is written once the layers are known.

    With ``module`` it is a WebAssembly artefact and has no pieces.
    """

    manifest: bytes
    configuration: bytes
    parsed: Configuration
    pieces: list[Piece]
    module: Descriptor | None = None

    @property
    def module_name(self) -> str:
        """The file in the source that is the WebAssembly module, where the image is one."""
        return _path(self.module.digest) if self.module else ""


class Saved(msgspec.Struct, rename="pascal", kw_only=True):
    """One image of a docker archive's ``manifest.json``."""

    config: str
    repo_tags: list[str] | None = None
    layers: list[str]


def find(source: Source) -> Found | None:
    """The one image in *source*; ``None`` when it is no archive of images (it may be a root filesystem).

    :raise Invalid: when there are several.
    :raise Corrupt: when it contradicts itself.
    """
    if source.has("oci-layout") and source.has("index.json"):
        return _oci(source)
    if source.has("manifest.json"):
        try:
            saved = msgspec.json.decode(
                read_document(source, "manifest.json", manifest.LARGEST_DOCUMENT), type=list[Saved]
            )
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        return _docker(source, saved)
    return None


def _blob(source: Source, descriptor: Descriptor, what: str) -> bytes:
    if descriptor.size > manifest.LARGEST_DOCUMENT:
        raise Corrupt(f"the {what} is {descriptor.size} bytes", hint="no honest one is so big")
    data = read_document(source, _path(descriptor.digest), descriptor.size)
    if len(data) != descriptor.size:
        raise Corrupt(f"the {what} has {len(data)} bytes, not {descriptor.size}", hint="the image is damaged or lies")
    return manifest.check_digest(data, descriptor.digest, what)


def _path(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _oci(source: Source) -> Found:
    index = manifest.read(read_document(source, "index.json", manifest.LARGEST_DOCUMENT), Index, "layout's index")
    data, chosen = _chosen(source, index, 0)
    configuration = _blob(source, chosen.config, "image's configuration")
    module = manifest.module_layer(chosen)
    if module is not None:
        named = Named(kind=ArtifactKind.MODULE, digest=module.digest, size=module.size)
        parsed = manifest.module_configuration(configuration, named)
        return Found(manifest=data, configuration=configuration, parsed=parsed, pieces=[], module=module)
    parsed = manifest.read_configuration(configuration, len(chosen.layers))
    pieces = [
        Piece(diff_id=diff_id, name=_path(layer.digest), digest=layer.digest)
        for diff_id, layer in zip(parsed.rootfs.diff_ids, chosen.layers, strict=True)
    ]
    return Found(manifest=data, configuration=configuration, parsed=parsed, pieces=pieces)


def _chosen(source: Source, index: Index, depth: int) -> tuple[bytes, Manifest]:
    if depth > _DEEPEST:
        raise Corrupt("the layout's indexes lead ever deeper", hint="the image contradicts itself")
    ours = {one.digest: one for one in manifest.choose(index.manifests, "the image")}
    if len(ours) > 1:
        names = [
            (one.annotations or {}).get("org.opencontainers.image.ref.name", one.digest[:19]) for one in ours.values()
        ]
        raise Invalid(
            f"the layout holds {len(ours)} images: {', '.join(names[:12])}",
            hint="export the one you want",
            field="source",
        )
    data = _blob(source, next(iter(ours.values())), "manifest")
    found = manifest.read_manifest(data, "manifest")
    return _chosen(source, found, depth + 1) if isinstance(found, Index) else (data, found)


def _docker(source: Source, saved: list[Saved]) -> Found:
    images = {one.config: one for one in saved}
    if not images:
        raise Corrupt("the docker archive holds no image", hint="export it again")
    if len(images) > 1:
        names = [tag for one in images.values() for tag in one.repo_tags or [one.config[:19]]]
        raise Invalid(
            f"the archive holds {len(images)} images: {', '.join(names[:12])}",
            hint="save the one you want",
            field="source",
        )
    one = next(iter(images.values()))
    configuration = read_document(source, one.config, manifest.LARGEST_DOCUMENT)
    named = one.config.removeprefix("blobs/sha256/").removesuffix(".json")
    if len(named) != 64 or named.strip("0123456789abcdef"):
        raise Unsupported(
            "the archive does not name its configuration by digest", hint="save it with a docker of this decade"
        )
    manifest.check_digest(configuration, f"sha256:{named}", "image's configuration")
    parsed = manifest.read_configuration(configuration, len(one.layers))
    pieces = [
        Piece(diff_id=diff_id, name=name) for diff_id, name in zip(parsed.rootfs.diff_ids, one.layers, strict=True)
    ]
    return Found(manifest=b"", configuration=configuration, parsed=parsed, pieces=pieces)
