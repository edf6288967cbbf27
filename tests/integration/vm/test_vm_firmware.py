"""Firmware: BIOS and UEFI start what is on a CD or a disk; Secure Boot starts what an enrolled key has signed, and nothing else."""

import signal
import subprocess
from pathlib import Path

import msgspec
import pytest
from vm_lab import MEMTEST_EFI, MEMTEST_ISO, MIB, Lab, read_until, until_blue, until_stopped

from lamella.host.compute.qemu.places import Places
from lamella.host.compute.vm import varstore
from lamella.host.compute.vm.driver import VmDriver
from lamella.model.board import Board, Firmware, Graphics, Hardware
from lamella.model.errors import Invalid

pytestmark = pytest.mark.root


def tool(*command: str | Path) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


def esp(path: Path, program: Path) -> Path:
    """A disk that UEFI starts *program* from: a FAT filesystem with no partition table around it."""
    with path.open("wb") as file:
        file.truncate(8 * MIB)
    tool("mformat", "-i", path, "-v", "ESP", "::")
    tool("mmd", "-i", path, "::/EFI", "::/EFI/BOOT")
    tool("mcopy", "-i", path, program, "::/EFI/BOOT/BOOTX64.EFI")
    return path


def key(directory: Path, name: str) -> tuple[Path, Path]:
    """A key and its certificate, PEM."""
    files = directory / f"{name}.key", directory / f"{name}.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650", "-subj", f"/CN={name}"]
    tool(*request, "-keyout", files[0], "-out", files[1])
    return files


def sign(program: Path, by: tuple[Path, Path], target: Path) -> Path:
    tool("sbsign", "--key", by[0], "--cert", by[1], "--output", target, program)
    return target


@pytest.mark.parametrize(
    ("firmware", "hardware"),
    [(Firmware.BIOS, Hardware.VIRTIO), (Firmware.BIOS, Hardware.GENERIC), (Firmware.UEFI, Hardware.GENERIC)],
)
async def test_a_system_that_is_not_linux_starts_from_a_cd(
    lab: Lab, driver: VmDriver, firmware: Firmware, hardware: Hardware
) -> None:
    """memtest86+, whose screen is blue; the root disk is empty and is passed over."""
    machine = lab.machine(cdrom=MEMTEST_ISO, board=Board(firmware=firmware, hardware=hardware))
    await driver.create(machine)
    await driver.start(machine.id)
    await until_blue(driver, machine.id)


async def test_secure_boot_starts_what_is_signed_with_an_enrolled_key_and_nothing_else(
    lab: Lab, driver: VmDriver, tmp_path: Path
) -> None:
    """The same program: unsigned (which UEFI without Secure Boot starts from a CD, above), signed by a stranger, signed by us."""
    ours, theirs = key(tmp_path, "ours"), key(tmp_path, "theirs")
    enrolled = Board(firmware=Firmware.UEFI, secure_boot=True, certificates=[ours[1].read_text()])
    signed = sign(MEMTEST_EFI, ours, tmp_path / "ours.efi")
    stranger = sign(MEMTEST_EFI, theirs, tmp_path / "theirs.efi")
    for program, starts in ((MEMTEST_EFI, False), (stranger, False), (signed, True)):
        machine = lab.machine(disk=esp(tmp_path / "esp.img", program), board=enrolled)
        await driver.create(machine)
        console = await driver.attach(machine.id)
        await driver.start(machine.id)
        if starts:
            await read_until(console, "BdsDxe: starting Boot")
            await until_blue(driver, machine.id)
        else:
            said = await read_until(console, "Access Denied")
            assert "BdsDxe: starting" not in said
        await driver.remove(machine.id)


async def test_a_machine_keeps_its_variables(lab: Lab, driver: VmDriver) -> None:
    """The two modes keep theirs apart: what is not enforced must never stand in for what is."""
    state = Places(lab.home, "vm", "").state
    board = Board(firmware=Firmware.UEFI, graphics=Graphics.NONE)
    machine = lab.machine(board=board)
    await driver.create(machine)
    console = await driver.attach(machine.id)
    await driver.start(machine.id)
    await read_until(console, "BdsDxe")
    await driver.kill(machine.id, signal.SIGKILL)
    await until_stopped(driver, machine.id)
    plain = state / machine.id / "variables.fd"
    before = plain.read_bytes()
    assert not varstore.enforced(before) and len(varstore.read(before)) > 10
    await driver.create(machine)
    assert plain.read_bytes() == before
    await driver.create(msgspec.structs.replace(machine, board=msgspec.structs.replace(board, secure_boot=True)))
    assert varstore.enforced((state / machine.id / "variables-secure.fd").read_bytes())
    with pytest.raises(Invalid, match="Secure Boot is UEFI's"):
        await driver.create(lab.machine(board=Board(secure_boot=True)))
    with pytest.raises(Invalid, match="certificate 1 is no PEM"):
        wrong = Board(firmware=Firmware.UEFI, secure_boot=True, certificates=["nonsense"])
        await driver.create(lab.machine(board=wrong))
