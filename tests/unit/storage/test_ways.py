"""The way in to a volume, for each attachment."""

import pytest

from lamella.host.storage.ways import FILE, MOUNT, SERVED, TREE, choose
from lamella.model.errors import Unsupported
from lamella.model.instance import Isolation
from lamella.model.resource import new_resource
from lamella.model.storage import IoLimits, TieringPolicy, Volume, VolumeForm, VolumeSpec, VolumeStatus


def volume(**spec: object) -> Volume:
    return new_resource("volume", "data", VolumeSpec(**spec), VolumeStatus())  # type: ignore[arg-type]


@pytest.mark.parametrize("level", [Isolation.MICROVM, Isolation.VM])
def test_a_machine_is_served_what_it_alone_writes(level: Isolation) -> None:
    for cold in (volume(), volume(filesystem="ext4"), volume(limits=IoLimits(iops=100))):
        assert choose(cold, level, "", read_only=False).way == SERVED
    assert choose(volume(), level, "", read_only=False, running=True, shown=True).way == SERVED
    assert "NBD" in choose(volume(), level, "", read_only=False).words


@pytest.mark.parametrize(
    ("given", "options", "why"),
    [
        ({}, {"read_only": True}, "read"),
        ({"limits": IoLimits(iops=100, group="web")}, {"read_only": False}, "shared"),
        ({"tier": TieringPolicy(hot="fast", cold="slow")}, {"read_only": False}, "tiers"),
        ({}, {"read_only": False, "running": True}, "room"),
    ],
)
def test_a_machine_gets_a_file_where_a_socket_would_break_a_promise(
    given: dict[str, object], options: dict[str, bool], why: str
) -> None:
    chosen = choose(volume(**given), Isolation.VM, "", **options)
    assert chosen.way == FILE and why in chosen.why and chosen.why in chosen.words


@pytest.mark.parametrize("level", [Isolation.CONFIDENTIAL, Isolation.UNIKERNEL])
def test_other_machines_get_files(level: Isolation) -> None:
    assert choose(volume(), level, "", read_only=False).way == FILE


@pytest.mark.parametrize("level", [Isolation.CONTAINER, Isolation.WASM])
def test_what_runs_in_the_host_s_kernel_gets_a_directory(level: Isolation) -> None:
    tree = volume(form=VolumeForm.FILESYSTEM)
    assert choose(tree, level, "/data", read_only=False).way == TREE
    assert choose(volume(filesystem="ext4"), level, "/data", read_only=False).way == MOUNT
    with pytest.raises(Unsupported, match="bare"):
        choose(volume(), level, "", read_only=False)


def test_a_machine_takes_no_tree() -> None:
    with pytest.raises(Unsupported, match="takes disks"):
        choose(volume(form=VolumeForm.FILESYSTEM), Isolation.VM, "/data", read_only=False)
