"""Options of ``run`` and ``create`` for machines, unikernels and WebAssembly modules, and the parts of the spec that they ask for."""

import os

from lamella.client import machine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamella.cli.parser import Options, Parser

    Json = dict[str, object]

LEVELS = ("container", "wasm", "microvm", "unikernel", "vm", "confidential")
_LARGEST_FILE = 1 << 20


def options(parser: "Parser") -> None:
    """Add them."""
    more: dict[str, object] = {"action": "append", "default": []}
    parser.section("volumes")
    parser.option(
        "--volume",
        metavar="NAME[:/PATH[:ro]]",
        help="a volume, mounted at PATH, or as a bare disk; it stays when the instance goes",
        **more,
    )
    parser.section("machines")
    parser.option(
        "--disk",
        metavar="[NAME=]SIZE",
        help="size of the disk: 10GiB; said again, or with a name: a further one",
        **more,
    )
    parser.option("--nic", metavar="NETWORK", help="a further NIC", **more)
    parser.option("--iso", metavar="IMAGE|FILE", help="a CD in a drive; the IMAGE to run may be left out then", **more)
    parser.option("--boot", metavar="A,B", help="what to boot from, in order: root, disk1, cdrom1, nic, nic1")
    parser.option("--firmware", choices=("bios", "uefi"), help="bios (default) or uefi")
    parser.option("--secure-boot", action="store_true", help="start only what is signed (UEFI)")
    parser.option("--secure-boot-certificate", metavar="FILE", help="trust what is signed by this (PEM), too", **more)
    parser.option("--tpm", action="store_true", help="a TPM 2.0")
    parser.option("--hardware", choices=("virtio", "generic"), help="virtio (default), or what every system knows")
    parser.option("--graphics", choices=("none", "vga", "virtio", "qxl"), help="vga (default), virtio, qxl or none")
    parser.option("--spice", action="store_true", help="a screen that speaks SPICE besides VNC")
    parser.option("--usb", metavar="VENDOR:PRODUCT", help="a USB device of the host", **more)
    parser.option("--huge-pages", "--hugepages", metavar="SIZE", help="memory in huge pages of the host: 2MiB, 1GiB")
    parser.option("--watchdog", choices=("reset", "poweroff", "pause", "dump"), help="what it does when it is not fed")
    parser.option("--on-crash", choices=("stop", "dump"), help="when its kernel panics: stop (default) or dump first")
    parser.option("--user-data", metavar="FILE", help="for cloud-init, as it is")
    parser.option("--ssh-key", metavar="FILE", help="a public key that may log in", **more)
    parser.option("--no-seed", action="store_true", help="tell cloud-init nothing, not even the address")
    parser.option("--technology", choices=("sev-snp", "tdx"), help="of a confidential one (default: the host's)")
    parser.section("unikernels")
    parser.option("--cmdline", metavar="TEXT", help="for a unikernel's kernel")
    parser.option("--initrd", metavar="FILE", help="goes with an IMAGE that is a kernel's file")
    parser.section("WebAssembly")
    parser.option("--dir", metavar="HOST:TARGET[:ro]", help="a directory that a WebAssembly module may use", **more)
    parser.option("--fuel", type=int, metavar="N", help="most WebAssembly instructions")
    parser.option("--deadline", metavar="TIME", help="most time that a WebAssembly module may run: 10s")


def spec(options: "Options") -> "Json":
    """What of the spec the options ask for; nothing that nobody asked for.

    :raise Invalid: when one of them is not understood, or two contradict each other.
    :raise OSError: when a file cannot be read.
    """
    made: Json = {}
    if options.disk:
        root, further = machine.disks(options.disk)
        made |= {"disk": root, "disks": further}
    if options.deadline is not None:
        from lamella.model.quantity import parse_duration

        made["deadline"] = parse_duration(options.deadline, field="deadline")
    if options.huge_pages is not None:
        from lamella.model.quantity import parse_size

        made["huge_pages"] = parse_size(options.huge_pages, field="huge-pages")
    made |= {
        "cdroms": machine.numbered("cdrom", "image", options.iso),
        "usb": machine.numbered("usb", "device", [machine.usb(text) for text in options.usb]),
        "directories": [machine.directory(text, os.getcwd()) for text in options.dir],  # noqa: PTH109
        "volumes": [machine.volume(text) for text in options.volume],
        "fuel": options.fuel,
        "board": _board(options),
        "seed": _seed(options),
    }
    return {name: value for name, value in made.items() if value is not None and value not in ([], {})}


def _board(options: "Options") -> "Json":
    certificates = [machine.certificate(read(path), path) for path in options.secure_boot_certificate]
    board: Json = {
        "firmware": options.firmware,
        "secure_boot": options.secure_boot or bool(certificates),
        "certificates": certificates,
        "tpm": options.tpm,
        "hardware": options.hardware,
        "graphics": options.graphics,
        "spice": options.spice,
        "watchdog": options.watchdog,
        "on_crash": options.on_crash,
        "boot": [name for name in (options.boot or "").replace(",", " ").split() if name],
        "command_line": options.cmdline,
        "confidential": options.technology,
    }
    return machine.secured({name: value for name, value in board.items() if value not in (None, False, [])})


def _seed(options: "Options") -> "Json":
    told = {
        "user_data": None if options.user_data is None else read(options.user_data),
        "ssh_keys": [key for path in options.ssh_key for key in machine.public_keys(read(path), path)],
    }
    seed: Json = {name: value for name, value in told.items() if value}
    if not options.no_seed:
        return seed
    if seed:
        from lamella.model.errors import Invalid

        raise Invalid(
            "--no-seed contradicts --user-data and --ssh-key",
            hint="leave one of them out: cloud-init reads both from the seed",
            field="seed",
        )
    return {"enabled": False}


def read(path: str) -> str:
    """A small text file of this machine.

    :raise Invalid: when it is not text, or larger than a mebibyte.
    :raise OSError: when it cannot be read.
    """
    from lamella.model.errors import Invalid

    with open(path, "rb") as file:  # noqa: PTH123 - pathlib is slow to import
        data = file.read(_LARGEST_FILE + 1)
    if len(data) > _LARGEST_FILE:
        raise Invalid(f"{path} is larger than 1 MiB", hint="is it the file that was meant?")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Invalid(f"{path} is not text (UTF-8)", hint="is it the file that was meant?") from error
