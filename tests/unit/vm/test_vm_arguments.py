"""The command line of a machine's QEMU: what must never be missing, whatever is asked; and where it boots from."""

import re
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lamella.host.compute.driver import DataDisk, DriveImage, Limits, Machine, NamedNic, Rootfs, StoredArtifact
from lamella.host.compute.qemu.launch import OUTPUT, SANDBOX
from lamella.host.compute.vm import arguments, hotplug, sizing
from lamella.host.compute.vm.arguments import Vm
from lamella.host.compute.vm.host import machine_types
from lamella.host.compute.vm.order import boot_order, media
from lamella.host.network.driver import Attachment
from lamella.host.storage.driver import Base, VolumeHandle
from lamella.model.board import Board, Firmware, Graphics, Hardware, Watchdog
from lamella.model.image import ArtifactKind, ImageConfig
from lamella.model.storage import VolumeForm

PLAIN = VolumeHandle(id="v", form=VolumeForm.BLOCK, path=Path("/pool/v.raw"), size=1 << 30)
CLONE = VolumeHandle(
    id="v",
    form=VolumeForm.BLOCK,
    path=Path("/pool/v.qcow2"),
    size=1 << 30,
    format="qcow2",
    base=Base(path=Path("/images/disk"), size=1 << 30),
)


def machine(**more: Any) -> Machine:
    fields: dict[str, Any] = {
        "id": "inst_1",
        "name": "box",
        "project": "default",
        "rootfs": Rootfs(digest="sha256:0", layers=[], config=ImageConfig()),
        "command": [],
        "environment": {},
        "working_directory": "/",
        "user": "",
        "hostname": "box",
        "terminal": True,
        "stdin": False,
        "limits": Limits(),
        "id_base": 1 << 20,
        "disk": PLAIN,
        "nic": None,
        "nameservers": [],
        "stop_signal": "SIGTERM",
    }
    return Machine(**{**fields, **more})


@st.composite
def vms(draw: st.DrawFn) -> Vm:
    volume = draw(st.sampled_from([None, PLAIN, CLONE]))
    graphics = draw(st.sampled_from(Graphics))
    secure = draw(st.booleans())
    hardware = draw(st.sampled_from(Hardware))
    size = sizing.size_of(Limits(cpu=draw(st.integers(10, 16000))))
    count = draw(st.integers(0, arguments.MOST_MEDIA))
    names = ["root", "nic", *(f"media-{number}" for number in range(count))]
    return Vm(
        name="inst_1",
        uuid="00000000-0000-0000-0000-000000000001",
        board_type=draw(st.sampled_from(["pc-q35-7.2", "pc-q35-6.2"])),
        accelerator=draw(st.sampled_from(["kvm", "tcg"])),
        sizing=sizing.cold_arguments(size, sizing.largest_of(size, 8 << 30)),
        plugs=hotplug.cold_arguments(machine(board=Board(hardware=hardware, graphics=graphics))),
        firmware=Firmware.UEFI if secure else draw(st.sampled_from(Firmware)),
        secure_boot=secure,
        tpm=draw(st.booleans()),
        hardware=hardware,
        graphics=graphics,
        screens=["-vnc", "none"],
        watchdog=draw(st.sampled_from(Watchdog)),
        root=None if volume is None else arguments.root_disk(volume, lambda _: "file"),
        seed=draw(st.booleans()),
        media=count,
        mac=draw(st.sampled_from([None, "02:00:00:00:00:01"])),
        order={name: index for index, name in enumerate(draw(st.permutations(names)), start=1)},
    )


def values(argv: list[str], option: str) -> list[str]:
    return [argv[index + 1] for index, word in enumerate(argv) if word == option]


@given(vms())
def test_every_machine_is_confined_and_stands_still(vm: Vm) -> None:
    argv = arguments.arguments(vm)
    assert all(isinstance(word, str) and word and "\0" not in word for word in argv)
    assert values(argv, "-sandbox") == [SANDBOX]
    assert {"-nodefaults", "-no-user-config", "-S"} <= set(argv)
    assert values(argv, "-display") == ["none"]
    assert values(argv, "-machine")[0].startswith(f"{vm.board_type},")
    (actions,) = values(argv, "-action")
    assert "shutdown=pause" in actions and "panic=pause" in actions


@given(vms())
def test_no_path_of_the_host_is_named_and_every_descriptor_is_there(vm: Vm) -> None:
    argv = arguments.arguments(vm)
    given_sets = {int(value.partition("set=")[2]) for value in values(argv, "-add-fd")}
    used = {int(number) for word in argv for number in re.findall(r"/dev/fdset/(\d+)", word)}
    assert given_sets == used
    inherited = [int(value) for word in argv for value in re.findall(r"\bfd=(\d+)", word)]
    assert OUTPUT not in inherited and len(inherited) == len(set(inherited)), "each is one thing's"
    for value in [*values(argv, "-blockdev"), *values(argv, "-chardev")]:
        assert "/pool" not in value and "/images" not in value and "path=" not in value


@given(vms())
def test_everything_has_a_place_of_its_own_that_does_not_move(vm: Vm) -> None:
    argv = arguments.arguments(vm)
    placed: dict[str, str] = {}
    for value in values(argv, "-device"):
        if "bus=pcie.0" in value:
            address = re.search(r"addr=(0x[0-9a-f]+(?:\.\d)?)", value)
            assert address is not None, value
            assert placed.setdefault(address[1], value) == value
    bare = arguments.arguments(
        Vm(name="x", uuid=vm.uuid, board_type="q", accelerator="tcg", sizing=[], graphics=Graphics.NONE)
    )
    for value in values(bare, "-device"):
        kind, _, rest = value.partition(",")
        place = re.search(r"addr=0x[0-9a-f]+", rest)
        if place is not None:
            assert any(other.startswith(f"{kind},") and place[0] in other for other in values(argv, "-device")), value
    ports = [port for value in values(argv, "-device") for port in re.findall(r"bus=ide\.(\d)", value)]
    assert len(ports) == len(set(ports)) and all(int(port) < 6 for port in ports)


@given(vms())
def test_secure_boot_is_enforced_below_the_guest(vm: Vm) -> None:
    argv = arguments.arguments(vm)
    assert ("smm=on" in values(argv, "-machine")[0]) == vm.secure_boot
    assert ("driver=cfi.pflash01,property=secure,value=on" in values(argv, "-global")) == vm.secure_boot
    assert ("pflash0=code" in values(argv, "-machine")[0]) == (vm.firmware is Firmware.UEFI)
    for value in values(argv, "-blockdev"):
        if "code" in value or "seed" in value or "media" in value:
            assert "read-only=on" in value


@given(vms())
def test_generic_hardware_is_what_every_system_knows(vm: Vm) -> None:
    devices = values(arguments.arguments(vm), "-device")
    kinds = {value.partition(",")[0] for value in devices}
    if vm.hardware is Hardware.GENERIC:
        assert not kinds & {"virtio-blk-pci", "virtio-net-pci"}
    assert ("e1000" in kinds) == (vm.hardware is Hardware.GENERIC and vm.mac is not None)


def test_a_clone_names_its_base_and_a_plain_disk_has_none() -> None:
    plain, clone = (" ".join(arguments.root_disk(volume, lambda _: "file").arguments) for volume in (PLAIN, CLONE))
    assert "backing" not in plain and f"/dev/fdset/{arguments.ROOT}" in plain
    assert f"/dev/fdset/{arguments.BASE}" in clone and '"read-only":true' in clone.replace(" ", "")


# --- where it boots from

CD = StoredArtifact(kind=ArtifactKind.CDROM, digest="sha256:1", path=Path("/images/cd"), size=1)
NIC = Attachment(port="p", mac="02:00:00:00:00:01", address="10.0.0.2/24", gateway="10.0.0.1", mtu=1500)
DEVICES: dict[str, Any] = {
    "disks": [DataDisk(name="data", volume=PLAIN)],
    "cdroms": [DriveImage(name="cd", path=Path("/images/x"), size=1)],
    "nics": [NamedNic(name="lan", attachment=NIC)],
    "nic": NIC,
    "rootfs": Rootfs(digest="sha256:0", layers=[], config=ImageConfig(), artifacts=[CD]),
}


def names(machine: Machine) -> list[str]:
    order = boot_order(machine)
    assert sorted(order.values()) == list(range(1, len(order) + 1))
    return sorted(order, key=lambda name: order[name])


def test_an_empty_disk_is_filled_from_a_drive_and_a_full_one_started() -> None:
    assert names(machine(**DEVICES)) == ["cd", "root", "media-0", "data", "nic", "lan"]
    assert names(machine(**DEVICES, disk=CLONE)) == ["root", "data", "media-0", "cd", "nic", "lan"]
    assert media(machine(**DEVICES)) == ["media-0"]


def test_what_a_person_says_is_all_there_is() -> None:
    assert names(machine(**DEVICES, board=Board(boot=["nic", "cd"]))) == ["nic", "cd"]
    assert names(machine(**DEVICES, board=Board(boot=["gone", "data", "data"]))) == ["data"]


def test_the_newest_board_is_read_from_qemu() -> None:
    text = (
        "Supported machines are:\nmicrovm              microvm (i386)\n"
        "q35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-7.2)\n"
        "pc-q35-7.2           Standard PC (Q35 + ICH9, 2009)\npc-q35-2.4           Standard PC (Q35)\n"
    )
    assert machine_types(text) == ("pc-q35-7.2", frozenset({"pc-q35-7.2", "pc-q35-2.4"}))
