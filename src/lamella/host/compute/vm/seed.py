"""The drive that tells cloud-init who the guest is: NoCloud, a small FAT file system labelled CIDATA.

The files and what they mean: cloud-init's documentation, "NoCloud" and "Networking config Version 2". The user data is the person's, byte
for byte. SSH keys go by the meta-data, so they reach the distribution's default user whatever the user data is (a user data whose own
``users`` leaves out ``default`` says itself who gets which keys). The vendor data starts our agent from this drive where the image
has none, and does nothing else. Guests without cloud-init do not look at the drive.
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from lamella.host.compute.driver import Machine
from lamella.host.compute.guest import service
from lamella.host.linux import binaries
from lamella.host.linux.processes import run
from lamella.host.network.driver import Attachment
from lamella.model.errors import Internal

LABEL = "CIDATA"
AGENT_FILE = "lamella-agent"

_SLACK = 128 << 10
_STEP = 64 << 10
_TIMEOUT = 30.0

_SCRIPT = r"""#cloud-boothook
#!/bin/sh
# Lamella's agent from the seed drive, for a guest whose image does not bring it. Runs at every boot; a second run changes nothing.
name=lamella-agent
own=@PATH@
unit=/etc/systemd/system/$name.service
[ -x "$own" ] && [ ! -e /var/lib/lamella/seeded ] && exit 0

drive=/dev/disk/by-label/@LABEL@
[ -e "$drive" ] || drive=$(findfs LABEL=@LABEL@ 2>/dev/null)
[ -n "$drive" ] || exit 1
place=$(mktemp -d) || exit 1
trap 'umount "$place" 2>/dev/null; rmdir "$place"' EXIT
mount -t vfat -o ro "$drive" "$place" || exit 1

# Where /usr cannot be written (an image-based system), the agent lies under /var.
install_to() {
    mkdir -p "${1%/*}" 2>/dev/null || return 1
    cmp -s "$place/@FILE@" "$1" && [ -x "$1" ] && return 0
    cp "$place/@FILE@" "$1.new" 2>/dev/null && chmod 755 "$1.new" && mv -f "$1.new" "$1" && changed=1
}
changed=
mkdir -p /var/lib/lamella && : >/var/lib/lamella/seeded || exit 1
install_to "$own" || { own=/var/lib/lamella/$name; install_to "$own" || exit 1; }

if [ -d /run/systemd/system ]; then
    cat >"$unit.new" <<'UNIT'
@UNIT@UNIT
    sed -i "s|^ExecStart=@PATH@|ExecStart=$own|" "$unit.new"
    if ! cmp -s "$unit.new" "$unit"; then mv -f "$unit.new" "$unit"; changed=1; else rm -f "$unit.new"; fi
    [ -z "$changed" ] || systemctl daemon-reload
    systemctl --quiet enable "$name.service"
    systemctl --no-block ${changed:+re}start "$name.service"
elif command -v rc-service >/dev/null; then
    cat >@OPENRC_PATH@ <<'OPENRC'
@OPENRC@OPENRC
    sed -i "s|^command=.*|command=\"$own\"|" @OPENRC_PATH@
    chmod 755 @OPENRC_PATH@
    rc-update -q add "$name" default
    rc-service "$name" ${changed:+re}start
else
    setsid "$own" --service </dev/null >/dev/null 2>&1 &
fi
exit 0
"""


def meta_data(machine: Machine) -> str:
    """``instance-id`` is the instance's id: cloud-init does its first-boot work once in the life of each."""
    content: dict[str, object] = {"instance-id": machine.id, "local-hostname": machine.hostname}
    if machine.seed.ssh_keys:
        content["public-keys"] = list(machine.seed.ssh_keys)
    return _yaml(content)


def network_config(machine: Machine) -> str:
    """Every NIC by its MAC, with a static address. The default route and the name servers are the first NIC's.

    The key of an interface is its name, too, because cloud-init's ifupdown renderer takes it for that; ``gateway4`` rather than a
    route, because that renderer writes a route for a program (net-tools) that small images do not have.
    """
    ethernets: dict[str, object] = {}
    nics = [*([machine.nic] if machine.nic else []), *(nic.attachment for nic in machine.nics)]
    for number, (name, nic) in enumerate(zip(_names(nics), nics, strict=True)):
        first = number == 0 and machine.nic is not None
        ethernets[name] = _ethernet(name, nic, machine.nameservers if first else [], routed=first)
    return _yaml({"version": 2, "ethernets": ethernets})


def vendor_data() -> str:
    """A script of cloud-init's (a boothook: it runs early, at every boot, and no user data displaces it) that starts the agent."""
    values = {
        "PATH": service.PATH,
        "LABEL": LABEL,
        "FILE": AGENT_FILE,
        "UNIT": service.UNIT,
        "OPENRC_PATH": service.OPENRC_PATH,
        "OPENRC": service.OPENRC,
    }
    text = _SCRIPT
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def seed_files(machine: Machine) -> dict[str, bytes]:
    """The drive's files by name, but for the agent."""
    return {
        "meta-data": meta_data(machine).encode(),
        "user-data": machine.seed.user_data.encode(),
        "network-config": network_config(machine).encode(),
        "vendor-data": vendor_data().encode(),
    }


async def make_seed(machine: Machine, target: Path, environment: Mapping[str, str]) -> None:
    """Write the drive's image at *target*: the same bytes for the same machine and agent, all of it or nothing.

    *environment* is for the tools (mkfs.vfat of dosfstools, mcopy of mtools), which mount nothing.

    :raise Unavailable: when a tool or our agent is missing.
    """
    agent = binaries.own("lamella-agent")
    files = seed_files(machine)
    work = target.with_name(f"{target.name}.new")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(mode=0o700, parents=True)
    try:
        for name, content in files.items():
            (work / name).write_bytes(content)
        image = work / "image"
        shutil.copyfile(agent, work / AGENT_FILE)
        size = sum(len(content) for content in files.values()) + (work / AGENT_FILE).stat().st_size
        await _make_image(image, [work / AGENT_FILE, *(work / name for name in files)], size, environment)
        image.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


async def _make_image(image: Path, files: Sequence[Path], size: int, environment: Mapping[str, str]) -> None:
    kibibytes = -(-(size + size // 64 + _SLACK) // _STEP) * _STEP >> 10
    volume = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:8]
    # Without a date of its own each tool would write the present one; the first day that FAT knows is 1980-01-01.
    fixed = {**environment, "SOURCE_DATE_EPOCH": "315532800", "TZ": "UTC", "MTOOLSRC": "/dev/null"}
    make = [str(binaries.tool("mkfs.vfat")), "--invariant", "-n", LABEL, "-i", volume, "-C", str(image), str(kibibytes)]
    copy = [str(binaries.tool("mcopy")), "-i", str(image), *map(str, files), "::"]
    for command in (make, copy):
        code, said = await run(command, environment=fixed, timeout=_TIMEOUT)
        if code:
            raise Internal(f"{Path(command[0]).name} could not make the seed drive: {said[-200:]}")


def _names(nics: Sequence[Attachment]) -> list[str]:
    """The interfaces' names inside: what each asks for, else the first free ethN."""
    taken: list[str] = []
    for nic in nics:
        free = (f"eth{number}" for number in range(len(nics) + 1))
        taken.append(nic.interface if nic.interface not in taken else next(name for name in free if name not in taken))
    return taken


def _ethernet(name: str, nic: Attachment, nameservers: Sequence[str], *, routed: bool) -> dict[str, object]:
    content: dict[str, object] = {
        "match": {"macaddress": nic.mac.lower()},
        "set-name": name,
        "addresses": [nic.address],
    }
    if routed and nic.gateway:
        content["gateway6" if ":" in nic.gateway else "gateway4"] = nic.gateway
    if ":" not in nic.address:
        content["accept-ra"] = False  # no router advertises anything here; systemd-networkd would wait for one
    if nic.address6:
        content["addresses"] = [nic.address, nic.address6]
        if routed and nic.gateway6:
            content["gateway6"] = nic.gateway6
    if nic.mtu:
        content["mtu"] = nic.mtu
    if nameservers:
        content["nameservers"] = {"addresses": list(nameservers)}
    return content


def _yaml(content: Mapping[str, object]) -> str:
    """ASCII alone: whatever a string holds is escaped by the library, and no line is folded."""
    return yaml.safe_dump(dict(content), sort_keys=False, default_flow_style=False, width=1 << 30)
