"""What of the library's content nobody needs, and its removal. Blocking, made for threads."""

from lamella.host.images import manifest
from lamella.host.images.content import Content
from lamella.host.images.manifest import Manifest


def needed(content: Content) -> set[str]:
    """Every digest that an image here stands on."""
    found: set[str] = set()
    for digest in content.image_digests():
        status = content.image(digest)
        found |= {digest, *(layer.diff_id for layer in status.layers)}
        found |= {artifact.digest for artifact in status.artifacts}
        found.add(manifest.read(content.blob(digest).read_bytes(), Manifest, "manifest").config.digest)
    return found


def collect(content: Content, images: set[str], held: set[str]) -> int:
    """Remove all images but *images*, and all that neither they nor *held* need. Returns bytes freed."""
    freed = sum(content.remove_image(digest) for digest in (content.image_digests() | content.derived_names()) - images)
    return freed + _sweep(content, needed(content) | held, None)


def forget(content: Content, digests: set[str]) -> None:
    """Remove what a failed attempt brought and no image needs."""
    _sweep(content, needed(content), digests)


def _sweep(content: Content, wanted: set[str], among: set[str] | None) -> int:
    """Remove what is not *wanted*, of all that is here or *among* some alone."""

    def unneeded(names: set[str]) -> set[str]:
        return (names if among is None else names & among) - wanted

    freed = sum(content.remove_layer(diff_id) for diff_id in unneeded(content.layer_names()))
    freed += sum(content.remove_artifact(digest) for digest in unneeded(content.artifact_names()))
    return freed + sum(content.remove_blob(digest) for digest in unneeded(content.blob_names()))
