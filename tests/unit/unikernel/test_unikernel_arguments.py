"""From a machine to the command lines of its QEMU and its kernel, and what sizes it can have."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.host.compute.driver import Limits, Machine, Rootfs
from lamella.host.compute.qemu import layers
from lamella.host.compute.qemu.size import MIB, Size
from lamella.host.compute.unikernel import admission
from lamella.host.compute.unikernel.arguments import Card, Drive, Hardware, arguments
from lamella.host.compute.unikernel.command_line import command_line
from lamella.host.compute.unikernel.size import change, size_of
from lamella.host.network.driver import Attachment
from lamella.host.storage.driver import VolumeHandle
from lamella.model.board import Board, Confidential, Directory, Firmware
from lamella.model.errors import Invalid, Unsupported
from lamella.model.image import ImageConfig
from lamella.model.storage import VolumeForm

SMALL = Size(vcpus=1, memory=16 * MIB)
NIC = Attachment(port="port_1", mac="02:00:00:00:00:01", address="10.83.0.5/16", gateway="10.83.0.1", mtu=1500)


ROOT = layers.cold_disk(
    "disk-root", VolumeHandle(id="v", form=VolumeForm.BLOCK, path=Path("/x")), 10, driver=lambda _: "file"
)


def machine(line: str = "", *command: str, **more: Any) -> Machine:
    fields: dict[str, Any] = {
        "id": "inst_1",
        "name": "uni",
        "project": "default",
        "rootfs": Rootfs(digest="sha256:0", layers=[], config=ImageConfig()),
        "command": list(command),
        "environment": {},
        "working_directory": "/",
        "user": "",
        "hostname": "uni",
        "terminal": False,
        "stdin": False,
        "limits": Limits(),
        "id_base": 65536,
        "disk": None,
        "nic": None,
        "nameservers": [],
        "stop_signal": "SIGTERM",
        "board": Board(command_line=line),
    }
    return Machine(**{**fields, **more})


def following(words: list[str], option: str) -> list[str]:
    return [after for word, after in pairwise(words) if word == option]


def test_the_smallest_one() -> None:
    words = arguments(Hardware(name="a", size=SMALL, accelerator="tcg"))
    assert "-S" in words and following(words, "-machine") == ["microvm,rtc=on,mem-merge=off"]
    assert following(words, "-m") == ["16M"] and "-initrd" not in words and "-netdev" not in words
    assert "-blockdev" not in words and "spawn=deny" in following(words, "-sandbox")[0]
    assert "virtio-rng-device" in following(words, "-device")
    assert following(words, "-d") == ["cpu_reset"]


def test_devices_are_on_the_bus_of_the_board() -> None:
    hardware = Hardware(
        name="a",
        size=SMALL,
        accelerator="kvm",
        board="pc-q35-7.2",
        initrd=True,
        drives=[Drive(name="root", disk=ROOT)],
        cards=[Card(name="net", fd=11, mac=NIC.mac)],
    )
    words = arguments(hardware)
    devices = following(words, "-device")
    assert any(item.startswith("virtio-blk-pci") for item in devices)
    assert any(item.startswith("virtio-net-pci") and NIC.mac in item for item in devices)
    assert following(words, "-netdev") == ["tap,id=net-net,fd=11"]
    assert following(words, "-machine") == ["pc-q35-7.2,vmport=off,smm=off,mem-merge=off"] and "-d" not in words
    mmio = arguments(Hardware(name="a", size=SMALL, accelerator="kvm", drives=hardware.drives, cards=hardware.cards))
    assert not any("-pci" in item for item in following(mmio, "-device"))


@given(st.text(max_size=200).filter(lambda text: "\0" not in text))
def test_the_command_line_is_one_word_whatever_it_says(line: str) -> None:
    words = arguments(Hardware(name="a", size=SMALL, accelerator="tcg", command_line=line))
    assert words[words.index("-append") + 1] == line


def test_the_line_and_the_words() -> None:
    assert command_line(machine("a=1  b", "c", "d e", "")) == 'a=1  b c "d e" ""'
    assert command_line(machine("")) == ""
    assert command_line(machine("", 'x="y"')) == 'x="y"'
    for word in ('a "b"', "a\nb"):
        with pytest.raises(Invalid):
            command_line(machine("", word))


def test_what_the_instance_was_given_can_be_named() -> None:
    line = 'ip={address}/{prefix} mask={netmask} gw={gateway} mac={mac} dns={nameserver} name={hostname} {"json": {}}'
    told = command_line(machine(line, nic=NIC, nameservers=["10.83.0.1", "9.9.9.9"]))
    assert told == (
        'ip=10.83.0.5/16 mask=255.255.0.0 gw=10.83.0.1 mac=02:00:00:00:00:01 dns=10.83.0.1 name=uni {"json": {}}'
    )
    assert command_line(machine("ip={address} dns={nameserver}")) == "ip= dns="


def test_sizes() -> None:
    assert size_of(Limits()) == Size(vcpus=1, memory=64 * MIB)
    assert size_of(Limits(cpu=1500, memory=4 * MIB + 5)) == Size(vcpus=2, memory=4 * MIB)
    for limits in (Limits(memory=MIB), Limits(cpu=65_000)):
        with pytest.raises(Unsupported):
            size_of(limits)


@given(st.integers(1, 64), st.integers(4, 1 << 20), st.integers(10, 64_000))
def test_only_the_share_of_cpu_changes(vcpus: int, mebibytes: int, cpu: int) -> None:
    size = Size(vcpus=vcpus, memory=mebibytes * MIB)
    if cpu > vcpus * 1000:
        with pytest.raises(Unsupported, match="restart"):
            change(size, Limits(cpu=cpu), "tcg")
        return
    group = change(size, Limits(cpu=cpu, memory=size.memory), "tcg")
    assert group.cpu == cpu and (group.memory or 0) > size.memory
    with pytest.raises(Unsupported, match="restart"):
        change(size, Limits(memory=size.memory + MIB), "tcg")


def test_what_a_unikernel_has_not() -> None:
    asked = {
        "firmware": machine(board=Board(firmware=Firmware.UEFI)),
        "TPM": machine(board=Board(tpm=True)),
        "directories": machine(directories=[Directory(source="/a", target="/b")]),
        "encrypted": machine(board=Board(confidential=Confidential.TDX)),
        "no disk": machine(disk=VolumeHandle(id="v", form=VolumeForm.FILESYSTEM, path=Path("/x"))),
    }
    for words, item in asked.items():
        with pytest.raises(Unsupported, match=words) as raised:
            admission.check(item)
        assert raised.value.hint
    admission.check(machine("x", nic=NIC))
    with pytest.raises(Unsupported, match="no kernel"):
        admission.files_of(machine().rootfs)
