"""Descriptors of machines: what they say is understood, and nothing in them leads to a file of the host."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.host.images.formats import ova, ovf
from lamella.model.board import Firmware, Hardware
from lamella.model.errors import Corrupt, Invalid, LamellaError, Unsupported
from lamella.model.image import Appliance

HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" '
    'xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:vmw="http://www.vmware.com/schema/ovf" '
    'xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">'
)


def item(number: int, kind: int, **fields: object) -> str:
    inside = "".join(f"<rasd:{name}>{value}</rasd:{name}>" for name, value in fields.items())
    return (
        f"<Item><rasd:InstanceID>{number}</rasd:InstanceID><rasd:ResourceType>{kind}</rasd:ResourceType>{inside}</Item>"
    )


CPU = item(1, 3, VirtualQuantity=4)
MEMORY = item(2, 4, VirtualQuantity=2048, AllocationUnits="byte * 2^20")
CONTROLLER = item(3, 6, ResourceSubType="lsilogic", Address=0)
FIRST = item(4, 17, HostResource="ovf:/disk/d1", Parent=3, AddressOnParent=0)


def envelope(
    *items: str,
    files: str = '<File ovf:id="f1" ovf:href="disk1.vmdk" ovf:size="1000"/>',
    disks: str = '<Disk ovf:diskId="d1" ovf:fileRef="f1" ovf:capacity="8" ovf:capacityAllocationUnits="byte * 2^30"/>',
    more: str = "",
    before: str = "",
    head: str = HEAD,
) -> bytes:
    hardware = "".join(items or (CPU, MEMORY, CONTROLLER, FIRST))
    return (
        f"{head}<References>{files}</References><DiskSection><Info/>{disks}</DiskSection>{before}"
        f'<VirtualSystem ovf:id="one"><VirtualHardwareSection>{hardware}{more}</VirtualHardwareSection></VirtualSystem></Envelope>'
    ).encode()


def test_a_machine_as_vmware_says_it() -> None:
    efi = (
        '<vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="efi"/>'
        '<vmw:Config vmw:key="bootOptions.efiSecureBootEnabled" vmw:value="true"/>'
    )
    nics = item(7, 10, ResourceSubType="VmxNet3") + item(8, 10, ResourceSubType="E1000")
    found = ovf.read(envelope(CPU, MEMORY, CONTROLLER, FIRST, nics, more=efi), "it")
    assert found.appliance == Appliance(
        cpu=4000, memory=2 << 30, nics=2, firmware=Firmware.UEFI, secure_boot=True, hardware=Hardware.GENERIC
    )
    (disk,) = found.disks
    assert disk.file == ovf.OvfFile(name="disk1.vmdk", size=1000, gzip=False)
    assert disk.capacity == 8 << 30 and not disk.cdrom


def test_firmware_as_virtualbox_says_it_and_virtio() -> None:
    box = '<Machine xmlns="http://www.virtualbox.org/ovf/machine"><Hardware><Firmware type="EFI"/></Hardware></Machine>'
    virtio = item(3, 20, ResourceSubType="VirtioSCSI")
    appliance = ovf.read(envelope(CPU, MEMORY, virtio, FIRST, more=box), "it").appliance
    assert (appliance.firmware, appliance.hardware, appliance.nics) == (Firmware.UEFI, Hardware.VIRTIO, 0)


def test_order_of_disks() -> None:
    """By controller, then by place; CDs last; an empty disk has only a size."""
    files = "".join(f'<File ovf:id="f{n}" ovf:href="n{n}"/>' for n in range(4))
    disks = "".join(f'<Disk ovf:diskId="d{n}" ovf:fileRef="f{n}" ovf:capacity="1"/>' for n in range(3))
    disks += '<Disk ovf:diskId="blank" ovf:capacity="3" ovf:capacityAllocationUnits="GigaBytes"/>'
    found = ovf.read(
        envelope(
            CPU, MEMORY, item(10, 5), item(11, 6),
            item(20, 15, HostResource="ovf:/file/f3", Parent=10, AddressOnParent=0),
            item(21, 17, HostResource="ovf:/disk/d2", Parent=11, AddressOnParent=1),
            item(22, 17, HostResource="/disk/blank", Parent=11, AddressOnParent=2),
            item(23, 17, HostResource="ovf:/disk/d0", Parent=11, AddressOnParent=0),
            item(24, 17, HostResource="ovf:/disk/d1", Parent=10, AddressOnParent=1),
            files=files, disks=disks,
        ),
        "it",
    ).disks  # fmt: skip
    assert [disk.file.name if disk.file else disk.capacity for disk in found] == ["n1", "n0", "n2", 3 << 30, "n3"]
    assert [disk.cdrom for disk in found] == [False] * 4 + [True]


def test_configurations() -> None:
    options = (
        '<DeploymentOptionSection><Configuration ovf:id="small"/><Configuration ovf:id="big" ovf:default="true"/>'
        "</DeploymentOptionSection>"
    )
    big = CPU.replace("<Item>", '<Item ovf:configuration="big">').replace(">4<", ">16<")
    small = CPU.replace("<Item>", '<Item ovf:configuration="small">').replace(">4<", ">2<")
    most = CPU.replace("<Item>", '<Item ovf:bound="max">').replace(">4<", ">64<")
    found = ovf.read(envelope(CPU, small, big, most, MEMORY, CONTROLLER, FIRST, before=options), "it")
    assert found.appliance.cpu == 16000


@pytest.mark.parametrize(
    "href",
    ["../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "http://example.org/d.vmdk", "a/b.vmdk", "..", "", "c:\\disk", "a\\..\\b"],
)  # fmt: skip
def test_names_that_lead_elsewhere(href: str) -> None:
    with pytest.raises(Corrupt, match="does not lie beside it"):
        ovf.read(envelope(files=f'<File ovf:id="f1" ovf:href="{href}"/>'), "it")


@pytest.mark.parametrize(
    "kind",
    [
        '<!DOCTYPE Envelope [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE Envelope SYSTEM "http://example.org/evil.dtd">',
        '<!DOCTYPE Envelope [<!ENTITY % p SYSTEM "file:///etc/passwd"> %p;]>',
        '<!DOCTYPE Envelope [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>',
        "<!DOCTYPE Envelope>",
    ],
)
def test_document_types(kind: str, tmp_path: Path) -> None:
    with pytest.raises(Corrupt, match="document type"):
        ovf.read(envelope(head=HEAD.replace("\n", f"\n{kind}\n")), "it")


def test_what_is_no_machine() -> None:
    cases: list[tuple[type[LamellaError], str, bytes]] = [
        (Corrupt, "not well-formed", b"<Envelope>"),
        (Corrupt, "not well-formed", envelope().replace(b"ovf:size", b"&x; ovf:size")),
        (Corrupt, "not an OVF", b"<html/>"),
        (Corrupt, "too many elements", b"<a>" * 100),
        (Invalid, "2 machines", envelope().replace(b"<VirtualSystem", b"<VirtualSystem/><VirtualSystem", 1)),
        (
            Unsupported,
            "child of another",
            envelope(disks='<Disk ovf:diskId="d1" ovf:fileRef="f1" ovf:parentRef="d0"/>'),
        ),
        (Unsupported, "in pieces", envelope(files='<File ovf:id="f1" ovf:href="a" ovf:chunkSize="5"/>')),
        (Corrupt, "does not list", envelope(disks='<Disk ovf:diskId="d1" ovf:fileRef="f9"/>')),
        (Corrupt, "does not list", envelope(disks='<Disk ovf:diskId="d2" ovf:fileRef="f1"/>')),
        (Corrupt, "a drive of '/etc/passwd'", envelope(FIRST.replace("ovf:/disk/d1", "/etc/passwd"))),
        (Corrupt, "that nobody has", envelope(CPU.replace(">4<", ">99999<"), MEMORY, FIRST)),
        (Corrupt, "that nobody has", envelope(CPU, MEMORY.replace("2^20", "2^49"), FIRST)),
        (Corrupt, "counts in", envelope(CPU, MEMORY.replace("2^20", "2^99"), FIRST)),
        (Corrupt, "where a number", envelope(CPU.replace(">4<", ">-4<"), MEMORY, FIRST)),
        (Corrupt, "empty disk", envelope(disks='<Disk ovf:diskId="d1" ovf:capacity="99999999999999999"/>')),
    ]
    for kind, words, data in cases:
        with pytest.raises(kind, match=words) as refused:
            ovf.read(data, "it")
        assert refused.value.hint


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damage_never_surprises(data: st.DataObject) -> None:
    whole = bytearray(envelope())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(whole) - 1))
        piece = data.draw(
            st.one_of(st.binary(max_size=6), st.sampled_from([b"<Item>", b"&lt;", b"9" * 30, b"ovf:/disk/", b'"']))
        )
        whole[at : at + data.draw(st.integers(0, 10))] = piece
    try:
        found = ovf.read(bytes(whole), "it")
    except LamellaError as error:
        assert error.message and error.hint
    else:
        assert all(disk.file is None or "/" not in disk.file.name for disk in found.disks)


def test_manifests() -> None:
    digest = "ab" * 32
    text = f"SHA256(a.ovf)= {digest}\nSHA1 (disk one.vmdk) = {'0f' * 20}\r\n\n"
    assert ova.digests(text.encode(), "m") == {"a.ovf": ("sha256", digest), "disk one.vmdk": ("sha1", "0f" * 20)}
    with pytest.raises(Corrupt, match="none of a manifest"):
        ova.digests(b"MD5(a)= 00", "m")
