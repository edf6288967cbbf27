"""A microVM that is held still, let go, and made another machine before anything runs in it again."""

import asyncio
import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from guest_machine import MAC, Machine
from guest_talk import run

from lamella.host.compute.guest.channel import Channel
from lamella.host.compute.guest.client import GuestClient
from lamella.host.compute.guest.fields import Tag, Value, Verb, body
from lamella.host.compute.guest.setup import GuestIdentity, GuestNetwork, GuestPhase, GuestProcess
from lamella.host.compute.guest.socket import open_socket
from lamella.host.compute.microvm.boot import BootFiles
from lamella.host.linux import binaries
from lamella.model.errors import Conflict, Invalid
from lamella.model.resource import now
from lamella.model.stream import ExecSpec, Stdout

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

OLD_ID = "0123456789abcdef0123456789abcdef"
NEW_MAC = "02:00:00:00:00:99"
NETWORK = GuestNetwork(
    mac=NEW_MAC, address="10.0.3.77/25", gateway="10.0.3.1", mtu=1300, address6="fd03::77/64", gateway6="fd03::1"
)
IDENTITY = GuestIdentity(
    entropy=os.urandom(32),
    hostname="clone",
    network=NETWORK,
    former_mac=MAC,
    nameservers=["10.0.3.3"],
    pids=77,
)

# Three that count and fork: in the group of the instance, in none, and in one of their own.
COUNT = """
count() {
    i=0
    while :; do i=$((i+1)); printf %08d $i 1<>/dev/shm/$1; sleep 0.01; done
}
count inside & count outside & echo $! >/sys/fs/cgroup/cgroup.procs
mkdir /sys/fs/cgroup/another /sys/fs/cgroup/theirs
count apart & echo $! >/sys/fs/cgroup/another/cgroup.procs
sleep 7777 & echo $! >/sys/fs/cgroup/theirs/cgroup.procs
echo 1 >/sys/fs/cgroup/theirs/cgroup.freeze
mkdir -p /run/sshd; /usr/sbin/sshd
head -c8 /dev/urandom | hexdump -ve '1/1 "%02x"' | tee /dev/shm/logged
while :; do sleep 1; done
"""

# How often the agent, whose memory is open to root, still knows of it.
SEARCH = """
grep -E '^[0-9a-f]+-[0-9a-f]+ rw' /proc/1/maps | while IFS=' -' read from to rest; do
    dd if=/proc/1/mem bs=4096 skip=$((0x$from/4096)) count=$(((0x$to-0x$from)/4096)) 2>/dev/null
done | grep -ac "$PATTERN" || :
"""


def with_libraries(root: Path, *programs: str) -> None:
    """Copy programs of this machine and what they are linked with."""
    for name in programs:
        source = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
        assert source is not None, name
        listed = subprocess.run(["ldd", source], capture_output=True, text=True, check=True, timeout=90).stdout
        target = root / ("usr/sbin" if name == "sshd" else "usr/bin")
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
        for library in re.findall(r"(/\S+) \(0x", listed):
            place = root / library.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, place)


@pytest.fixture(scope="module")
def known_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root that is somebody: machine-id, names of its own, and an SSH server with its keys."""
    directory = tmp_path_factory.mktemp("known-root")
    root = directory / "root"
    for name in ("bin", "etc/ssh", "var/lib/dbus", "root"):
        (root / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, root / "bin/busybox")
    for applet in subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    with_libraries(root, "ssh-keygen", "ssh-keyscan", "sshd")
    for kind in ("ed25519", "ecdsa"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", root / f"etc/ssh/ssh_host_{kind}_key"],
            check=True,
            timeout=90,
        )
    (root / "etc/ssh/sshd_config").write_text("ListenAddress 127.0.0.1\n")
    (root / "etc/passwd").write_text(
        "root:x:0:0::/root:/bin/sh\nann:x:1000:1001::/:/bin/sh\nsshd:x:100:65534::/run/sshd:/bin/sh\n"
    )
    (root / "etc/machine-id").write_text(f"{OLD_ID}\n")
    (root / "var/lib/dbus/machine-id").write_text(f"{OLD_ID}\n")
    image = directory / "root.erofs"
    subprocess.run(["mkfs.erofs", image, root], check=True, capture_output=True, timeout=90)
    return image


@pytest.fixture
def known(boot: BootFiles, known_root: Path, tmp_path: Path) -> Iterator[Machine]:
    tsc = subprocess.run([binaries.own("lamella-tsc")], capture_output=True, text=True, check=True, timeout=90)
    made = Machine(boot, known_root, tmp_path, tsc_khz=int(tsc.stdout))
    yield made
    made.end()


async def text(client: GuestClient, path: str) -> str:
    return b"".join([piece async for piece in client.read_file(path)]).decode()


async def later(client: GuestClient, seconds: float) -> None:
    """Until that much of the guest's own time went by."""
    began = float((await text(client, "/proc/uptime")).split()[0])
    async with asyncio.timeout(90):
        while float((await text(client, "/proc/uptime")).split()[0]) < began + seconds:
            await client.state()


async def counters(client: GuestClient) -> list[str]:
    return [await text(client, f"/dev/shm/{name}") for name in ("inside", "outside", "apart")]


async def stand_still(client: GuestClient) -> list[str]:
    """What they have counted to, having seen that they do not go on."""
    assert (await client.state()).held
    first = await counters(client)
    await later(client, 0.5)
    assert await counters(client) == first
    return first


async def go_on(client: GuestClient, since: list[str]) -> None:
    async with asyncio.timeout(90):
        while any(int(new) <= int(old) for new, old in zip(await counters(client), since, strict=True)):
            pass
    assert not (await client.state()).held


async def shell(client: GuestClient, script: str, **environment: str) -> str:
    said = await run(client, "sh", "-c", script, environment=environment)
    assert said.code == 0, said
    return said.out.decode()


async def who(client: GuestClient) -> dict[str, str]:
    """What the machine is, file by file and word by word."""
    return {
        "hostname": await shell(client, "hostname; cat /etc/hostname"),
        "hosts": await text(client, "/etc/hosts"),
        "resolver": await text(client, "/etc/resolv.conf"),
        "ids": await shell(client, "cat /etc/machine-id /var/lib/dbus/machine-id"),
        "boot": await shell(client, "cat /proc/sys/kernel/random/boot_id"),
        "keys": await shell(client, "md5sum /etc/ssh/ssh_host_*_key; cat /etc/ssh/ssh_host_*_key.pub"),
        "network": await shell(client, "ip addr show eth0 | sed 's/_lft.*//'; ip route; ip -6 route"),
        "neighbours": await shell(client, "grep 0x6 /proc/net/arp || true"),
        "pids": await text(client, "/sys/fs/cgroup/instance/pids.max"),
    }


async def test_a_machine_is_held_and_becomes_another(known: Machine) -> None:
    client = await known.connect()
    await before_it_runs(client)
    await known.configured(client)
    await client.hold(None)
    with pytest.raises(Conflict, match="held still"):
        await client.start(GuestProcess(command=["true"]))
    await client.release()
    await client.start(GuestProcess(command=["sh", "-c", COUNT]))
    async with asyncio.timeout(90):
        while (await client.state()).log_end == 0:
            await client.state()
    served = await served_key(client)
    # What a person may have added by hand.
    await shell(client, "printf '10.9.9.9\\tother\\n127.0.1.1 box.example box # ours\\n' >>/etc/hosts")
    await shell(client, "ip addr add 10.7.7.7/24 dev eth0; ip route add 10.8.0.0/16 via 10.7.7.1")
    await shell(client, "arp -s 10.0.2.9 02:00:00:00:00:0a")
    before = await who(client)
    assert served in before["keys"]

    client = await held_and_let_go(known, client, before)
    client = await what_cannot_be_is_refused(known, client)
    assert await who(client) == before
    await same_machine_later(client, before)
    await another(client, before)
    await client.close()


async def served_key(client: GuestClient) -> str:
    """With which the SSH server inside proves who it is."""
    async with asyncio.timeout(90):
        while not (said := await shell(client, "ssh-keyscan -t ed25519 127.0.0.1 2>/dev/null")):
            pass
    return said.split()[2]


async def before_it_runs(client: GuestClient) -> None:
    assert (await client.state()).phase is GuestPhase.WAITING
    await client.hold(None)
    with pytest.raises(Conflict, match="not configured"):
        await client.renew(IDENTITY)
    await client.renew(GuestIdentity(entropy=os.urandom(32), time=now()))
    await client.release()


async def held_and_let_go(known: Machine, client: GuestClient, before: dict[str, str]) -> GuestClient:
    gone = await client.exec(ExecSpec(command=["sh", "-c", "echo up; while :; do date >/dev/shm/gone; done"]))
    assert await gone.receive() == Stdout(b"up\n")
    await client.hold(None)
    stood = await stand_still(client)
    assert await text(client, "/proc/1/cgroup") == "0::/\n", "the agent runs where it ran"
    for command in (["true"], ["no-such-thing"]):
        with pytest.raises(Conflict, match="held still"):
            await run(client, *command)
    await client.close()
    client = await known.connect()  # which ends what the last conversation ran, not the hold
    assert await stand_still(client) == stood
    await client.hold(60.0)
    assert await stand_still(client) == stood, "asked again it moves the deadline"
    await client.hold(1.5)
    await go_on(client, stood)  # by itself
    await client.hold(60.0)
    stood = await stand_still(client)
    await client.release()
    await client.release()
    await go_on(client, stood)
    assert await shell(client, "cat /sys/fs/cgroup/theirs/cgroup.freeze") == "1\n", "what others hold stays theirs"
    assert "lamella" not in await shell(client, "ls /sys/fs/cgroup; ls /dev")
    assert await who(client) == before
    return client


async def what_cannot_be_is_refused(known: Machine, client: GuestClient) -> GuestClient:
    with pytest.raises(Conflict, match="not held"):
        await client.renew(IDENTITY)
    await client.close()
    channel = await Channel.open(*await open_socket(known.socket, timeout=90), timeout=90)
    entropy = (Tag.ENTROPY, bytes(32))
    network: list[tuple[Tag, Value | None]] = [(Tag.MAC, NEW_MAC), (Tag.ADDRESS, "10.0.3.77/25")]
    refused: list[tuple[str, list[tuple[Tag, Value | None]]]] = [
        ("entropy", []),
        ("entropy", [(Tag.ENTROPY, bytes(31))]),
        ("entropy", [(Tag.ENTROPY, bytes(1 << 17))]),
        ("host name", [entropy, (Tag.HOSTNAME, "-x")]),
        ("host name", [entropy, (Tag.HOSTNAME, "x" * 65)]),
        ("host name", [entropy, (Tag.HOSTNAME, "")]),
        ("host name", [entropy, (Tag.HOSTNAME, "a/b")]),
        ("cannot be read", [entropy, (Tag.HOSTNAME, "a\nb")]),
        ("cannot be read", [entropy, (Tag.HOSTNAME, b"a\0b")]),
        ("cannot be read", [entropy, (Tag.TIME_NS, b"\1")]),
        ("cannot be read", [entropy, (Tag.PIDS, "many")]),
        ("larger", [entropy, (Tag.PIDS, 1 << 40)]),
        ("has an address", [entropy, (Tag.MAC, NEW_MAC)]),
        ("has an address", [entropy, (Tag.ADDRESS, "10.0.3.77/25")]),
        ("hardware address", [entropy, (Tag.MAC, "01:00:00:00:00:01"), (Tag.ADDRESS, "10.0.3.77/25")]),
        ("hardware address", [entropy, (Tag.MAC, "02:00:00:00:00:1"), (Tag.ADDRESS, "10.0.3.77/25")]),
        ("hardware address", [entropy, (Tag.MAC, "00:00:00:00:00:00"), (Tag.ADDRESS, "10.0.3.77/25")]),
        ("former", [entropy, *network, (Tag.FORMER_MAC, "here")]),
        ("address", [entropy, (Tag.MAC, NEW_MAC), (Tag.ADDRESS, "10.0.3.77")]),
        ("address", [entropy, (Tag.MAC, NEW_MAC), (Tag.ADDRESS, "10.0.3.77/33")]),
        ("address", [entropy, (Tag.MAC, NEW_MAC), (Tag.ADDRESS, "10.0.3.77/2x")]),
        ("address", [entropy, *network, (Tag.ADDRESS6, "10.0.3.78/24")]),
        ("gateway", [entropy, *network, (Tag.GATEWAY, "there")]),
        ("gateway", [entropy, *network, (Tag.GATEWAY6, "fd03::1")]),
        ("MTU", [entropy, *network, (Tag.MTU, 67)]),
        ("MTU", [entropy, *network, (Tag.MTU, 1 << 32)]),
        ("interface", [entropy, *network, (Tag.INTERFACE, "../eth0")]),
        ("at once", [entropy, *network, (Tag.DROP_NETWORK, 1)]),
        ("name server", [entropy, (Tag.NAMESERVER, "dns.example")]),
        ("name server", [entropy, *[(Tag.NAMESERVER, "10.0.0.1")] * 17]),
    ]
    for words, pairs in refused:
        with pytest.raises(Invalid, match=words):
            await channel.call(Verb.RENEW, body(*pairs))
    for timeout in (None, b"\1\2", 1 << 31):
        with pytest.raises(Invalid, match="milliseconds"):
            await channel.call(Verb.HOLD, body((Tag.TIMEOUT_MS, timeout)))
    # Whatever else a request may hold: it is not held, so nothing of it is done.
    chance = random.Random(7)
    words = ["", "x", "10.0.0.1", "10.0.0.1/8", "fd00::1/64", NEW_MAC, "eth0", "/" * 255, "y" * 300, "é"]
    for _ in range(300):
        pairs = [
            (
                chance.choice(list(Tag)[1:]),
                chance.choice([chance.choice(words), chance.getrandbits(64), os.urandom(40)]),
            )
            for _ in range(chance.randrange(12))
        ]
        with pytest.raises((Invalid, Conflict)):
            await channel.call(Verb.RENEW, body(*pairs))
    await channel.close()
    return await known.connect()


async def same_machine_later(client: GuestClient, before: dict[str, str]) -> None:
    later_on = now() + timedelta(days=400)
    await client.hold(None)
    await client.renew(GuestIdentity(entropy=os.urandom(32), time=later_on))
    assert abs(int(await shell(client, "date +%s")) - later_on.timestamp()) < 300
    assert await who(client) == before
    state = await client.state()
    assert state.log_start < state.log_end, "what it wrote is still there"


async def another(client: GuestClient, before: dict[str, str]) -> None:
    secret = os.urandom(8).hex()
    pattern = f"{secret[:4]}[{secret[4]}]{secret[5:]}"
    assert await shell(client, "echo $WARM", WARM=secret) == f"{secret}\n"
    assert await shell(client, f"PATTERN=$(cat /dev/shm/logged) && {SEARCH}") != "0\n", "it searches where it should"
    await client.hold(30.0)
    stood = await stand_still(client)
    wrong = msgspec.structs.replace(IDENTITY, former_mac="02:00:00:00:00:42", time=now())
    with pytest.raises(Conflict, match="no such interface"):
        await client.renew(wrong)
    assert await stand_still(client) == stood, "what failed midway runs nothing"
    await client.renew(msgspec.structs.replace(IDENTITY, time=now()))
    await go_on(client, stood)
    assert (state := await client.state()).log_start == state.log_end > 0
    assert await shell(client, f"PATTERN=$(cat /dev/shm/logged) && {SEARCH}") == "0\n"
    assert await shell(client, SEARCH, PATTERN=pattern) == "0\n", "nor what was run before"
    after = await who(client)
    assert after["hostname"] == "clone\nclone\n"
    assert after["hosts"].splitlines() == [
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "10.9.9.9\tother",
        "127.0.1.1\tclone.example clone",
        "10.0.3.77\tclone",
        "fd03::77\tclone",
    ]
    assert after["resolver"] == "nameserver 10.0.3.3\n"
    first, second = after["ids"].split()
    assert first == second != OLD_ID
    assert re.fullmatch(r"[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}", first)
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\n", after["boot"])
    assert after["boot"] != before["boot"]
    old_words, new_words = before["keys"].split(), after["keys"].split()
    assert set(old_words) & set(new_words) == {
        word for word in old_words if word.startswith(("/etc", "ssh-", "ecdsa-"))
    }
    assert after["keys"].count("root@clone") == 2
    assert await served_key(client) in after["keys"]
    assert NEW_MAC in after["network"] and MAC not in after["network"]
    assert "inet 10.0.3.77/25" in after["network"] and "inet6 fd03::77/64" in after["network"]
    assert "default via 10.0.3.1" in after["network"] and "default via fd03::1" in after["network"]
    assert "mtu 1300" in after["network"]
    assert not re.search(r"10\.0\.2\.|10\.[78]\.|fd02|ff:fe00:7[^0-9a-f]", after["network"])
    assert "inet6 fe80::ff:fe00:99/64" in after["network"]
    assert before["neighbours"] != "" == after["neighbours"]
    assert after["pids"] == "77\n"
    assert abs(int(await shell(client, "date +%s")) - now().timestamp()) < 300

    await client.hold(None)
    await client.renew(GuestIdentity(entropy=os.urandom(32), hostname="alone", drop_network=True, pids=0))
    alone = await shell(client, "ip addr show eth0")
    assert "inet" not in alone and "UP" not in alone and NEW_MAC not in alone
    assert await shell(client, "ip route; ip -6 route show dev eth0") == ""
    assert (await text(client, "/etc/hosts")).splitlines()[2:] == ["10.9.9.9\tother", "127.0.1.1\talone.example alone"]
    assert await text(client, "/sys/fs/cgroup/instance/pids.max") == "max\n"
    assert await shell(client, "cat /proc/sys/kernel/random/boot_id; grep -c boot_id /proc/mounts") != after["boot"]
    assert await shell(client, "grep -c boot_id /proc/mounts") == "1\n"
