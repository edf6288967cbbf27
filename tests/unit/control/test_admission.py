"""From a request to everything an instance is."""

from ipaddress import IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.control.addressing import FIRST_ID, ID_RANGES, IDS_EACH, free_address, free_id_range, mac_of
from lamella.control.admission import Taken, admit, check_spec, command_of
from lamella.control.intent import apply_power, settled
from lamella.control.merging import merge_patch
from lamella.control.placement import Placement, place
from lamella.model.errors import Conflict, Invalid, NoRoom, Unsupported
from lamella.model.host import Capability, Host, HostSpec, HostStatus
from lamella.model.image import Image, ImageConfig, ImageSpec, ImageStatus
from lamella.model.instance import (
    InstanceSpec,
    InstanceStatus,
    Isolation,
    Nic,
    Phase,
    Power,
    Publish,
    RestartMode,
    RestartPolicy,
)
from lamella.model.network import Network, NetworkSpec, NetworkStatus
from lamella.model.resource import new_resource
from lamella.model.storage import VolumeForm


def a_host(name: str = "alpha", *, able: bool = True, phase: str = "ready", architecture: str = "amd64") -> Host:
    capabilities = [
        Capability(name=f"compute.{level}", available=able, reason="" if able else "crun is not installed")
        for level in Isolation
    ]
    status = HostStatus(phase=phase, capabilities=capabilities, architecture=architecture)
    return new_resource("host", name, HostSpec(), status)


def an_image(config: ImageConfig | None = None) -> Image:
    status = ImageStatus(
        digest="sha256:" + "a" * 64, architecture="amd64", config=config or ImageConfig(command=["bash"])
    )
    return new_resource("image", "debian:12", ImageSpec(source="mmdebstrap:debian:12"), status)


def a_network(subnet: str = "10.83.0.0/16") -> Network:
    return new_resource("network", "default", NetworkSpec(subnet=subnet), NetworkStatus(gateway="10.83.0.1"))


def admitted(spec: InstanceSpec, **changes: object):
    arguments = {
        "name": "web",
        "project": "default",
        "labels": {},
        "spec": spec,
        "image": an_image(),
        "placement": Placement(host=a_host(), because="it is there"),
        "networks": [a_network() for _ in spec.nics],
        "taken": Taken(addresses={}, id_ranges=set()),
        "seed": "lamella-00000000",
    }
    return admit(**(arguments | changes))  # type: ignore[arg-type]


@given(st.sets(st.integers(2, 14)), st.integers(0, 1 << 32))
def test_an_address_is_free_and_fit_or_there_is_no_room(taken_hosts: set[int], near: int) -> None:
    subnet = IPv4Network("10.1.0.0/28")
    taken = {str(subnet.network_address + host) for host in taken_hosts}
    if len(taken) == 13:
        with pytest.raises(NoRoom):
            free_address(subnet, taken, near=near)
        return
    address = free_address(subnet, taken, near=near)
    assert str(address.ip) not in taken
    assert address.ip in subnet
    assert address.ip not in (subnet.network_address, subnet.network_address + 1, subnet.broadcast_address)


@given(st.text(max_size=8), st.integers(0, 40))
def test_id_ranges_never_overlap(seed: str, count: int) -> None:
    taken: set[str] = set()
    for _ in range(count):
        base = free_id_range(taken, seed=seed)
        assert base >= FIRST_ID and (base - FIRST_ID) % IDS_EACH == 0
        assert base + IDS_EACH <= FIRST_ID + ID_RANGES * IDS_EACH < 1 << 32
        assert str(base) not in taken
        taken.add(str(base))


@given(st.text(min_size=1, max_size=30))
def test_a_mac_is_unicast_and_locally_administered(port: str) -> None:
    first = int(mac_of(port)[:2], 16)
    assert first & 1 == 0 and first & 2 == 2


def test_a_container_gets_a_tree_and_a_microvm_a_disk() -> None:
    assert admitted(InstanceSpec(image="debian:12")).volume.spec.form is VolumeForm.FILESYSTEM
    assert admitted(InstanceSpec(image="debian:12", isolation=Isolation.MICROVM)).volume.spec.form is VolumeForm.BLOCK


def test_everything_that_is_owned_names_its_owner() -> None:
    made = admitted(InstanceSpec(image="debian:12", nics=[Nic(publish=[Publish(port=80)])]))
    assert made.port is not None
    assert made.volume.spec.owner == made.port.spec.owner == made.instance.id
    assert made.instance.status.port == made.port.id
    assert made.port.spec.publish == [Publish(port=80)]
    assert {"image", "isolation", "host", "disk", "host ids", "address"} <= {
        d.what for d in made.instance.status.decisions
    }


def test_no_network_means_no_port() -> None:
    assert admitted(InstanceSpec(image="debian:12")).port is None


def test_a_stopped_one_waits_for_its_first_start() -> None:
    assert admitted(InstanceSpec(image="debian:12", power=Power.STOPPED)).instance.spec.epoch == 0
    assert admitted(InstanceSpec(image="debian:12", epoch=99)).instance.spec.epoch == 1


def test_a_bound_that_would_not_be_kept_is_refused() -> None:
    with pytest.raises(Unsupported, match="bound"):
        admitted(InstanceSpec(image="x", disk=1 << 30))
    microvm = InstanceSpec(image="x", disk=1 << 30, isolation=Isolation.MICROVM)
    assert admitted(microvm).volume.spec.size == 1 << 30


def test_another_architecture_is_refused() -> None:
    with pytest.raises(Unsupported, match="arm64"):
        admitted(InstanceSpec(image="x"), placement=Placement(host=a_host(architecture="arm64"), because=""))


@pytest.mark.parametrize(
    ("config", "entrypoint", "command", "whole"),
    [
        (ImageConfig(command=["bash"]), None, None, ["bash"]),
        (ImageConfig(entrypoint=["/run"], command=["a"]), None, None, ["/run", "a"]),
        (ImageConfig(entrypoint=["/run"], command=["a"]), None, ["b"], ["/run", "b"]),
        (ImageConfig(entrypoint=["/run"], command=["a"]), ["/other"], None, ["/other"]),
        (ImageConfig(entrypoint=["/run"], command=["a"]), [], ["b"], ["b"]),
    ],
)
def test_commands_join_as_in_docker(config, entrypoint, command, whole) -> None:
    assert command_of(InstanceSpec(image="x", entrypoint=entrypoint, command=command), an_image(config)) == whole


def test_an_image_without_a_command_needs_one() -> None:
    with pytest.raises(Invalid, match="names no program"):
        command_of(InstanceSpec(image="x"), an_image(ImageConfig()))


@pytest.mark.parametrize(
    "spec",
    [
        InstanceSpec(image="x", remove_on_exit=True, restart=RestartPolicy(mode=RestartMode.ALWAYS)),
        InstanceSpec(image="x", command=[]),
        InstanceSpec(image="x", command=[""]),
        InstanceSpec(image="x", working_directory="tmp"),
        InstanceSpec(image="x", nics=[Nic(publish=[Publish(host_port=80, port=80), Publish(host_port=80, port=81)])]),
        InstanceSpec(image="x", nics=[Nic(publish=[Publish(host_address="localhost", port=81)])]),
        InstanceSpec(image="x", nics=[Nic(publish=[Publish(host_address="1.2.3.256", port=81)])]),
    ],
)
def test_what_contradicts_itself_is_refused(spec: InstanceSpec) -> None:
    with pytest.raises(Invalid) as caught:
        check_spec(spec)
    assert caught.value.hint


def test_placement_takes_the_least_loaded_able_host() -> None:
    hosts = [a_host("a"), a_host("b"), a_host("c", able=False), a_host("d", phase="lost")]
    load = {hosts[0].id: 3, hosts[1].id: 1}
    assert place(InstanceSpec(image="x"), hosts, load).host.name == "b"


def test_placement_says_why_nobody_can() -> None:
    with pytest.raises(Unsupported, match="crun is not installed"):
        place(InstanceSpec(image="x"), [a_host(able=False)], {})
    with pytest.raises(NoRoom, match="no host is ready"):
        place(InstanceSpec(image="x"), [a_host(phase="pending")], {})


def instance_in(phase: Phase, power: Power, *, asked: int = 1, launched: int = 1):
    spec = InstanceSpec(image="x", power=power, epoch=asked)
    return new_resource("instance", "web", spec, InstanceStatus(phase=phase, epoch=launched, observed_generation=1))


def test_start_asks_for_a_new_run_only_when_the_last_is_over() -> None:
    ended = instance_in(Phase.STOPPED, Power.RUNNING)
    apply_power(ended, "start")
    assert ended.spec.epoch == 2
    running = instance_in(Phase.RUNNING, Power.RUNNING)
    apply_power(running, "start")
    assert running.spec.epoch == 1


def test_restart_always_asks_for_a_new_run() -> None:
    running = instance_in(Phase.RUNNING, Power.RUNNING)
    apply_power(running, "restart")
    assert running.spec.epoch == 2


def test_pause_needs_something_that_runs() -> None:
    with pytest.raises(Conflict):
        apply_power(instance_in(Phase.STOPPED, Power.RUNNING), "pause")
    with pytest.raises(Conflict):
        apply_power(instance_in(Phase.RUNNING, Power.RUNNING), "resume")


@pytest.mark.parametrize(
    ("phase", "power", "launched", "is_settled"),
    [
        (Phase.RUNNING, Power.RUNNING, 1, True),
        (Phase.STOPPED, Power.RUNNING, 1, True),
        (Phase.STOPPED, Power.RUNNING, 0, False),
        (Phase.STARTING, Power.RUNNING, 1, False),
        (Phase.RUNNING, Power.STOPPED, 1, False),
        (Phase.STOPPED, Power.STOPPED, 0, True),
        (Phase.PAUSED, Power.PAUSED, 1, True),
        (Phase.FAILED, Power.RUNNING, 0, True),
    ],
)
def test_when_an_instance_has_settled(phase: Phase, power: Power, launched: int, is_settled: bool) -> None:
    assert settled(instance_in(phase, power, launched=launched)) is is_settled


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [  # RFC 7396, appendix A
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ],
)
def test_merge_patch(target, patch, result) -> None:
    assert merge_patch(target, patch) == result
