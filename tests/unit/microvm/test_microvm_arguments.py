"""The command line of QEMU: what must never be missing, whatever is asked."""

from hypothesis import given
from hypothesis import strategies as st

from lamella.host.compute.microvm.arguments import ROOT_SERIAL, SANDBOX, TAP, Hardware, arguments, kernel_line
from lamella.host.compute.microvm.size import MIB, Size

MACS = st.integers(0, 2**40 - 1).map(
    lambda n: "02:" + ":".join(f"{n >> shift & 255:02x}" for shift in (32, 24, 16, 8, 0))
)
HARDWARE = st.builds(
    Hardware,
    name=st.just("inst_1"),
    size=st.builds(Size, vcpus=st.integers(1, 64), memory=st.integers(128, 1 << 20).map(lambda mib: mib * MIB)),
    accelerator=st.sampled_from(["kvm", "tcg"]),
    machine=st.sampled_from(["microvm", "q35"]),
    tsc_khz=st.integers(1_000_000, 6_000_000),
    mac=st.none() | MACS,
)


def values(argv: list[str], option: str) -> list[str]:
    return [argv[i + 1] for i, word in enumerate(argv) if word == option]


@given(HARDWARE)
def test_every_machine_is_confined_and_complete(hardware: Hardware) -> None:
    argv = arguments(hardware)
    assert all(isinstance(word, str) and "\0" not in word for word in argv)
    assert values(argv, "-sandbox") == [SANDBOX]
    for word in ("-nodefaults", "-no-user-config", "-no-reboot"):
        assert word in argv
    assert values(argv, "-display") == ["none"]
    root, data = (value for value in values(argv, "-device") if value.startswith("virtio-blk"))
    assert f"serial={ROOT_SERIAL}" in root and "drive=root" in root and "drive=data" in data
    assert all("read-only=on" in value for value in values(argv, "-blockdev") if "node-name=root" in value)
    assert all("read-only=off" in value for value in values(argv, "-blockdev") if "node-name=data" in value)


@given(HARDWARE)
def test_no_path_of_the_host_is_named(hardware: Hardware) -> None:
    """Files are descriptors, or lie in the room."""
    for value in values(arguments(hardware), "-blockdev"):
        assert "filename=/dev/fdset/" in value or "driver=raw" in value
    assert all("path=" not in value for value in values(arguments(hardware), "-chardev"))


@given(HARDWARE)
def test_the_nic_is_there_exactly_when_it_has_an_address(hardware: Hardware) -> None:
    argv = arguments(hardware)
    nics = [value for value in values(argv, "-device") if value.startswith("virtio-net")]
    if hardware.mac is None:
        assert not nics and "-netdev" not in argv
    else:
        assert len(nics) == 1 and f"mac={hardware.mac}" in nics[0]
        assert values(argv, "-netdev") == [f"tap,id=net,fd={TAP}"]


@given(HARDWARE)
def test_the_clock_is_told_to_an_emulated_guest_alone(hardware: Hardware) -> None:
    line = kernel_line(hardware)
    assert (f"tsc_early_khz={hardware.tsc_khz}" in line) == (hardware.accelerator == "tcg")
    assert ("mitigations=off" in line) == (hardware.accelerator == "tcg")


@given(HARDWARE)
def test_devices_fit_the_board(hardware: Hardware) -> None:
    suffix = "-device" if hardware.machine == "microvm" else "-pci"
    for value in values(arguments(hardware), "-device"):
        kind = value.partition(",")[0]
        assert kind == "virtserialport" or kind.endswith(suffix)
