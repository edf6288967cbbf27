"""What the converter is told, what its end means, and that what is exported fits what the image has."""

from pathlib import Path

import pytest

from lamella.host.images.exporting import choose
from lamella.host.images.formats.convert import Input, failure, image_options, seconds
from lamella.model.errors import Corrupt, DeadlineExceeded, Invalid
from lamella.model.image import Artifact, ArtifactKind, ImageStatus

DIGEST = f"sha256:{'a' * 64}"


def source(driver: str, **fields: object) -> Input:
    return Input(path=Path("/p"), driver=driver, **{"size": 1 << 20, "length": 4096, **fields})  # type: ignore[arg-type]


def test_the_format_is_always_named() -> None:
    assert image_options(source("qcow2")) == "driver=qcow2,file.driver=file,file.filename=/input"
    assert image_options(source("raw")) == "driver=raw,file.driver=file,file.filename=/input"
    assert image_options(source("vmdk", offset=1536)) == (
        "driver=vmdk,file.driver=raw,file.offset=1536,file.size=4096,file.file.driver=file,file.file.filename=/input"
    )
    assert image_options(source("raw", offset=512, length=600)) == (
        "driver=raw,offset=512,size=1024,file.driver=file,file.filename=/input"
    )
    assert "force_size_calc=current_size" in image_options(source("vpc", options={"force_size_calc": "current_size"}))


def test_a_bigger_disk_may_take_longer() -> None:
    assert seconds(source("raw", length=1 << 20)) < seconds(source("raw", length=100 << 30))


def test_what_an_end_means() -> None:
    assert isinstance(failure(142, "", "d", 600), DeadlineExceeded)
    assert isinstance(failure(152, "", "d", 600), DeadlineExceeded)
    full = failure(1, "qemu-img: error while writing: No space left on device\n", "d", 600)
    assert isinstance(full, OSError) and full.errno == 28
    assert "more than its header says" in str(failure(1, "qemu-img: File too large", "d", 600))
    other = failure(1, "\nqemu-img: Could not open 'x': bad\n", "d", 600)
    assert isinstance(other, Corrupt) and other.message == "d cannot be read: Could not open 'x': bad"
    assert "ended with 139" in str(failure(139, "", "d", 600))


def status(*kinds: ArtifactKind) -> ImageStatus:
    return ImageStatus(artifacts=[Artifact(kind=kind, digest=DIGEST, size=n, stored=n) for n, kind in enumerate(kinds)])


def test_what_goes_out() -> None:
    disks = status(ArtifactKind.CDROM, ArtifactKind.DISK, ArtifactKind.DISK)
    assert choose(disks, "qcow2").size == 1 and choose(disks, "file").kind is ArtifactKind.CDROM
    assert choose(status(ArtifactKind.KERNEL, ArtifactKind.INITRD), "file").kind is ArtifactKind.KERNEL
    for image, form, words in (
        (status(), "raw", "layers alone"),
        (status(ArtifactKind.MODULE), "raw", "no disk but module"),
        (disks, "qed", "not a format"),
        (status(ArtifactKind.DISK), "file", "but disk"),
    ):
        with pytest.raises(Invalid, match=words) as refused:
            choose(image, form)
        assert refused.value.hint
