"""From a machine to the runtime's configuration."""

import json
import tempfile
from pathlib import Path

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from lamella.host.compute.driver import Home, Limits, Machine, Rootfs
from lamella.host.compute.oci import record
from lamella.host.compute.oci.bundle import bundle, generated, process
from lamella.host.compute.oci.identity import Identity
from lamella.host.compute.oci.layout import Places
from lamella.host.compute.oci.profile import CAPABILITIES, MASKED, READONLY
from lamella.host.compute.oci.seccomp import profile
from lamella.host.network.driver import Attachment
from lamella.host.storage.driver import VolumeHandle
from lamella.model.image import ImageConfig
from lamella.model.storage import VolumeForm
from lamella.model.stream import ExecSpec

HOME = Home(Path("/var/lib/layer"), "lamella-12345678")
PLACE = Places(HOME).of("inst_00000000000000000000000000")
SECCOMP = profile("x86_64")

text = st.text(st.characters(blacklist_characters="\x00", blacklist_categories=["Cs"]), max_size=20)
names = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ_", min_size=1, max_size=8)
nics = st.none() | st.just(
    Attachment(port="port_1", mac="02:00:00:00:00:01", address="10.83.0.7/16", gateway="10.83.0.1", mtu=1500)
)
machines = st.builds(
    Machine,
    id=st.just(PLACE.id),
    name=st.just("web"),
    project=st.just("default"),
    rootfs=st.just(Rootfs(digest="sha256:0", layers=[Path("/layers/1")], config=ImageConfig())),
    command=st.lists(text, min_size=1, max_size=4),
    environment=st.dictionaries(names, text, max_size=5),
    working_directory=st.sampled_from(["", "/", "/srv"]),
    user=st.just("0"),
    hostname=st.just("web-1"),
    terminal=st.booleans(),
    stdin=st.booleans(),
    limits=st.just(Limits(pids=5)),
    id_base=st.integers(65536, 2**31),
    disk=st.just(VolumeHandle(id="vol_1", form=VolumeForm.FILESYSTEM, path=Path("/disk"))),
    nic=nics,
    nameservers=st.lists(st.just("10.83.0.1"), max_size=2),
    stop_signal=st.just("SIGTERM"),
)
identities = st.builds(
    Identity,
    uid=st.integers(0, 65535),
    gid=st.integers(0, 65535),
    groups=st.lists(st.integers(0, 65535), max_size=3),
    home=st.just("/home/x"),
)


@given(machines, identities)
def test_every_container_stands_behind_every_wall(machine: Machine, identity: Identity) -> None:
    spec = json.loads(msgspec.json.encode(bundle(machine, identity, PLACE, cgroup="/mark/id", seccomp=SECCOMP)))
    linux = spec["linux"]
    assert {one["type"] for one in linux["namespaces"]} == {"user", "pid", "mount", "network", "ipc", "uts", "cgroup"}
    joined = {one["type"]: one["path"] for one in linux["namespaces"] if "path" in one}
    assert joined == {"user": str(PLACE.user_namespace), "network": str(PLACE.net_namespace)}
    assert linux["uidMappings"] == [{"containerID": 0, "hostID": machine.id_base, "size": 65536}]
    assert linux["gidMappings"] == linux["uidMappings"]
    assert spec["process"]["noNewPrivileges"] is True
    held = spec["process"]["capabilities"]
    assert set(held["bounding"]) == set(CAPABILITIES)
    assert held.get("effective", []) == (CAPABILITIES if identity.uid == 0 else [])
    assert "ambient" not in held
    assert "inheritable" not in held
    assert linux["maskedPaths"] == MASKED
    assert linux["readonlyPaths"] == READONLY
    assert linux["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    assert linux["resources"]["devices"] == [{"allow": False, "access": "rwm"}]
    assert linux["cgroupsPath"] == "/mark/id"
    assert "rlimits" not in spec["process"]
    assert not Path(spec["root"]["path"]).is_absolute()
    binds = [mount for mount in spec["mounts"] if mount["type"] == "bind"]
    assert {mount["destination"] for mount in binds} == {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}
    assert all(mount["source"].startswith(str(PLACE.bundle)) for mount in binds)


@given(machines, identities)
def test_the_process_is_as_asked(machine: Machine, identity: Identity) -> None:
    made = bundle(machine, identity, PLACE, cgroup="/mark/id", seccomp=SECCOMP).process
    assert made.args == machine.command
    assert (made.user.uid, made.user.gid, made.user.additional_gids) == (identity.uid, identity.gid, identity.groups)
    found = dict(entry.split("=", 1) for entry in made.env)
    assert len(found) == len(made.env)
    assert machine.environment.items() <= found.items()
    assert "PATH" in found
    assert ("TERM" in found) or not machine.terminal
    assert made.cwd.startswith("/")


@given(machines, identities, st.dictionaries(names, text, max_size=4), st.booleans())
def test_a_process_beside_it_has_the_same_walls(
    machine: Machine, identity: Identity, more: dict[str, str], terminal: bool
) -> None:
    own = bundle(machine, identity, PLACE, cgroup="/mark/id", seccomp=SECCOMP).process
    beside = process(machine, ExecSpec(command=["x"], environment=more, terminal=terminal), identity)
    assert beside.capabilities == own.capabilities
    assert beside.no_new_privileges
    found = dict(entry.split("=", 1) for entry in beside.env)
    assert more.items() <= found.items()
    assert {name: value for name, value in machine.environment.items() if name not in more}.items() <= found.items()


@given(machines)
def test_generated_files(machine: Machine) -> None:
    files = generated(machine)
    assert files["hostname"] == "web-1\n"
    address = "10.83.0.7" if machine.nic else "127.0.1.1"
    assert f"{address}\tweb-1 web\n" in files["hosts"]
    assert files["resolv.conf"].count("nameserver") == (len(machine.nameservers) if machine.nic else 0)


@given(machines)
def test_the_record_comes_back_as_written(machine: Machine) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "machine.json"
        assert record.read(path) is None
        record.write(path, machine)
        assert record.read(path) == machine
        path.write_bytes(path.read_bytes()[:-2])
        assert record.read(path) is None


def test_ids_of_half_written_exit_files_are_known(tmp_path: Path) -> None:
    places = Places(Home(tmp_path, "lamella-1"))
    places.make()
    (places.exits / "inst_00000000000000000000000001.A1B2C3").touch()
    (places.runtime / ".cache").mkdir()
    (places.logs / "inst_00000000000000000000000002").touch()
    assert places.ids() == {"inst_00000000000000000000000001", "inst_00000000000000000000000002"}
