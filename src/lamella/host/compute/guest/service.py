"""The agent as a service of a guest that has an init of its own: where it lies and what starts it.

Under systemd the service belongs to the port's device, as Debian's qemu-guest-agent does: it starts as soon as udev has seen the port,
and never in a machine that has none. What an exec starts inherits whatever a unit forbids, and must be root without bounds; so the unit
forbids nothing. What it does bound is its own weight: one process, no files of its own.
"""

import stat

import msgspec

PORT = "org.lamella.agent"
"""Name of the virtio-serial port."""

PATH = "/usr/lib/lamella/lamella-agent"
COMMAND = f"{PATH} --service"
"""What to run as root, and again when it ends, where the init is none that is named here (an inittab: ``::respawn:COMMAND``)."""

_DEVICE = "dev-virtio\\x2dports-org.lamella.agent.device"

UNIT_NAME = "lamella-agent.service"
UNIT_PATH = f"/usr/lib/systemd/system/{UNIT_NAME}"
UNIT_LINK = f"/etc/systemd/system/{_DEVICE}.wants/{UNIT_NAME}"
"""A symbolic link to UNIT_PATH here is what ``systemctl enable`` makes of UNIT."""

UNIT = f"""\
[Unit]
Description=Lamella guest agent
DefaultDependencies=no
BindsTo={_DEVICE}
After={_DEVICE} local-fs.target
Conflicts=shutdown.target
Before=shutdown.target
StartLimitIntervalSec=0

[Service]
ExecStart={COMMAND}
Restart=always
RestartSec=1
OOMScoreAdjust=-900
KillMode=process
TasksMax=infinity
LimitCORE=infinity

[Install]
WantedBy={_DEVICE}
"""

OPENRC_PATH = "/etc/init.d/lamella-agent"
OPENRC = f"""\
#!/sbin/openrc-run
description="Lamella guest agent"
command="{PATH}"
command_args="--service"
supervisor="supervise-daemon"
depend() {{
    after localmount
}}
"""
OPENRC_LINK = "/etc/runlevels/default/lamella-agent"
"""A symbolic link to OPENRC_PATH here is what ``rc-update add lamella-agent default`` makes."""


class ServiceFile(msgspec.Struct, kw_only=True, frozen=True):
    """A file or, with *target*, a symbolic link of the guest's root, owned by root. ``mode`` holds permissions alone."""

    path: str
    content: bytes = b""
    mode: int = 0o644
    target: str = ""

    @property
    def type(self) -> int:
        """S_IFREG or S_IFLNK (stat.h)."""
        return stat.S_IFLNK if self.target else stat.S_IFREG


def systemd_files(agent: bytes) -> list[ServiceFile]:
    """What a root with systemd needs so that the agent (the program's bytes) runs from the first boot on; directories are implied."""
    return [
        ServiceFile(path=PATH, content=agent, mode=0o755),
        ServiceFile(path=UNIT_PATH, content=UNIT.encode()),
        ServiceFile(path=UNIT_LINK, target=UNIT_PATH),
    ]


def openrc_files(agent: bytes) -> list[ServiceFile]:
    """The same for a root with OpenRC."""
    return [
        ServiceFile(path=PATH, content=agent, mode=0o755),
        ServiceFile(path=OPENRC_PATH, content=OPENRC.encode(), mode=0o755),
        ServiceFile(path=OPENRC_LINK, target=OPENRC_PATH),
    ]
