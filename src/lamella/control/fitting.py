"""What each isolation level takes of a request, and whether an image can be run at it. Pure.

A field that a level has no use for is refused, with the levels that have: nobody believes that a container got a TPM.
"""

import msgspec

from lamella.control.huge_pages import check_machine as check_huge_pages
from lamella.control.storage.fitting import check_mounts
from lamella.model.board import Board, Firmware, Seed
from lamella.model.errors import Invalid, Unsupported
from lamella.model.image import Appliance, ArtifactKind, Image
from lamella.model.instance import MACHINE_STOP_TIMEOUT, MACHINES, STOP_TIMEOUT, Decision, InstanceSpec, Isolation
from lamella.model.resource import now

COMMANDS = frozenset({Isolation.CONTAINER, Isolation.MICROVM})
GUESTS = MACHINES | {Isolation.UNIKERNEL, Isolation.MICROVM}

# Levels whose running instances can be given devices and rid of them.
PLUGGABLE = MACHINES
# Levels whose memory can be kept while they run, and gone on from.
KEEPS_MEMORY = frozenset({Isolation.MICROVM})
# Those of which one can be suspended and go on as the same.
SUSPENDS = frozenset({Isolation.MICROVM, Isolation.VM})
# Levels that cannot be made larger, while they run, than the host said that they can.
FIXED_SIZE = frozenset({Isolation.MICROVM, Isolation.UNIKERNEL, Isolation.WASM}) | MACHINES

# Field of the spec, the option of the command that sets it, the levels that take it.
_TAKEN_BY: tuple[tuple[str, str, frozenset[Isolation]], ...] = (
    ("disks", "more than one --disk", MACHINES | {Isolation.UNIKERNEL}),
    ("cdroms", "--iso", MACHINES),
    ("usb", "--usb", MACHINES),
    ("seed", "--user-data, --ssh-key and --no-seed", MACHINES),
    ("directories", "--dir", frozenset({Isolation.WASM})),
    ("fuel", "--fuel", frozenset({Isolation.WASM})),
    ("deadline", "--deadline", frozenset({Isolation.WASM})),
    ("environment", "--env", COMMANDS | {Isolation.WASM}),
    ("working_directory", "--workdir", COMMANDS),
    ("user", "--user", COMMANDS),
    ("entrypoint", "--entrypoint", COMMANDS),
    ("command", "a command", COMMANDS | {Isolation.WASM, Isolation.UNIKERNEL}),
    ("disk", "--disk", GUESTS),
)
_INSTEAD = {
    "command": "it runs what its disk holds: lamella exec afterwards, or --user-data",
    "environment": "set it inside, or with --user-data",
}
_RESERVED = frozenset({"root", "seed", "nic", "drive"})
_NEEDS = {
    Isolation.UNIKERNEL: (ArtifactKind.KERNEL, "a kernel", "import one: lamella image import FILE.elf --name NAME"),
    Isolation.WASM: (
        ArtifactKind.MODULE,
        "a WebAssembly module",
        "import one: lamella image import FILE.wasm --name NAME",
    ),
}


def check_level(spec: InstanceSpec) -> None:
    """That the level takes what is asked, and that the parts of the board fit together.

    :raise Unsupported: when the level has no use for a field.
    :raise Invalid: when fields contradict each other.
    """
    level = spec.isolation
    for field, option, levels in _TAKEN_BY:
        if level not in levels and _asked(spec, field):
            if field == "disk" and level is Isolation.CONTAINER:
                raise Unsupported(
                    f"pool default cannot bound what a {level} writes: its volumes are directories",
                    hint="leave --disk out, or use --isolation microvm, whose disk has a size",
                    field="spec.disk",
                )
            raise Unsupported(
                f"a {level} takes no {field.replace('_', ' ')} ({option})",
                hint=_INSTEAD.get(
                    field, f"only {_list(levels)} does" if len(levels) == 1 else f"these do: {_list(levels)}"
                ),
                field=f"spec.{field}",
            )
    if level is Isolation.WASM and any(nic.publish for nic in spec.nics):
        raise Unsupported(
            "a wasm module listens to no port", hint="publish ports of another level", field="spec.nics.publish"
        )
    if len(spec.nics) > 1 and level not in MACHINES:
        raise Unsupported(f"a {level} has one NIC at most", hint="--isolation vm has up to eight", field="spec.nics")
    _check_board(spec)
    _check_names(spec)
    check_mounts(spec)
    check_huge_pages(spec)


def _asked(spec: InstanceSpec, field: str) -> bool:
    value = getattr(spec, field)
    if field == "seed":
        return bool(value != Seed())
    if field == "environment":
        # A terminal brings its TERM along.
        return bool(set(value) - {"TERM"})
    return value is not None and value != [] and value != {}


def check_keeps_memory(spec: InstanceSpec, what: str, able: frozenset[Isolation] = KEEPS_MEMORY) -> None:
    """:raise Unsupported: when an instance of this level cannot be *what* (``suspended``); it names the levels that can."""
    if spec.isolation not in able:
        raise Unsupported(
            f"a {spec.isolation} cannot be {what}: its memory cannot be kept",
            hint=f"--isolation {' or '.join(sorted(able))} can",
            field="spec.isolation",
        )


def _check_board(spec: InstanceSpec) -> None:
    board, level = spec.board, spec.isolation
    plain = msgspec.structs.replace(board, command_line="", confidential=None)
    if level not in MACHINES and plain != Board():
        raise Unsupported(
            f"a {level} has no firmware, screen or TPM of its own to choose",
            hint="--isolation vm has",
            field="spec.board",
        )
    if board.command_line and level is not Isolation.UNIKERNEL:
        raise Unsupported(
            f"a {level} takes no command line for its kernel",
            hint="only a unikernel does",
            field="spec.board.command_line",
        )
    if board.confidential is not None and level is not Isolation.CONFIDENTIAL:
        raise Invalid(
            f"{board.confidential} is asked for, and isolation {level}",
            hint="use --isolation confidential",
            field="spec.board.confidential",
        )
    if board.secure_boot and board.firmware is not Firmware.UEFI:
        raise Invalid("Secure Boot is UEFI's", hint="ask for --firmware uefi", field="spec.board.secure_boot")
    if board.certificates and not board.secure_boot:
        raise Invalid(
            "certificates are enrolled for Secure Boot, which is not asked for",
            hint="ask for --secure-boot",
            field="spec.board.certificates",
        )


def _check_names(spec: InstanceSpec) -> None:
    seen: set[str] = set()
    for name in spec.device_names:
        if name and (name in seen or name in _RESERVED):
            why = "twice" if name in seen else "and that name is taken by the machine itself"
            raise Invalid(f"a device is called {name!r} {why}", hint="give each a name of its own", field="spec")
        seen.add(name)
    for nic in spec.nics[1:]:
        if nic.publish:
            raise Unsupported(
                "only the first NIC publishes ports", hint="publish them there", field="spec.nics.publish"
            )
    for name in spec.board.boot:
        if name not in seen | {"root", "nic", "drive"}:
            raise Invalid(
                f"there is no device {name!r} to boot from",
                hint=f"one of: {', '.join(sorted(seen - {''} | {'root', 'nic', 'drive'}))}",
                field="spec.board.boot",
            )


def name_devices(spec: InstanceSpec) -> None:
    """Give every further NIC that has no name one (``nic1``, ``nic2``, …)."""
    taken = set(spec.device_names)
    for nic in spec.nics[1:]:
        if nic.name is None:
            nic.name = next(name for number in range(1, 99) if (name := f"nic{number}") not in taken)
            taken.add(nic.name)


def levels_of(image: Image) -> list[Isolation]:
    """The levels at which *image* can be run by itself."""
    status = image.status
    kinds = {artifact.kind for artifact in status.artifacts}
    levels: list[Isolation] = []
    if status.os == "wasi" or ArtifactKind.MODULE in kinds:
        return [Isolation.WASM]
    if status.layers or not kinds:
        levels += [Isolation.CONTAINER, Isolation.MICROVM]
    if ArtifactKind.KERNEL in kinds:
        levels.append(Isolation.UNIKERNEL)
    if kinds & {ArtifactKind.DISK, ArtifactKind.CDROM}:
        levels += [Isolation.VM, Isolation.CONFIDENTIAL]
    return levels


def check_image(spec: InstanceSpec, image: Image, *, scratch: bool) -> None:
    """That *image* has what the level runs; ``scratch`` is the image of nothing.

    :raise Unsupported: when it has not; the sentence says what it can be run as.
    """
    level = spec.isolation
    if scratch:
        if level not in MACHINES:
            raise Unsupported(f"a {level} has nothing to run without an image", hint="name one", field="spec.image")
        return
    if level in levels_of(image):
        smallest = next((a.size for a in image.status.artifacts if a.kind is ArtifactKind.DISK), 0)
        if level in MACHINES and spec.disk is not None and spec.disk < smallest:
            raise Invalid(
                f"the disk of image {image.name} has {smallest} bytes, more than the {spec.disk} that are asked for",
                hint="ask for a larger --disk, or leave it out",
                field="spec.disk",
            )
        return
    if level in MACHINES and spec.cdroms:
        return
    if level in _NEEDS:
        _, what, hint = _NEEDS[level]
    elif level in MACHINES:
        what, hint = "a disk", "build one: lamella image build debian:12 --disk; or import one"
    else:
        what, hint = "layers", f"it can be run as {_list(levels_of(image))}"
    raise Unsupported(
        f"image {image.name} holds no {what.removeprefix('a ')}, which a {level} runs", hint=hint, field="spec.image"
    )


def normalise(spec: InstanceSpec) -> None:
    """Fill in what nobody asked for and the level has an answer to."""
    if spec.stop_timeout is None:
        spec.stop_timeout = MACHINE_STOP_TIMEOUT if spec.isolation in MACHINES else STOP_TIMEOUT
    if spec.isolation is Isolation.WASM:
        # A module has no interface: what it may reach, its runtime reaches for it.
        spec.nics = []
    name_devices(spec)


def with_defaults(spec: InstanceSpec, appliance: Appliance | None) -> list[Decision]:
    """Fill in what nobody asked for and the image's maker has an answer to; returns the reasons."""
    decisions: list[Decision] = []
    at = now()
    if appliance is None or spec.isolation not in MACHINES:
        return decisions
    because = "the image was made for that"
    if spec.cpu is None and appliance.cpu is not None:
        spec.cpu = appliance.cpu
        decisions.append(Decision(at=at, what="cpu", chosen=str(spec.cpu), because=because))
    if spec.memory is None and appliance.memory is not None:
        spec.memory = appliance.memory
        decisions.append(Decision(at=at, what="memory", chosen=str(spec.memory), because=because))
    if spec.board == Board():
        spec.board.firmware, spec.board.secure_boot = appliance.firmware, appliance.secure_boot
        spec.board.hardware = appliance.hardware
        decisions.append(Decision(at=at, what="firmware", chosen=appliance.firmware, because=because))
    return decisions


def _list(levels: "frozenset[Isolation] | list[Isolation]") -> str:
    return ", ".join(level for level in Isolation if level in levels)
