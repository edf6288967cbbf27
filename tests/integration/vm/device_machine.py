"""Values for the device tests: a machine as a driver is given it, volumes and images as files that only root can open."""

import subprocess
from pathlib import Path

from lamella.host.compute.driver import DataDisk, DriveImage, Limits, Machine, NamedNic, Rootfs
from lamella.host.network.driver import Attachment
from lamella.host.storage.driver import Base, VolumeHandle
from lamella.model.board import Board, Usb
from lamella.model.image import ImageConfig
from lamella.model.storage import VolumeForm

MIB = 1 << 20


def machine(
    *,
    board: Board | None = None,
    disks: list[DataDisk] | None = None,
    cdroms: list[DriveImage] | None = None,
    nics: list[NamedNic] | None = None,
    usb: list[Usb] | None = None,
) -> Machine:
    return Machine(
        id="i-device-test",
        name="box",
        project="default",
        rootfs=Rootfs(digest="sha256:0", layers=[], config=ImageConfig()),
        command=[],
        environment={},
        working_directory="/",
        user="",
        hostname="box",
        terminal=False,
        stdin=False,
        limits=Limits(),
        id_base=0,
        disk=VolumeHandle(id="root-volume", form=VolumeForm.BLOCK, path=Path("/nowhere")),
        nic=None,
        nameservers=[],
        stop_signal="TERM",
        board=board or Board(),
        disks=disks or [],
        cdroms=cdroms or [],
        nics=nics or [],
        usb=usb or [],
    )


def sparse(path: Path, size: int, content: bytes = b"") -> Path:
    """A file of *size* bytes that begins with *content*, readable by its owner only."""
    path.touch(mode=0o600)
    with path.open("r+b") as file:
        file.truncate(size)
        file.write(content)
    return path


def raw_disk(directory: Path, name: str, size: int) -> DataDisk:
    path = sparse(directory / f"{name}.raw", size)
    return DataDisk(name=name, volume=VolumeHandle(id=f"volume-{name}", form=VolumeForm.BLOCK, path=path, size=size))


def clone_disk(directory: Path, name: str, size: int, base: Path) -> DataDisk:
    """A qcow2 of *size* over the raw *base*; its header names a base that is not there, which nobody may open."""
    path = directory / f"{name}.qcow2"
    command = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "/nowhere/at-all", "-F", "raw", path, str(size)]
    subprocess.run(command, check=True, timeout=90)
    path.chmod(0o600)
    based = Base(path=base, size=base.stat().st_size)
    volume = VolumeHandle(id=f"volume-{name}", form=VolumeForm.BLOCK, path=path, size=size, format="qcow2", base=based)
    return DataDisk(name=name, volume=volume)


def nic(name: str, mac: str) -> NamedNic:
    attachment = Attachment(port=f"port-of-{name}", mac=mac, address="10.9.0.2/24", gateway="10.9.0.1", mtu=1400)
    return NamedNic(name=name, attachment=attachment)
