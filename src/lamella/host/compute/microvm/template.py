"""What automatic templates of microVMs are made of, and what they are called. Pure, but for the host's processor.

A *blank* was frozen while its agent waited to be told what it is: its disks were empty. A template of an *image* has the image mounted
and a fresh writable disk, of which each copy gets a copy. Neither has seen a name, a key or a network.
"""

import hashlib
from functools import lru_cache
from pathlib import Path

import msgspec

from lamella.host.compute.microvm import arguments
from lamella.host.compute.microvm.arguments import Hardware, VolumeDisk
from lamella.host.compute.microvm.host import HostParts
from lamella.host.compute.qemu.layers import ColdDisk
from lamella.host.compute.qemu.memory_file import Use

_MAC = "02:00:00:00:00:00"


class Shape(msgspec.Struct, kw_only=True, frozen=True):
    """What decides whether a template fits: ``hardware`` without anything that is one machine's alone, the sizes of the root and the
    writable disk in bytes, and who may share its pages (``owner``, a project; empty is everybody).

    ``image`` is the digest of the image that it has mounted and ``pids`` its bound on processes; both are nothing for a blank.
    """

    hardware: Hardware
    root: int
    data: int
    owner: str
    image: str = ""
    pids: int | None = None


def shape_of(
    hardware: Hardware,
    *,
    root: int,
    data: int,
    volumes: dict[str, int],
    owner: str,
    image: str = "",
    pids: int | None = None,
) -> Shape:
    """The shape of *hardware*, whose disks have *root*, *data* and *volumes* (by device) bytes."""
    return Shape(
        root=root,
        data=data,
        owner=owner,
        image=image,
        pids=pids if image else None,
        hardware=msgspec.structs.replace(
            hardware,
            name="template",
            mac=None if hardware.mac is None else _MAC,
            data=_empty("data", data),
            empty_root=None if image else root,
            volumes=[
                VolumeDisk(
                    device=volume.device,
                    disk=_empty(f"disk-{volume.device}", volumes[volume.device], volume.disk.node.get("read-only")),
                )
                for volume in hardware.volumes
            ],
            file=Use.WRITTEN,
            incoming=False,
        ),
    )


def id_of(shape: Shape, host: HostParts) -> str:
    """Names the template of *shape* on this host: another kernel, agent, QEMU, processor or shape is another one."""
    made_of = [
        *arguments.arguments(shape.hardware),
        *(shape.owner, shape.image, str(shape.pids), str(shape.root), str(shape.data)),
        *(host.boot.digest, host.version, host.accelerator.name, _processor()),
    ]
    kind = "image" if shape.image else "blank"
    return f"{kind}-{hashlib.sha256(msgspec.json.encode(made_of)).hexdigest()[:24]}"


def about(shape: Shape, host: HostParts) -> dict[str, str]:
    """What a memory of *shape* is of: what must be the same where one begins with it, and whose it is."""
    made_of = [*arguments.arguments(shape.hardware), str(shape.root), str(shape.data)]
    hardware = hashlib.sha256(msgspec.json.encode(made_of)).hexdigest()[:12]
    return {
        "made of": f"kernel {host.boot.kernel_version} ({host.boot.digest[:19]}), QEMU {host.version}, {host.accelerator.name}",
        "hardware": f"{shape.hardware.size.vcpus} processors, {shape.hardware.size.memory >> 20} MiB, disks and devices {hardware}",
        "image": shape.image,
        "owner": shape.owner,
    }


def fits(one: Shape, other: Shape) -> bool:
    """Whether what was made as *one* can be *other*."""
    return (one.hardware, one.root, one.data) == (other.hardware, other.root, other.data)


def _empty(name: str, size: int, read_only: object = None) -> ColdDisk:
    """As many zeros, under the node's name."""
    node: dict[str, object] = {"driver": "null-co", "node-name": name, "size": size, "read-zeroes": True}
    return ColdDisk(node=node | {"read-only": bool(read_only)}, files=[])


@lru_cache
def _processor() -> str:
    """The host's kind of processor, on which what a guest found out about its own may depend."""
    wanted = ("model name", "flags", "microcode")
    lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    return "; ".join(line for line in lines if line.partition("\t")[0].strip() in wanted)
