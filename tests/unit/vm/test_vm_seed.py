"""The seed drive: what cloud-init is told, whatever anybody put into the values."""

import asyncio
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lamella.host.compute.driver import Limits, Machine, NamedNic, Rootfs
from lamella.host.compute.guest import service
from lamella.host.compute.vm import seed
from lamella.host.linux.processes import environment
from lamella.host.network.driver import Attachment
from lamella.host.storage.driver import VolumeHandle
from lamella.model.board import Seed
from lamella.model.errors import Internal, Unavailable
from lamella.model.image import ImageConfig
from lamella.model.storage import VolumeForm

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ ann@home"
NIC = Attachment(port="p", mac="02:00:00:00:00:0A", address="10.0.0.5/24", gateway="10.0.0.1", mtu=1400)


def machine(
    *,
    hostname: str = "db",
    nic: Attachment | None = NIC,
    nics: list[Attachment] | None = None,
    nameservers: list[str] | None = None,
    given_seed: Seed | None = None,
) -> Machine:
    return Machine(
        id="inst_1",
        name="db",
        project="p",
        rootfs=Rootfs(digest="sha256:0", layers=[], config=ImageConfig()),
        command=["never", "run"],
        environment={"SECRET": "x"},
        working_directory="/",
        user="",
        hostname=hostname,
        terminal=False,
        stdin=False,
        limits=Limits(),
        id_base=0,
        disk=VolumeHandle(id="v", form=VolumeForm.BLOCK, path=Path("/none")),
        nic=nic,
        nics=[NamedNic(name=f"n{number}", attachment=nic) for number, nic in enumerate(nics or [])],
        nameservers=nameservers or [],
        stop_signal="SIGTERM",
        seed=given_seed or Seed(),
    )


# What the model lets through: no NUL and no line end in a key; surrogates are in no JSON text.
text = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=60)
line = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0\n"), max_size=60)
yaml_pieces = st.sampled_from(
    ["\n", "\r", ": ", "- ", "'", '"', "#", "{", "}", "[", "]", "|", ">", "&a", "*a", "!!python/object/apply:os.system",
     "\u2028", "\x85", "\ufeff", "---", "...", "%YAML 1.1", "users:", "  ", "\t", "yes", "0x10", "1:30", "~", "\\"]
)  # fmt: skip
hostile = st.one_of(text, st.lists(yaml_pieces, max_size=8).map("".join))


@given(hostile, st.lists(st.one_of(line, st.just("key\r\nusers: [root]"), st.just("- x: {")), max_size=4))
def test_no_name_and_no_key_breaks_out_of_the_meta_data(hostname: str, keys: list[str]) -> None:
    told = yaml.safe_load(seed.meta_data(machine(hostname=hostname, given_seed=Seed(ssh_keys=keys))))
    wanted: dict[str, object] = {"instance-id": "inst_1", "local-hostname": hostname}
    assert told == (wanted | {"public-keys": keys} if keys else wanted)


@given(hostile, hostile, st.lists(hostile, max_size=3), hostile)
def test_nothing_breaks_out_of_the_network_config(address: str, gateway: str, servers: list[str], name: str) -> None:
    nic = Attachment(port="p", mac="02:00:00:00:00:07", address=address, gateway=gateway, mtu=1400, interface=name)
    told = yaml.safe_load(seed.network_config(machine(nic=nic, nameservers=servers)))
    assert told["version"] == 2
    (ethernet,) = told["ethernets"].values()
    assert ethernet["addresses"] == [address]
    assert ethernet["set-name"] == name
    assert ethernet.get("gateway4", ethernet.get("gateway6", "")) == gateway
    assert ethernet.get("nameservers", {"addresses": []})["addresses"] == servers


@given(text)
def test_user_data_is_passed_on_byte_for_byte(user_data: str) -> None:
    files = seed.seed_files(machine(given_seed=Seed(user_data=user_data)))
    assert files["user-data"] == user_data.encode()
    assert set(files) == {"meta-data", "user-data", "network-config", "vendor-data"}


def test_neither_the_command_nor_its_environment_is_told() -> None:
    told = b"".join(seed.seed_files(machine()).values())
    assert b"never" not in told
    assert b"SECRET" not in told


def test_nics_are_found_by_their_addresses_and_the_first_has_the_way_out() -> None:
    second = Attachment(port="q", mac="02:00:00:00:00:0B", address="10.1.0.5/16", gateway="10.1.0.1", mtu=0)
    told = yaml.safe_load(seed.network_config(machine(nics=[second, second], nameservers=["10.0.0.1"])))
    assert told == {
        "version": 2,
        "ethernets": {
            "eth0": {
                "match": {"macaddress": "02:00:00:00:00:0a"},
                "set-name": "eth0",
                "addresses": ["10.0.0.5/24"],
                "gateway4": "10.0.0.1",
                "accept-ra": False,
                "mtu": 1400,
                "nameservers": {"addresses": ["10.0.0.1"]},
            },
            "eth1": {
                "match": {"macaddress": "02:00:00:00:00:0b"},
                "set-name": "eth1",
                "addresses": ["10.1.0.5/16"],
                "accept-ra": False,
            },
            "eth2": {
                "match": {"macaddress": "02:00:00:00:00:0b"},
                "set-name": "eth2",
                "addresses": ["10.1.0.5/16"],
                "accept-ra": False,
            },
        },
    }


def test_an_instance_without_a_nic_is_told_so() -> None:
    assert yaml.safe_load(seed.network_config(machine(nic=None))) == {"version": 2, "ethernets": {}}


def test_a_gateway_of_ipv6_is_one() -> None:
    nic = Attachment(port="p", mac="02:00:00:00:00:07", address="fd00::5/64", gateway="fd00::1", mtu=1400)
    assert yaml.safe_load(seed.network_config(machine(nic=nic)))["ethernets"]["eth0"]["gateway6"] == "fd00::1"


def test_the_vendor_data_is_a_script_that_a_shell_can_read() -> None:
    script = seed.vendor_data()
    assert script.startswith("#cloud-boothook\n#!/bin/sh\n")
    assert "@" not in script
    assert service.UNIT in script
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)


async def test_the_drive_is_the_same_for_the_same_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_machine = machine(given_seed=Seed(user_data="#cloud-config\n{}\n", ssh_keys=[KEY]))
    first, second = tmp_path / "a", tmp_path / "elsewhere" / "b"
    second.parent.mkdir()
    await seed.make_seed(given_machine, first, environment("lamella-test"))
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    await seed.make_seed(given_machine, second, environment("lamella-test", TZ="Asia/Tokyo"))
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size < 2 << 20
    assert [entry.name for entry in tmp_path.iterdir()] in (["a", "elsewhere"], ["elsewhere", "a"])


def unpack(drive: Path, target: Path) -> str:
    """All files of a sound drive in *target*; returns its label."""
    subprocess.run(["fsck.vfat", "-n", drive], check=True, capture_output=True)
    target.mkdir()
    subprocess.run(["mcopy", "-i", drive, "::*", target], check=True)
    label = ["blkid", "-p", "-s", "LABEL", "-o", "value", drive]
    return subprocess.run(label, capture_output=True, text=True, check=True).stdout.strip()


async def test_the_drive_holds_what_it_should(tmp_path: Path) -> None:
    large = "#cloud-config\n" + "# " + "x" * ((1 << 20) - 100)
    given_machine = machine(given_seed=Seed(user_data=large, ssh_keys=[KEY]))
    drive = tmp_path / "drive"
    await seed.make_seed(given_machine, drive, environment("lamella-test"))
    out = tmp_path / "out"
    label = await asyncio.to_thread(unpack, drive, out)
    assert label == "CIDATA"
    for name, content in seed.seed_files(given_machine).items():
        assert (out / name).read_bytes() == content
    assert (out / "lamella-agent").read_bytes()[:4] == b"\x7fELF"


async def test_a_drive_that_cannot_be_made_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drive = tmp_path / "drive"
    drive.write_bytes(b"old")
    false = shutil.which("false")
    assert false is not None

    def no_tool(*names: str) -> Path:
        return Path(false)

    monkeypatch.setattr("lamella.host.linux.binaries.tool", no_tool)
    with pytest.raises(Internal, match="could not make the seed drive"):
        await seed.make_seed(machine(), drive, environment("lamella-test"))
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("lamella.host.linux.binaries.places", lambda: [tmp_path])
    with pytest.raises(Unavailable, match="lamella-agent"):
        await seed.make_seed(machine(), drive, environment("lamella-test"))
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("drive", b"old")]
