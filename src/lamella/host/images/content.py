"""Where everything lies under the library's directory, and how it gets there and goes.

::

    blobs/sha256/HEX      manifests and configurations, and layers as they came until they are unpacked
    partial/HEX           blobs that a pull has begun
    layers/HEX            an unpacked layer, named by its diff_id: a lower directory for overlayfs
    layers/HEX.json       its sizes
    artifacts/HEX         a disk (raw), module, kernel or CD, named by its digest; read-only
    images/HEX.json       an image: its presence says that all of it is here
    derived/HEX/          what others made from an image once (a block image), gone with it
    scratch/              work in hand; emptied by every start

Whatever is in its place is whole: it was written elsewhere, made durable, and renamed. Blocking, made for threads.
"""

import os
import secrets
import subprocess
import tempfile
from pathlib import Path

import msgspec

from lamella.model.errors import Corrupt, NotFound, Unavailable
from lamella.model.image import ImageStatus

# The user and group that converts disks. No instance has this id: their ranges begin above it (control/addressing.py).
CONVERTER = 0x6FFF_FF00


class LayerRecord(msgspec.Struct, kw_only=True):
    """``size`` is bytes unpacked, ``length`` those of the tar."""

    size: int
    length: int


def hexadecimal(digest: str) -> str:
    """The bare hash: a path with a colon would end an overlay's list of layers."""
    return digest.removeprefix("sha256:")


class Content:
    """Everything by its digest. Only paths and whole files: who may go when is not decided here."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._blobs = path / "blobs" / "sha256"
        self._partial = path / "partial"
        self._layers = path / "layers"
        self._artifacts = path / "artifacts"
        self._images = path / "images"
        self._derived = path / "derived"
        self._scratch = path / "scratch"

    def open(self) -> None:
        """Make the directories, and clear what an interrupted run left half-made.

        :raise Unavailable: when the path cannot be used.
        """
        try:
            # Layers hold set-id programs that nobody of the host may run; what is derived is read by unprivileged processes.
            for folder in (
                self._blobs,
                self._partial,
                self._layers,
                self._artifacts,
                self._images,
                self._derived,
                self._scratch,
            ):
                folder.mkdir(parents=True, exist_ok=True)
            for folder, mode in (
                (self.path, 0o711),
                (self._layers, 0o700),
                (self._artifacts, 0o700),
                (self._scratch, 0o700),
                (self._derived, 0o711),
            ):
                folder.chmod(mode)
            for left in self._scratch.iterdir():
                remove(left)
            for record in self._layers.glob("*.json"):
                if not record.with_suffix("").is_dir():
                    record.unlink()
            for folder in self._layers.iterdir():
                if folder.is_dir() and not folder.with_suffix(".json").exists():
                    remove(folder)
            for image in self.image_digests():
                if not self._complete(image):
                    self.remove_image(image)
        except OSError as error:
            raise Unavailable(
                f"the image library at {self.path} cannot be used: {error}", hint="it needs a writable directory"
            ) from error

    def _complete(self, digest: str) -> bool:
        try:
            image = self.image(digest)
            return (
                self.blob(digest).exists()
                and all(self.has_layer(layer.diff_id) for layer in image.layers)
                and all(self.has_artifact(artifact.digest) for artifact in image.artifacts)
            )
        except (Corrupt, NotFound):
            return False

    def scratch_path(self) -> Path:
        """Where a directory for work in hand may be made, on the same filesystem as everything; for the caller to make and remove."""
        return self._scratch / secrets.token_hex(8)

    # Blobs

    def blob(self, digest: str) -> Path:
        return self._blobs / hexadecimal(digest)

    def partial(self, digest: str) -> Path:
        return self._partial / hexadecimal(digest)

    def write_blob(self, digest: str, data: bytes) -> None:
        self._write(self.blob(digest), data)

    def commit_partial(self, digest: str) -> Path:
        """A partial blob, found whole and true, takes its place."""
        with self.partial(digest).open("rb") as file:
            os.fsync(file.fileno())
        self.partial(digest).rename(self.blob(digest))
        _sync(self._blobs)
        return self.blob(digest)

    def blob_names(self) -> set[str]:
        """Digests of all blobs, whole or begun."""
        return {f"sha256:{path.name}" for folder in (self._blobs, self._partial) for path in folder.iterdir()}

    def remove_blob(self, digest: str) -> int:
        """Whole or begun. Returns bytes freed."""
        freed = 0
        for path in (self.blob(digest), self.partial(digest)):
            if path.exists():
                freed += path.stat().st_size
                path.unlink()
        return freed

    # Layers

    def layer(self, diff_id: str) -> Path:
        return self._layers / hexadecimal(diff_id)

    def has_layer(self, diff_id: str) -> bool:
        return self.layer(diff_id).is_dir()

    def layer_record(self, diff_id: str) -> LayerRecord:
        try:
            return msgspec.json.decode(self.layer(diff_id).with_suffix(".json").read_bytes(), type=LayerRecord)
        except (OSError, msgspec.DecodeError):
            return LayerRecord(size=0, length=0)

    def commit_layer(self, diff_id: str, root: Path, record: LayerRecord) -> None:
        """The unpacked *root*, already durable, takes its place as *diff_id*."""
        self._write(self.layer(diff_id).with_suffix(".json"), msgspec.json.encode(record))
        root.rename(self.layer(diff_id))
        _sync(self._layers)

    def layer_names(self) -> set[str]:
        return {f"sha256:{path.name}" for path in self._layers.iterdir() if path.suffix != ".json"}

    def remove_layer(self, diff_id: str) -> int:
        """Out of its place first: a layer half removed would be taken for a whole one."""
        size = self.layer_record(diff_id).size
        scratch = self.scratch_path()
        self.layer(diff_id).rename(scratch)
        self.layer(diff_id).with_suffix(".json").unlink(missing_ok=True)
        remove(scratch)
        return size

    # Artifacts

    def artifact(self, digest: str) -> Path:
        return self._artifacts / hexadecimal(digest)

    def has_artifact(self, digest: str) -> bool:
        return self.artifact(digest).is_file()

    def artifact_stored(self, digest: str) -> int:
        """Bytes that it takes on this disk: less than its size where it has holes."""
        return self.artifact(digest).stat().st_blocks * 512

    def commit_artifact(self, digest: str, file: Path) -> None:
        """*file*, on the same filesystem, takes its place as *digest*: owned by us, durable, and never written again.

        Its directory is open to nobody; the group is that of the converter, which is shown it in a room of its own.
        """
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchmod(descriptor, 0o440)
            if os.geteuid() == 0:
                os.fchown(descriptor, 0, CONVERTER)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        file.rename(self.artifact(digest))
        _sync(self._artifacts)

    def artifact_names(self) -> set[str]:
        return {f"sha256:{path.name}" for path in self._artifacts.iterdir()}

    def remove_artifact(self, digest: str) -> int:
        """Returns bytes freed."""
        freed = self.artifact_stored(digest)
        self.artifact(digest).unlink()
        return freed

    # Images

    def image(self, digest: str) -> ImageStatus:
        """:raise NotFound: when it is not here. :raise Corrupt: when its record cannot be read."""
        try:
            return msgspec.json.decode(self._record(digest).read_bytes(), type=ImageStatus)
        except FileNotFoundError:
            raise NotFound(f"image {digest} is not on this host", hint="pull, import or build it first") from None
        except msgspec.DecodeError as error:
            raise Corrupt(f"the record of image {digest} is damaged: {error}", hint="fetch the image again") from error

    def has_image(self, digest: str) -> bool:
        return self._record(digest).exists()

    def write_image(self, status: ImageStatus) -> None:
        self._write(self._record(status.digest), msgspec.json.encode(status))

    def image_digests(self) -> set[str]:
        return {f"sha256:{path.stem}" for path in self._images.glob("*.json")}

    def remove_image(self, digest: str) -> int:
        """The record first, so that what follows is rubbish and not a broken image; then what was derived from it."""
        self._record(digest).unlink(missing_ok=True)
        derived = self.derived(digest)
        if not derived.exists():
            return 0
        size = _disk_usage(derived)
        remove(derived)
        return size

    def derived(self, digest: str) -> Path:
        return self._derived / hexadecimal(digest)

    def derived_names(self) -> set[str]:
        return {f"sha256:{path.name}" for path in self._derived.iterdir()}

    def _record(self, digest: str) -> Path:
        return self._images / f"{hexadecimal(digest)}.json"

    def _write(self, path: Path, data: bytes) -> None:
        descriptor, name = tempfile.mkstemp(dir=self._scratch)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).rename(path)
        _sync(path.parent)


def remove(path: Path) -> None:
    """Take away a file or a tree, whatever its depth; gone already is fine.

    By rm(1): the standard library recurses, and a tree from a stranger may be deeper than any stack.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        subprocess.run(["rm", "-rf", "--one-file-system", "--", str(path)], check=True, capture_output=True)


def _disk_usage(path: Path) -> int:
    found = subprocess.run(["du", "-sx", "-B1", "--", str(path)], check=False, capture_output=True).stdout
    digits = found.split(b"\t", 1)[0]
    return int(digits) if digits.isdigit() else 0


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
