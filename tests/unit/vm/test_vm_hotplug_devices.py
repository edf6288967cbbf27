"""Devices in QEMU's words, and what has to be there from the start."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.host.compute.qemu import layers
from lamella.host.compute.vm import devices, usb
from lamella.model.board import Hardware
from lamella.model.errors import Unsupported

names = st.from_regex(r"[a-z][a-z0-9-]{0,30}", fullmatch=True)


@given(names)
def test_a_serial_number_fits_and_is_the_name_when_that_does(name: str) -> None:
    serial = layers.serial(name)
    assert len(serial) <= 20
    assert serial == name or len(name) > 20


@given(st.sets(st.text("ab1-", max_size=10), min_size=2, max_size=2))
def test_long_names_that_begin_alike_have_serials_of_their_own(ends: set[str]) -> None:
    one, other = (layers.serial("a-disk-with-a-long-name" + end) for end in ends)
    assert one != other


def test_hardware_decides_what_a_disk_and_a_nic_are() -> None:
    assert devices.disk_device(Hardware.GENERIC, "a", "port-0")["driver"] == "nvme"
    virtio = devices.nic_device(Hardware.VIRTIO, "n", "port-0", mac="02:00:00:00:00:01", mtu=1400, bootable=False)
    assert (virtio["driver"], virtio["host_mtu"], virtio["romfile"]) == ("virtio-net-pci", 1400, "")
    generic = devices.nic_device(Hardware.GENERIC, "n", "port-0", mac="02:00:00:00:00:01", mtu=1400, bootable=True)
    assert generic["driver"] == "e1000e" and "host_mtu" not in generic and "romfile" not in generic


def usb_tree(root: Path, *present: tuple[str, str, int, int]) -> None:
    (root / "1-0:1.0").mkdir(parents=True)  # an interface: it has no numbers
    for index, (vendor, product, bus, number) in enumerate(present):
        path = root / f"1-{index}"
        path.mkdir()
        values = {"idVendor": vendor, "idProduct": product, "busnum": str(bus), "devnum": str(number)}
        for name, value in values.items():
            (path / name).write_text(value + "\n")


def test_a_usb_device_is_found_by_its_numbers(tmp_path: Path) -> None:
    usb_tree(tmp_path, ("1d6b", "0002", 1, 1), ("0781", "5567", 2, 14))
    found = usb.find("0781:5567", sysfs=tmp_path, nodes=Path("/dev/bus/usb"))
    assert found.path == Path("/dev/bus/usb/002/014")
    assert found.properties(4) == {"driver": "usb-host", "hostdevice": "/dev/fdset/4"}


def test_a_usb_device_that_is_not_there_is_refused_with_what_is(tmp_path: Path) -> None:
    usb_tree(tmp_path, ("1d6b", "0002", 1, 1))
    with pytest.raises(Unsupported, match="no USB device 0781:5567; it has 1d6b:0002"):
        usb.find("0781:5567", sysfs=tmp_path)
    with pytest.raises(Unsupported, match="it has none at all"):
        usb.find("0781:5567", sysfs=tmp_path / "nowhere")
