"""Chains of layers in QEMU's words: nothing that a header names is opened, and every file by its own descriptor."""

from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from lamella.host.compute.qemu import layers
from lamella.host.storage.driver import Base, Layer, VolumeHandle
from lamella.model.storage import VolumeForm


@st.composite
def volumes(draw: st.DrawFn) -> VolumeHandle:
    depth = draw(st.integers(0, 6))
    below = [
        Layer(path=Path(f"/pool/{n}"), format="qcow2" if n < depth - 1 else draw(st.sampled_from(["raw", "qcow2"])))
        for n in range(depth)
    ]
    base = draw(st.booleans()) and (not below or below[-1].format == "qcow2")
    return VolumeHandle(
        id="vol_1",
        form=VolumeForm.BLOCK,
        path=Path("/pool/top"),
        size=1 << 20,
        format="qcow2" if below or base or draw(st.booleans()) else "raw",
        below=below,
        base=Base(path=Path("/images/base"), size=1 << 19) if base else None,
    )


def nodes(node: dict[str, Any]) -> list[dict[str, Any]]:
    below = node.get("backing")
    return [node, *(nodes(below) if below else [])]


@given(volumes(), st.integers(20, 40))
def test_a_chain_is_said_to_its_end(volume: VolumeHandle, first: int) -> None:
    disk = layers.cold_disk("root", volume, first, driver=lambda _: "file")
    chain = nodes(msgspec.json.decode(msgspec.json.encode(disk.node)))
    assert len(chain) == len(layers.files_of(volume)) == len(disk.files)
    assert [one["driver"] for one in chain] == [
        volume.format,
        *(layer.format for layer in volume.below),
        *(["raw"] if volume.base else []),
    ]
    for number, one in enumerate(chain):
        assert ("backing" in one) == (one["driver"] == "qcow2")
        assert one["file"]["read-only"] == (number > 0) and (number == 0 or one["read-only"])
    sets = [one["file"]["filename"] for one in chain]
    assert sets == [f"/dev/fdset/{file.fd}" for file in disk.files] and len(set(sets)) == len(sets)
    numbers = [fd for file in disk.files for fd in ((file.fd, file.again) if file.writable else (file.fd,))]
    assert len(set(numbers)) == len(numbers) == 1 + len(sets) and min(numbers) == first
    assert "/pool" not in str(disk.arguments) and "/images" not in str(disk.arguments)


@given(volumes(), st.integers(1, 5))
def test_layers_that_were_laid_over_are_kept_in_order(volume: VolumeHandle, count: int) -> None:
    made = volume
    for number in range(count):
        layer = Layer(path=Path(f"/pool/new{number}"), format="qcow2")
        made = layers.laid_over(made, layer)
        assert layers.laid_over(made, layer) == made
    assert [path.name for path in layers.files_of(made)][:count] == [f"new{n}" for n in reversed(range(count))]
    assert layers.files_of(made)[count:] == layers.files_of(volume) and made.base == volume.base


@given(st.from_regex(r"[a-z][a-z0-9-]{0,30}", fullmatch=True), st.text(min_size=1, max_size=300))
def test_the_name_of_a_layer_fits(device: str, path: str) -> None:
    name = layers.layer_name(device, Path(path))
    assert len(name) <= 31 and name.startswith(layers.layer_prefix(device))
