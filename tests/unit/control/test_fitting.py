"""What each level takes of a request, and which images it runs."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_admission import admitted, an_image

from lamella.control.admission import Taken, check_spec
from lamella.control.fitting import check_image, levels_of, normalise, with_defaults
from lamella.model.board import Board, Cdrom, Directory, Disk, Firmware, Hardware, Seed, Usb
from lamella.model.errors import Invalid, LamellaError, Unsupported
from lamella.model.image import SCRATCH, Appliance, Artifact, ArtifactKind, Image, Layer
from lamella.model.instance import MACHINES, InstanceSpec, Isolation, Nic, Publish
from lamella.model.storage import VolumeForm

DIGEST = "sha256:" + "b" * 64


def image_of(*kinds: ArtifactKind, layers: bool = False, os: str = "linux", size: int = 1 << 30) -> Image:
    image = an_image()
    image.status.os = os
    image.status.layers = [Layer(diff_id=DIGEST, size=1)] if layers else []
    image.status.artifacts = [Artifact(kind=kind, digest=DIGEST, size=size, stored=1) for kind in kinds]
    return image


@pytest.mark.parametrize(
    ("changes", "levels"),
    [
        ({"cdroms": [Cdrom(name="cd1", image="x")]}, MACHINES),
        ({"usb": [Usb(name="stick", device="1d6b:0002")]}, MACHINES),
        ({"seed": Seed(ssh_keys=["ssh-ed25519 AAAA"])}, MACHINES),
        ({"disks": [Disk(name="data", size=1 << 30)]}, MACHINES | {Isolation.UNIKERNEL}),
        ({"board": Board(tpm=True)}, MACHINES),
        ({"board": Board(command_line="ip=10.0.0.2")}, {Isolation.UNIKERNEL}),
        ({"directories": [Directory(source="/srv", target="/data")]}, {Isolation.WASM}),
        ({"fuel": 1000}, {Isolation.WASM}),
        ({"deadline": 1.0}, {Isolation.WASM}),
        ({"user": "ann"}, {Isolation.CONTAINER, Isolation.MICROVM}),
        ({"command": ["true"]}, set(Isolation) - MACHINES),
        ({"disk": 1 << 30}, set(Isolation) - {Isolation.CONTAINER, Isolation.WASM}),
        ({"nics": [Nic(), Nic()]}, MACHINES),
    ],
)
def test_a_field_is_taken_by_the_levels_that_have_a_use_for_it(
    changes: dict[str, object], levels: set[Isolation]
) -> None:
    for level in Isolation:
        spec = InstanceSpec(image="x", isolation=level, **changes)  # type: ignore[arg-type]
        if level in levels:
            check_spec(spec)
        else:
            with pytest.raises(Unsupported) as refused:
                check_spec(spec)
            assert refused.value.hint and level in refused.value.message


def test_a_terminal_may_bring_its_name_to_a_machine() -> None:
    check_spec(InstanceSpec(image="x", isolation=Isolation.VM, environment={"TERM": "xterm"}))
    with pytest.raises(Unsupported):
        check_spec(InstanceSpec(image="x", isolation=Isolation.VM, environment={"K": "V"}))


def test_parts_of_a_board_fit_together() -> None:
    for board in (Board(secure_boot=True), Board(firmware=Firmware.UEFI, certificates=["pem"]), Board(boot=["data"])):
        with pytest.raises(Invalid):
            check_spec(InstanceSpec(image="x", isolation=Isolation.VM, board=board))
    check_spec(
        InstanceSpec(
            image="x",
            isolation=Isolation.VM,
            board=Board(firmware=Firmware.UEFI, secure_boot=True, certificates=["pem"], boot=["data", "root"]),
            disks=[Disk(name="data", size=1 << 30)],
        )
    )


def test_devices_have_names_of_their_own() -> None:
    for disks in (["a", "a"], ["root"]):
        with pytest.raises(Invalid):
            check_spec(
                InstanceSpec(image="x", isolation=Isolation.VM, disks=[Disk(name=n, size=1 << 30) for n in disks])
            )


@given(st.lists(st.sampled_from([None, "nic1", "nic2", "lan"]), max_size=6, unique_by=lambda name: name or object()))
def test_every_further_nic_gets_a_name_and_keeps_one_it_has(names: list[str | None]) -> None:
    spec = InstanceSpec(image="x", isolation=Isolation.VM, nics=[Nic(), *(Nic(name=name) for name in names)])
    normalise(spec)
    made = spec.device_names
    assert len(set(made)) == len(names) and all(made) and {name for name in names if name} <= set(made)
    before = msgspec.json.encode(spec)
    normalise(spec)
    assert msgspec.json.encode(spec) == before


def test_an_image_says_which_levels_can_run_it() -> None:
    kind = ArtifactKind
    assert levels_of(image_of(layers=True)) == [Isolation.CONTAINER, Isolation.MICROVM]
    assert levels_of(image_of(kind.DISK, layers=True)) == [
        Isolation.CONTAINER,
        Isolation.MICROVM,
        Isolation.VM,
        Isolation.CONFIDENTIAL,
    ]
    assert levels_of(image_of(kind.CDROM)) == [Isolation.VM, Isolation.CONFIDENTIAL]
    assert levels_of(image_of(kind.KERNEL, kind.INITRD)) == [Isolation.UNIKERNEL]
    assert levels_of(image_of(kind.MODULE)) == [Isolation.WASM]
    assert levels_of(image_of(layers=True, os="wasi")) == [Isolation.WASM]


def test_an_image_that_a_level_cannot_run_is_refused_with_what_would_do() -> None:
    disk = image_of(ArtifactKind.DISK)
    for level in (Isolation.CONTAINER, Isolation.UNIKERNEL, Isolation.WASM):
        with pytest.raises(Unsupported) as refused:
            check_image(InstanceSpec(image="x", isolation=level), disk, scratch=False)
        assert refused.value.hint
    check_image(InstanceSpec(image="x", isolation=Isolation.VM), disk, scratch=False)
    with pytest.raises(Invalid):
        check_image(InstanceSpec(image="x", isolation=Isolation.VM, disk=1 << 29), disk, scratch=False)
    # A drive with a CD in it is something to boot from, whatever the image is.
    layers = image_of(layers=True)
    check_image(
        InstanceSpec(image="x", isolation=Isolation.VM, cdroms=[Cdrom(name="cd1", image="y")]), layers, scratch=False
    )
    with pytest.raises(Unsupported):
        check_image(InstanceSpec(image="scratch"), layers, scratch=True)


def test_an_appliance_answers_what_nobody_asked() -> None:
    made_for = Appliance(cpu=2000, memory=1 << 30, firmware=Firmware.UEFI, hardware=Hardware.GENERIC)
    spec = InstanceSpec(image="x", isolation=Isolation.VM, memory=2 << 30)
    assert {decision.what for decision in with_defaults(spec, made_for)} == {"cpu", "firmware"}
    assert (spec.cpu, spec.memory, spec.board.firmware) == (2000, 2 << 30, Firmware.UEFI)
    container = InstanceSpec(image="x")
    assert with_defaults(container, made_for) == [] and container.cpu is None


def test_a_module_has_neither_disk_nor_nic_and_a_machine_has_all_it_asked_for() -> None:
    spec = InstanceSpec(image="x", isolation=Isolation.WASM, nics=[Nic()])
    normalise(spec)
    made = admitted(spec, image=image_of(ArtifactKind.MODULE))
    assert made.volume is None and made.port is None and made.instance.status.volume is None

    spec = InstanceSpec(
        image="x",
        isolation=Isolation.VM,
        disks=[Disk(name="data", size=1 << 30)],
        nics=[Nic(publish=[Publish(port=22)]), Nic(name="lan")],
    )
    normalise(spec)
    made = admitted(spec, image=image_of(ArtifactKind.DISK, ArtifactKind.DISK, size=3 << 30))
    status = made.instance.status
    assert made.volume is not None and made.volume.spec.form is VolumeForm.BLOCK
    assert list(status.disks) == ["image-1", "data"] and made.disks["image-1"].spec.size == 3 << 30
    assert made.port is not None and list(made.ports) == ["lan"]
    addresses = {made.port.spec.address, made.ports["lan"].spec.address}
    macs = {made.port.spec.mac, made.ports["lan"].spec.mac}
    assert len(addresses) == len(macs) == 2
    names = {made.volume.name, *(v.name for v in made.disks.values()), made.port.name, made.ports["lan"].name}
    assert len(names) == 5


def test_two_nics_of_one_machine_never_get_one_address() -> None:
    spec = InstanceSpec(image="x", isolation=Isolation.VM, nics=[Nic(), Nic(), Nic()])
    normalise(spec)
    from test_admission import a_network

    network = a_network("10.1.0.0/29")
    taken = Taken(addresses={network.id: {"10.1.0.2", "10.1.0.3"}}, id_ranges=set())
    made = admitted(spec, image=image_of(ArtifactKind.DISK), networks=[network] * 3, taken=taken)
    assert made.port is not None
    all_of_them = {made.port.spec.address, *(port.spec.address for port in made.ports.values())}
    assert len(all_of_them) == 3 and not {"10.1.0.2/29", "10.1.0.3/29"} & all_of_them
    spec.nics.append(Nic(name="one-more"))
    with pytest.raises(LamellaError, match="taken"):
        admitted(spec, image=image_of(ArtifactKind.DISK), networks=[network] * 4, taken=taken)


def test_scratch_is_a_machine_without_an_image() -> None:
    image = an_image()
    image.status.digest = SCRATCH
    assert admitted(InstanceSpec(image="scratch", isolation=Isolation.VM), image=image).volume is not None
