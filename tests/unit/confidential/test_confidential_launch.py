"""What a host lacks, said precisely; and the command line where it lacks nothing."""

from pathlib import Path
from typing import Any

import pytest

from lamella.host.compute.confidential import arguments, probe
from lamella.host.compute.confidential.arguments import Guard
from lamella.host.compute.confidential.driver import choose
from lamella.host.compute.confidential.probe import Encryption, Evidence
from lamella.host.compute.qemu.accelerator import Accelerator
from lamella.host.compute.qemu.size import MIB, Size
from lamella.host.compute.vm.arguments import Vm
from lamella.host.compute.vm.arguments import arguments as vm_arguments
from lamella.model.board import Confidential, Firmware, Graphics, Hardware, Watchdog
from lamella.model.errors import Unsupported

KVM = Accelerator(name="kvm", reason="a probe guest reached 64-bit mode under KVM", boot="b", qemu="10.1.0")
TCG = Accelerator(name="tcg", reason="there is no /dev/kvm on this host", boot="b", qemu="7.2.22")
SIZE = Size(vcpus=2, memory=1024 * MIB)


def amd(**changes: Any) -> Evidence:
    """A host that has everything for SEV-SNP."""
    fields: dict[str, Any] = {
        "vendor": "AuthenticAMD",
        "flags": frozenset({"sev", "sev_es", "sev_snp"}),
        "parameters": {"kvm_amd.sev": "Y\n", "kvm_amd.sev_es": "Y\n", "kvm_amd.sev_snp": "Y\n", "kvm_intel.tdx": None},
        "sev_device": "",
        "accelerator": KVM,
        "version": "10.1.0",
        "objects": frozenset({"sev-guest", "sev-snp-guest", "tdx-guest"}),
        "firmware": {Confidential.SEV_SNP: Path("/f/snp.fd"), Confidential.TDX: None},
    }
    return Evidence(**{**fields, **changes})


def intel() -> Evidence:
    return amd(
        vendor="GenuineIntel",
        flags=frozenset({"tdx_host_platform"}),
        parameters={"kvm_amd.sev": None, "kvm_amd.sev_es": None, "kvm_amd.sev_snp": None, "kvm_intel.tdx": "Y\n"},
        sev_device="there is no /dev/sev",
        firmware={Confidential.SEV_SNP: None, Confidential.TDX: Path("/f/tdx.fd")},
    )


def test_hosts_that_have_everything() -> None:
    assert probe.usable(amd()) == [Confidential.SEV_SNP] and probe.usable(intel()) == [Confidential.TDX]
    assert choose(None, amd()) is Confidential.SEV_SNP and choose(Confidential.TDX, intel()) is Confidential.TDX
    first = probe.capabilities(amd())[0]
    assert first.name == "compute.confidential" and first.available and first.value == "sev-snp"


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"flags": frozenset({"sev"})}, "processor", "no flag sev_snp"),
        ({"flags": frozenset({"hypervisor"})}, "processor", "this host is itself a guest"),
        ({"vendor": "GenuineIntel"}, "processor", "it is GenuineIntel"),
        ({"parameters": {"kvm_amd.sev_snp": "N\n"}}, "kernel", "switched off"),
        ({"parameters": {}}, "kernel", "not loaded, or too old"),
        ({"sev_device": "there is no /dev/sev"}, "device", "there is no /dev/sev"),
        ({"accelerator": TCG}, "kvm", "emulated processor keeps no secrets"),
        (
            {"objects": frozenset({"sev-guest"}), "version": "7.2.22"},
            "qemu",
            "no object sev-snp-guest, which came with 9.1",
        ),
        ({"firmware": {}}, "firmware", "OVMF.amdsev.fd"),
    ],
)
def test_each_missing_thing_is_one_precise_sentence(changes: dict[str, Any], name: str, words: str) -> None:
    evidence = amd(**changes)
    missing = [need for need in probe.needs(Confidential.SEV_SNP, evidence) if not need.present]
    assert [need.name for need in missing] == [name] and words in missing[0].reason
    found = {item.name: item for item in probe.capabilities(evidence)}
    assert not found["compute.confidential"].available
    assert words in found[f"compute.confidential.sev-snp.{name}"].reason
    assert words in found["compute.confidential.sev-snp"].reason
    with pytest.raises(Unsupported, match="cannot run confidential machines") as raised:
        choose(Confidential.SEV_SNP, evidence)
    assert words in raised.value.message


def test_what_the_host_says_is_read() -> None:
    text = "processor : 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu sev sev_snp\n\nprocessor : 1\n"
    assert probe.processor(text) == ("AuthenticAMD", frozenset({"fpu", "sev", "sev_snp"}))
    assert probe.processor("") == ("", frozenset())
    assert probe.objects("List of user creatable objects:\n  sev-guest\n  tdx-guest\n") == {"sev-guest", "tdx-guest"}
    assert probe.encryption(0x00F35173) == Encryption(c_bit=51, reduced_bits=5)


def a_vm(**changes: Any) -> Vm:
    fields: dict[str, Any] = {
        "name": "a",
        "uuid": "0f6a3b7e-6a42-4a0b-8d0e-5c3f2b1f9d10",
        "board_type": "pc-q35-10.1",
        "accelerator": "kvm",
        "sizing": arguments.sizing(SIZE),
        "graphics": Graphics.NONE,
        "mac": "02:00:00:00:00:01",
    }
    return Vm(**{**fields, **changes})


def following(words: list[str], option: str) -> list[str]:
    return [words[number + 1] for number, word in enumerate(words) if word == option]


@pytest.mark.parametrize("technology", list(Confidential))
def test_a_machine_under_guard(technology: Confidential) -> None:
    guard = Guard(
        technology=technology, firmware=Path("/boot/firmware"), encryption=Encryption(c_bit=51, reduced_bits=5)
    )
    words = arguments.protected(vm_arguments(a_vm()), guard, SIZE)
    (board,) = following(words, "-machine")
    assert (
        board.startswith("pc-q35-10.1")
        and "confidential-guest-support=guard" in board
        and "memory-backend=memory" in board
    )
    assert (
        "smm=off" in board
        and "pflash" not in board
        and ("kernel-irqchip=split" in board) == (technology is Confidential.TDX)
    )
    assert following(words, "-accel") == ["kvm"] and following(words, "-bios") == ["/boot/firmware"]
    objects = following(words, "-object")
    kinds = [item.split(",")[0] for item in objects]
    if technology is Confidential.SEV_SNP:
        assert kinds == ["memory-backend-memfd", "sev-snp-guest"]
        assert "cbitpos=51,reduced-phys-bits=5,policy=0x30000" in objects[1] and following(words, "-cpu") == ["EPYC-v4"]
    else:
        assert kinds == ["memory-backend-ram", "tdx-guest"] and following(words, "-cpu") == ["host"]
    assert f"size={SIZE.memory}" in objects[0]
    devices = following(words, "-device")
    assert not any(item.startswith(("virtio-balloon", "vmgenid")) for item in devices)
    virtio = [item for item in devices if item.startswith("virtio-") and "-pci" in item]
    assert virtio and all(item.endswith("iommu_platform=on") for item in virtio)
    # Nothing else was lost on the way.
    for option in ("-sandbox", "-name", "-uuid", "-smp", "-m", "-netdev", "-chardev"):
        assert following(words, option) == following(vm_arguments(a_vm()), option)


def test_what_the_host_says_beside_the_launch_is_measured() -> None:
    guard = Guard(technology=Confidential.SEV_SNP, firmware=Path("/f"), host_data=b"x", kernel_hashes=True)
    assert "kernel-hashes=on,host-data=eAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=" in arguments.guard_object(guard)[1]
    guard = Guard(technology=Confidential.TDX, firmware=Path("/f"), host_data=b"x" * 49)
    with pytest.raises(Unsupported, match="at most 48"):
        arguments.guard_object(guard)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"firmware": Firmware.UEFI}, "firmware"),
        ({"tpm": True}, "TPM"),
        ({"graphics": Graphics.VGA}, "screen"),
        ({"hardware": Hardware.GENERIC}, "generic hardware"),
        ({"watchdog": Watchdog.RESET}, "watchdog"),
    ],
)
def test_what_would_let_the_host_in_is_refused(changes: dict[str, Any], words: str) -> None:
    arguments.check(a_vm())
    with pytest.raises(Unsupported, match=words):
        arguments.check(a_vm(**changes))
