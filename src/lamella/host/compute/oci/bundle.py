"""From a machine to the runtime's configuration: a pure function, so that every wall is a line that a test can read."""

from lamella.host.compute.driver import Machine
from lamella.host.compute.oci import volumes
from lamella.host.compute.oci.identity import Identity
from lamella.host.compute.oci.layout import Place
from lamella.host.compute.oci.profile import CAPABILITIES, FILESYSTEMS, MASKED, READONLY, SYSCTL
from lamella.host.compute.oci.spec import (
    ConsoleSize,
    DeviceRule,
    IdMapping,
    Linux,
    Mount,
    Namespace,
    Process,
    ProcessCapabilities,
    Resources,
    Root,
    Seccomp,
    Spec,
    User,
)
from lamella.model.stream import ExecSpec

RANGE = 65536
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
GENERATED = ("hosts", "hostname", "resolv.conf")


def bundle(machine: Machine, identity: Identity, place: Place, *, cgroup: str, seccomp: Seccomp) -> Spec:
    """The configuration of *machine*'s own process; namespaces for users and network are made already and joined."""
    mapping = IdMapping(container_id=0, host_id=machine.id_base, size=RANGE)
    return Spec(
        oci_version="1.0.2",
        process=Process(
            args=machine.command,
            cwd=machine.working_directory or "/",
            env=environment(machine, identity),
            user=_user(identity),
            capabilities=capabilities(identity),
            terminal=machine.terminal,
            console_size=ConsoleSize(height=24, width=80) if machine.terminal else None,
            no_new_privileges=True,
        ),
        # Relative to the bundle: the folders above it are closed to the container's ids.
        root=Root(path=place.rootfs.name),
        hostname=machine.hostname,
        mounts=[
            *FILESYSTEMS,
            *(_generated(place, name) for name in GENERATED),
            *volumes.bound(machine, place),
        ],
        linux=Linux(
            namespaces=[
                Namespace(type="user", path=str(place.user_namespace)),
                Namespace(type="network", path=str(place.net_namespace)),
                *(Namespace(type=kind) for kind in ("pid", "mount", "ipc", "uts", "cgroup")),
            ],
            # The same as the joined namespace has: runc wants to be told, crun reads the namespace.
            uid_mappings=[mapping],
            gid_mappings=[mapping],
            cgroups_path=cgroup,
            resources=Resources(devices=[DeviceRule(allow=False)]),
            masked_paths=MASKED,
            readonly_paths=READONLY,
            seccomp=seccomp,
            sysctl=SYSCTL,
        ),
    )


def process(machine: Machine, spec: ExecSpec, identity: Identity) -> Process:
    """The configuration of a process beside the instance's own, inside the same walls."""
    return Process(
        args=spec.command,
        cwd=spec.working_directory or machine.working_directory or "/",
        env=environment(machine, identity, terminal=spec.terminal, more=spec.environment),
        user=_user(identity),
        capabilities=capabilities(identity),
        terminal=spec.terminal,
        console_size=ConsoleSize(height=spec.rows, width=spec.columns) if spec.terminal else None,
        no_new_privileges=True,
    )


def environment(
    machine: Machine, identity: Identity, *, terminal: bool | None = None, more: dict[str, str] | None = None
) -> list[str]:
    """What the process finds: defaults, over them the machine's, over them what was asked for this process."""
    merged = {"PATH": PATH, "HOSTNAME": machine.hostname, "HOME": identity.home}
    if machine.terminal if terminal is None else terminal:
        merged["TERM"] = "xterm"
    merged |= machine.environment
    merged |= more or {}
    return [f"{name}={value}" for name, value in merged.items()]


def capabilities(identity: Identity) -> ProcessCapabilities:
    """Root inside holds the list; another user holds none, and may not gain any (no new privileges)."""
    held = CAPABILITIES if identity.uid == 0 else []
    return ProcessCapabilities(bounding=CAPABILITIES, effective=held, permitted=held)


def hosts(machine: Machine) -> str:
    """/etc/hosts: loopback, and the instance's own name at its own addresses."""
    lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    address = machine.nic.address.partition("/")[0] if machine.nic else "127.0.1.1"
    names = " ".join(dict.fromkeys([machine.hostname, machine.name]))
    own = [address]
    if machine.nic is not None and machine.nic.address6:
        own.append(machine.nic.address6.partition("/")[0])
    return "\n".join([*lines, *(f"{each}\t{names}" for each in own), ""])


def resolv_conf(machine: Machine) -> str:
    """/etc/resolv.conf; empty without a network."""
    return "".join(f"nameserver {server}\n" for server in machine.nameservers) if machine.nic else ""


def generated(machine: Machine) -> dict[str, str]:
    """The files of /etc that the layer writes, by name."""
    return {"hosts": hosts(machine), "hostname": f"{machine.hostname}\n", "resolv.conf": resolv_conf(machine)}


def _generated(place: Place, name: str) -> Mount:
    options = ["rbind", "rw", "nosuid", "nodev", "noexec"]
    return Mount(destination=f"/etc/{name}", type="bind", source=str(place.etc / name), options=options)


def _user(identity: Identity) -> User:
    return User(uid=identity.uid, gid=identity.gid, additional_gids=identity.groups)
