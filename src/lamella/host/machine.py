"""From an assignment to the :class:`Machine` that a driver is given. Pure."""

import msgspec

from lamella.host.compute.driver import DataDisk, DriveImage, Machine, MountedVolume, NamedNic, Rootfs, StoredArtifact
from lamella.host.network.driver import Attachment, DesiredNetwork, DesiredPort, Resident
from lamella.host.network.routers.desired import DesiredRoute, DesiredRouter
from lamella.host.plan import limits_of
from lamella.host.storage.driver import VolumeHandle
from lamella.model.assignment import Assignment, RouterTask
from lamella.model.command import whole_command
from lamella.model.instance import Beginning, Power
from lamella.model.network import Neighbour, Network, Port

# What a program finds when neither the image nor a person says otherwise: as docker sets it.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def environment_of(asked: Assignment, rootfs: Rootfs) -> dict[str, str]:
    """The image's variables, the person's over them; PATH always, HOSTNAME always, TERM for a terminal."""
    environment = {"PATH": PATH, "HOSTNAME": hostname_of(asked)}
    if asked.instance.spec.terminal:
        environment["TERM"] = "xterm"
    for line in rootfs.config.environment:
        name, _, value = line.partition("=")
        if name:
            environment[name] = value
    return environment | asked.instance.spec.environment


def hostname_of(asked: Assignment) -> str:
    """The asked one, else the instance's name as far as a host name goes."""
    if asked.instance.spec.hostname is not None:
        return asked.instance.spec.hostname
    return asked.instance.name.replace("_", "-").replace(".", "-").strip("-")[:63] or "instance"


def mtu_of(network: Network) -> int:
    """What its packets have room for, on the way to other hosts too."""
    return network.status.mtu or network.spec.mtu


def desired_network(network: Network) -> DesiredNetwork:
    return DesiredNetwork(
        id=network.id,
        name=network.name,
        subnet=network.spec.subnet,
        gateway=network.status.gateway,
        mtu=mtu_of(network),
        isolated=network.spec.isolated,
        router=network.status.router,
        vni=network.status.vni,
        subnet6=network.spec.subnet6,
        gateway6=network.status.gateway6,
    )


def desired_router(task: RouterTask) -> DesiredRouter:
    return DesiredRouter(
        id=task.id,
        name=task.name,
        networks=task.spec.networks,
        uplink=task.spec.uplink,
        routes=[DesiredRoute(route.destination, route.via) for route in task.spec.routes],
        floating=task.floating,
    )


def desired_port(port: Port) -> DesiredPort:
    spec = port.spec
    return DesiredPort(
        id=port.id,
        network=spec.network,
        address=spec.address,
        mac=spec.mac,
        publish=spec.publish,
        firewalls=spec.firewalls,
        rate_in=spec.rate_in,
        rate_out=spec.rate_out,
        mirror=spec.mirror,
        address6=spec.address6,
    )


def far_port(neighbour: Neighbour) -> DesiredPort:
    """A port on another host, as firewalls and names know it: it has no link here."""
    return DesiredPort(
        id=neighbour.port,
        network=neighbour.network,
        address=neighbour.address,
        mac=neighbour.mac,
        publish=[],
        firewalls=neighbour.firewalls,
    )


def residents_of(asked: Assignment) -> list[Resident]:
    """What the services of its networks tell of an instance, by each of its ports."""
    instance = asked.instance
    found: list[Resident] = []
    for port in (asked.port, *asked.ports.values()):
        network = asked.networks.get(port.spec.network) if port is not None else None
        if port is not None and network is not None:
            # On a network that several projects use, only those of its own have a name of one part.
            name = (instance.name,) if network.project == instance.project else (instance.name, instance.project)
            found.append(
                Resident(
                    port=desired_port(port),
                    name=name,
                    instance=instance.id,
                    project=instance.project,
                    hostname=hostname_of(asked),
                    image=instance.status.image_digest,
                    isolation=instance.spec.isolation,
                    ssh_keys=instance.spec.seed.ssh_keys,
                    user_data=instance.spec.seed.user_data,
                )
            )
    return found


def attachment_of(port: Port, network: Network) -> Attachment:
    return Attachment(
        port=port.id,
        mac=port.spec.mac,
        address=port.spec.address,
        gateway=network.status.gateway,
        mtu=mtu_of(network),
        address6=port.spec.address6,
        gateway6=network.status.gateway6 if port.spec.address6 else "",
    )


class Parts(msgspec.Struct, kw_only=True, frozen=True):
    """What was made ready for one start: the image, its own volumes by device name, those attached to it, the images in the drives."""

    rootfs: Rootfs
    disk: VolumeHandle | None
    disks: dict[str, VolumeHandle] = {}
    volumes: list[MountedVolume] = []
    drives: dict[str, StoredArtifact] = {}
    nameservers: list[str] = []


def machine_of(asked: Assignment, parts: Parts) -> Machine:
    """Everything resolved."""
    instance, spec, rootfs = asked.instance, asked.instance.spec, parts.rootfs
    nic = None
    if asked.port is not None and asked.network is not None:
        nic = attachment_of(asked.port, asked.network)
    begins = beginning_of(asked)
    return Machine(
        id=instance.id,
        name=instance.name,
        project=instance.project,
        rootfs=rootfs,
        command=whole_command(spec, rootfs.config),
        environment=environment_of(asked, rootfs),
        working_directory=spec.working_directory or rootfs.config.working_directory or "/",
        user=spec.user if spec.user is not None else rootfs.config.user,
        hostname=hostname_of(asked),
        terminal=spec.terminal,
        stdin=spec.stdin,
        limits=limits_of(spec),
        huge_pages=spec.huge_pages,
        id_base=instance.status.id_base,
        disk=parts.disk,
        nic=nic,
        nameservers=parts.nameservers,
        stop_signal=spec.stop_signal or rootfs.config.stop_signal or "SIGTERM",
        board=spec.board,
        board_type=instance.status.board,
        disks=[DataDisk(name=disk.name, volume=parts.disks[disk.name]) for disk in spec.disks],
        cdroms=[
            DriveImage(name=name, path=drive.path, size=drive.size)
            for name, drive in ((drive.name, parts.drives[drive.name]) for drive in spec.cdroms)
        ],
        nics=[
            NamedNic(name=name, attachment=attachment_of(port, asked.networks[port.spec.network]))
            for name, port in ((nic.name or "", asked.ports[nic.name or ""]) for nic in spec.nics[1:])
        ],
        usb=spec.usb,
        seed=spec.seed,
        directories=spec.directories,
        volumes=parts.volumes,
        fuel=spec.fuel,
        deadline=spec.deadline,
        memory_guarantee=spec.memory_guarantee or None,
        cold=spec.cold,
        resting=spec.power is Power.READY,
        memory="" if begins is None else begins.snapshot,
        fresh=begins is not None and begins.fresh,
    )


def beginning_of(asked: Assignment) -> Beginning | None:
    """What the run that is due, or the one that is made ready, goes on from."""
    beginning, spec, status = asked.instance.status.beginning, asked.instance.spec, asked.instance.status
    if beginning is None or status.epoch >= beginning.epoch:
        return None
    return beginning if spec.power is Power.READY or spec.epoch == beginning.epoch else None
