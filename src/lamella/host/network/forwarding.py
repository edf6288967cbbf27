"""The host's forwarding: the switch that outbound traffic needs, remembered so that it can be put back; and who forbids it."""

import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from lamella.host.network.namespace import Seat
from lamella.model.errors import Unavailable
from lamella.model.host import Capability

# /proc/sys/net shows the namespace of the thread that opens it.
_NET = Path("/proc/sys/net")
_SYSCTL = _NET / "ipv4"
_LEGACY = Path("/proc/thread-self/net/ip_tables_names")
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_FORBIDDING = ("drop", "reject")


class Remembered(msgspec.Struct, frozen=True):
    """That this layer switched forwarding on, in which boot of the machine. ``listening`` are the links that heard routers then, and were
    told to go on: a kernel that forwards IPv6 listens no more unless that is asked for (accept_ra 2)."""

    boot_id: str
    listening: list[str] = []


def set_sysctl(name: str, value: str, *, family: str = "ipv4") -> None:
    """Write below net.*family* in this thread's namespace, unless it reads so already. :raise Unavailable: when that fails."""
    path = _NET / family / name
    try:
        if path.read_text().strip() != value:
            path.write_text(value)
    except OSError as error:
        raise Unavailable(
            f"cannot set net.{family}.{name.replace('/', '.')} to {value}: {error.strerror}",
            hint="the layer needs root and a writable /proc/sys; in a container, run it privileged",
        ) from error


def switch_on(note: Path) -> None:
    """Let the host forward; *note* keeps that it did not before."""
    if (_SYSCTL / "ip_forward").read_text().strip() != "0":
        return
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_bytes(msgspec.json.encode(Remembered(_BOOT.read_text().strip())))
    set_sysctl("ip_forward", "1")


def switch_on6(note: Path) -> None:
    """Let the host forward IPv6, and its links go on hearing routers; *note* keeps what was before."""
    conf = _NET / "ipv6" / "conf"
    if _says(conf / "all" / "forwarding") != "0":
        return
    links = {link.name for link in conf.iterdir()} - {"all", "default"}
    listening = {link for link in links if _says(conf / link / "accept_ra") == "1"}
    # A daemon that was killed on its way here had told some of them already.
    before = _remembered(note)
    if before is not None:
        listening.update(before.listening)
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_bytes(msgspec.json.encode(Remembered(_BOOT.read_text().strip(), sorted(listening))))
    for link in listening:
        with suppress(Unavailable):  # it went meanwhile
            set_sysctl(f"conf/{link}/accept_ra", "2", family="ipv6")
    set_sysctl("conf/all/forwarding", "1", family="ipv6")


def switch_back6(note: Path, seat: Seat) -> None:
    """Undo :func:`switch_on6`, unless others have come to need it."""
    if (remembered := _remembered(note)) is not None:
        chains = [chain for chain in _chains(seat) if chain["family"] in ("ip6", "inet")]
        if not any(chain.get("hook") == "forward" or chain.get("type") == "nat" for chain in chains):
            set_sysctl("conf/all/forwarding", "0", family="ipv6")
            for link in remembered.listening:
                with suppress(Unavailable):  # it went meanwhile
                    set_sysctl(f"conf/{link}/accept_ra", "1", family="ipv6")
    note.unlink(missing_ok=True)


def _says(path: Path) -> str:
    """What a file of the kernel has now; nothing when it is gone."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _remembered(note: Path) -> Remembered | None:
    """What *note* says of this boot of the machine."""
    try:
        found = msgspec.json.decode(note.read_bytes(), type=Remembered)
    except (OSError, msgspec.DecodeError):
        return None
    return found if found.boot_id == _BOOT.read_text().strip() else None


def switch_back(note: Path, seat: Seat) -> None:
    """Undo :func:`switch_on`, unless others have come to need it: nat or forward chains in somebody else's tables."""
    if not note.exists():
        return
    needed = any(chain.get("hook") == "forward" or chain.get("type") == "nat" for chain in _chains(seat))
    if _remembered(note) is not None and not needed:
        set_sysctl("ip_forward", "0")
    note.unlink()


def verdict(seat: Seat, mark: str) -> Capability:
    """Whether rules of somebody else on this host stop what the layer forwards; the reason names chain and table."""
    for chain in _chains(seat):
        if chain.get("hook") != "forward" or chain["family"] not in ("ip", "inet") or chain["table"] == mark:
            continue
        where = f"chain {chain['name']} of nft table {chain['family']} {chain['table']}"
        if chain.get("policy") == "drop":
            return _forbidden(f"policy drop in {where}")
        if _ends_forbidding(seat, chain):
            return _forbidden(f"the last rule of {where} refuses what no rule before it accepted")
    policy = _legacy_policy()
    if policy in ("DROP", "REJECT"):
        return _forbidden(f"policy {policy} in chain FORWARD of legacy iptables table filter")
    return Capability(name="network.forward", available=True, reason="no forward chain on this host drops by policy")


def _forbidden(rule: str) -> Capability:
    return Capability(
        name="network.forward",
        available=False,
        value=rule,
        reason=f"{rule}: traffic between instances and the outside is lost unless a rule there accepts the uplink",
    )


def _chains(seat: Seat) -> list[dict[str, Any]]:
    return [entry["chain"] for entry in seat.nft.listing("list chains") if "chain" in entry]


def _ends_forbidding(seat: Seat, chain: dict[str, Any]) -> bool:
    listing = seat.nft.listing(f"list chain {chain['family']} {chain['table']} {chain['name']}")
    rules = [entry["rule"] for entry in listing if "rule" in entry]
    if not rules:
        return False
    statements = [next(iter(statement)) for statement in rules[-1]["expr"]]
    return statements[-1] in _FORBIDDING and all(name in ("counter", "log", *_FORBIDDING) for name in statements)


def _legacy_policy() -> str:
    """The policy of FORWARD in legacy iptables, when its filter table is loaded in this namespace."""
    try:
        loaded = "filter" in _LEGACY.read_text().split()
    except OSError:
        return ""
    program = shutil.which("iptables-legacy", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if not loaded or program is None:
        return ""
    listing = subprocess.run([program, "-S", "FORWARD"], capture_output=True, text=True, timeout=10, check=False)
    words = listing.stdout.splitlines()[:1]
    return words[0].split()[-1] if words else ""
