"""The firmware of a machine: which code it runs, and the variables that are its own and are kept with it.

The code is Debian's package ovmf, read only; the variables begin as the distribution's and are the instance's from then on. With
Secure Boot they begin with Microsoft's keys enrolled (``.ms``), as those of a machine that is bought, and the person's beside them.
The two modes keep their variables apart: those of a machine without Secure Boot would let everything through.
"""

import uuid
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from lamella.host.compute.qemu.places import write_durably
from lamella.host.compute.vm import varstore
from lamella.model.board import Board, Firmware
from lamella.model.errors import Invalid, Unavailable

PLACES = (Path("/usr/share/OVMF"),)
OWNER = uuid.UUID("5c0a4b0e-97fd-4c0f-8b12-6a4e9a6f1d37")


class Ovmf(msgspec.Struct, kw_only=True, frozen=True):
    """The files of OVMF on this host: plain, and the build that enforces Secure Boot with its enrolled variables."""

    code: Path
    variables: Path
    secure_code: Path
    secure_variables: Path


def find() -> Ovmf:
    """:raise Unavailable: when the distribution's OVMF is not installed."""
    names = ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd", "OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd")
    for place in PLACES:
        files = [place / name for name in names]
        if all(file.is_file() for file in files):
            return Ovmf(code=files[0], variables=files[1], secure_code=files[2], secure_variables=files[3])
    raise Unavailable(f"there is no OVMF in {', '.join(map(str, PLACES))}", hint="apt install ovmf")


def code(board: Board, ovmf: Ovmf) -> Path:
    """What the machine's processors run first."""
    return ovmf.secure_code if board.secure_boot else ovmf.code


def variables(board: Board, ovmf: Ovmf, state: Path) -> Path:
    """The file of the machine's own variables in *state*: made if it is not there, and the person's certificates enrolled.

    :raise Invalid: when one of ``board.certificates`` is none.
    :raise NoRoom: when they do not fit.
    """
    file = state / ("variables-secure.fd" if board.secure_boot else "variables.fd")
    try:
        now = file.read_bytes()
    except FileNotFoundError:
        now = b""
    begun = now or (ovmf.secure_variables if board.secure_boot else ovmf.variables).read_bytes()
    wanted = varstore.enrol(begun, der(board.certificates), OWNER) if board.secure_boot else begun
    if wanted != now:
        write_durably(file, wanted)
    return file


def der(certificates: list[str]) -> list[bytes]:
    """The certificates of PEM texts, each of which may hold several.

    :raise Invalid: when a text holds none.
    """
    found: list[bytes] = []
    for number, text in enumerate(certificates):
        try:
            found += [one.public_bytes(Encoding.DER) for one in x509.load_pem_x509_certificates(text.encode())]
        except ValueError as error:
            raise Invalid(
                f"certificate {number + 1} is no PEM certificate",
                hint="it begins with -----BEGIN CERTIFICATE-----",
                field="board.certificates",
            ) from error
    return found


def why_invalid(board: Board) -> str:
    """Why this firmware cannot be, or nothing."""
    if board.secure_boot and board.firmware is not Firmware.UEFI:
        return "Secure Boot is UEFI's"
    return ""
