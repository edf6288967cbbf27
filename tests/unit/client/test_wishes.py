"""What people write in Python, as specs."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.client import wish
from lamella.client.changes import Changes, of_a_nic, patch, to_instance
from lamella.model.errors import Conflict, Invalid, NotFound
from lamella.model.instance import InstanceStatus, Isolation, RestartMode
from lamella.model.quantity import format_cpu, format_size
from lamella.model.resource import new_resource


def test_units_as_people_type_them() -> None:
    made = wish.instance(
        "debian:12", {"memory": "512MiB", "cpu": 1.5, "disk": 1 << 30, "isolation": "microvm", "stop_timeout": "2m"}
    )
    assert (made.spec.memory, made.spec.cpu, made.spec.disk, made.spec.stop_timeout) == (
        512 << 20,
        1500,
        1 << 30,
        120.0,
    )
    assert made.spec.isolation is Isolation.MICROVM
    assert [nic.network for nic in made.spec.nics] == ["default"]
    assert wish.instance("debian:12", {"network": "none"}).spec.nics == []


@pytest.mark.parametrize(
    "wishes",
    [
        {"memory": "much"},
        {"cpu": "none"},
        {"isolation": "vm9"},
        {"command": "a b"},
        {"publish": ["x"]},
        {"restart": "maybe"},
        {"pids": "4"},
        {"disks": ["much"]},
        {"disks": {"Bad Name": "1GiB"}},
        {"usb": ["keyboard"]},
        {"ssh_keys": ["-----BEGIN OPENSSH PRIVATE KEY-----\n"]},
        {"certificates": ["none"]},
        {"directories": ["data"]},
        {"firmware": "coreboot"},
        {"firmware": "bios", "secure_boot": True},
        {"watchdog": "bark"},
        {"fuel": 0},
        {"deadline": "soon"},
        {"user_data": "x", "seed": False},
    ],
)
def test_what_is_not_understood_is_refused(wishes: wish.Wishes) -> None:
    with pytest.raises(Invalid):
        wish.instance("debian:12", wishes)


@given(st.integers(4 << 20, 1 << 50))
def test_a_size_in_words_is_the_size_when_exact(size: int) -> None:
    size &= ~((1 << 20) - 1)
    assert wish.size(format_size(size), field="memory") == size or "." in format_size(size)


@given(st.integers(10, 1_000_000))
def test_cores_are_exact_to_the_milli_core(milli: int) -> None:
    assert wish.cores(milli / 1000) == milli
    assert milli > 999_999 or wish.cores(format_cpu(milli)) == milli


def test_restart_policies() -> None:
    assert wish.restart("on-failure:3") == msgspec.convert(
        {"mode": "on-failure", "retries": 3}, type(wish.restart("no"))
    )
    assert wish.restart("always").mode is RestartMode.ALWAYS


def test_a_patch_holds_only_what_was_said() -> None:
    assert msgspec.to_builtins(patch({"memory": None})) == {"spec": {"memory": None}}
    assert msgspec.to_builtins(patch({"labels": {"a": None}})) == {"labels": {"a": None}}
    assert msgspec.to_builtins(patch({"rate_in": "10Mbit"})) == {}


def test_rates_are_of_a_nic_and_leave_the_others() -> None:
    spec = wish.instance(
        "x", {"isolation": "vm", "address": "10.0.0.7", "rate_out": "1Mbit", "networks": ["back"]}
    ).spec
    spec.nics[1].name = "nic1"
    instance = new_resource("instance", "db", spec, InstanceStatus(), project="team")

    def asked(changes: Changes) -> dict[str, Any]:
        assert of_a_nic(changes)
        call = to_instance(instance, changes)
        assert call.request.target.startswith(f"/v1/projects/team/instances/{instance.id}?")
        assert call.request.headers["If-Match"] == f'"{instance.revision}"'
        return msgspec.json.decode(bytes(call.request.body or b""))  # type: ignore[arg-type]

    first, second = asked({"rate_in": "100Mbit", "rate_out": None, "pids": 77, "labels": {"a": None}})["spec"]["nics"]
    assert (first["rate_in"], first["rate_out"], first["address"]) == (100_000_000, None, "10.0.0.7")
    assert (second["name"], second["network"], second["rate_in"]) == ("nic1", "back", None)
    assert asked({"rate_in": 64_000, "pids": 77, "labels": {"a": None}})["labels"] == {"a": None}
    first, second = asked({"rate_in": 64_000, "nic": "nic1"})["spec"]["nics"]
    assert (first["rate_in"], first["rate_out"], second["rate_in"]) == (None, 1_000_000, 64_000)
    assert asked({"rate_in": None, "nic": "nic", "memory": None})["spec"]["memory"] is None
    with pytest.raises(NotFound, match="no NIC 'nic2'") as absent:
        to_instance(instance, {"rate_in": 64_000, "nic": "nic2"})
    assert absent.value.hint == "it has nic, nic1"
    with pytest.raises(Invalid, match="rate_in 'much'"):
        to_instance(instance, {"rate_in": "much"})
    with pytest.raises(Invalid, match="nothing of the NIC"):
        of_a_nic({"nic": "nic1", "pids": 1})
    instance.spec.nics = []
    with pytest.raises(Conflict, match="no network"):
        to_instance(instance, {"rate_in": 64_000})


def test_a_machine_as_people_wish_it() -> None:
    made = wish.instance(
        "scratch",
        {
            "isolation": "vm",
            "disk": "8GiB",
            "disks": ["1GiB", 2 << 30],
            "cdroms": ["installer"],
            "usb": ["1D6B:0002"],
            "networks": ["back"],
            "firmware": "uefi",
            "tpm": True,
            "graphics": "virtio",
            "boot": ["cdrom1", "root"],
            "user_data": "#cloud-config\n",
            "ssh_keys": ["ssh-ed25519 AAAA anna"],
        },
    ).spec
    assert [(disk.name, disk.size) for disk in made.disks] == [("disk1", 1 << 30), ("disk2", 2 << 30)]
    assert (made.cdroms[0].name, made.usb[0].device, made.nics[1].network) == ("cdrom1", "1d6b:0002", "back")
    assert (made.board.tpm, made.board.graphics, made.board.boot) == (True, "virtio", ["cdrom1", "root"])
    assert (made.seed.user_data, made.seed.ssh_keys) == ("#cloud-config\n", ["ssh-ed25519 AAAA anna"])


def test_a_module_and_a_kernel_as_people_wish_them() -> None:
    made = wish.instance(
        "app", {"isolation": "wasm", "directories": ["/srv:/srv:ro"], "fuel": 10**9, "deadline": "1.5s"}
    ).spec
    assert (made.directories[0].read_only, made.fuel, made.deadline) == (True, 10**9, 1.5)
    assert wish.instance("k", {"isolation": "unikernel", "command_line": "a=b"}).spec.board.command_line == "a=b"


def test_secure_boot_brings_uefi() -> None:
    pem = "-----BEGIN CERTIFICATE-----\nQQ==\n-----END CERTIFICATE-----\n"
    for wishes in ({"secure_boot": True}, {"certificates": [pem]}):
        board = wish.instance("x", {"isolation": "vm", **wishes}).spec.board  # type: ignore[typeddict-item]
        assert (board.firmware, board.secure_boot) == ("uefi", True)


def test_what_nobody_wished_is_as_it_would_be() -> None:
    assert wish.instance("debian:12", {}).spec == wish.instance("debian:12", {"seed": True, "disks": []}).spec
