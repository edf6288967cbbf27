"""What tests of IPv6 share: a network of both families, ports on it, and questions by IPv6."""

import contextlib
import socket
import struct
import subprocess
import threading
import time

from msgspec.structs import replace
from network_world import World, port

from lamella.host.network.bridge import BridgeDriver
from lamella.host.network.driver import DesiredNetwork, DesiredPort
from lamella.model.ids import new_id

DUAL = DesiredNetwork(
    id=new_id("network"),
    name="dual",
    subnet="10.90.0.0/24",
    gateway="10.90.0.1",
    subnet6="fd90::/64",
    gateway6="fd90::1",
    mtu=1500,
)
UDP = socket.SOCK_DGRAM
ETH_P_IPV6 = 0x86DD


def dual(number: int, *firewalls: str) -> DesiredPort:
    return replace(
        port(number),
        network=DUAL.id,
        address=f"10.90.0.{number}/24",
        address6=f"fd90::{number:x}/64",
        firewalls=sorted(firewalls),
    )


def plug(world: World, *ports: DesiredPort, network: DesiredNetwork = DUAL) -> None:
    """Each in a namespace of its own, ``i0`` and so on, on *network*."""

    async def use(driver: BridgeDriver) -> None:
        await driver.ensure_network(network)
        for index, one in enumerate(ports):
            await driver.attach_namespace(one, world.path(f"i{index}"))

    for index in range(len(ports)):
        world.add(f"i{index}", loopback=False)
    world.run(use)


def endpoint(world: World, name: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
    made = world.endpoint(name, kind, socket.AF_INET6)
    made.settimeout(30.0)
    return made


def serve(world: World, name: str, number: int, kind: int = socket.SOCK_STREAM) -> None:
    """Answer everybody at that port of *name* with the address that they seem to have."""
    server = endpoint(world, name, kind)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("::", number))
    server.settimeout(None)
    if kind == socket.SOCK_STREAM:
        server.listen()

    def body() -> None:
        while True:
            try:
                if kind == socket.SOCK_STREAM:
                    peer, caller = server.accept()
                    with peer:
                        peer.sendall(caller[0].encode())
                else:
                    _, caller = server.recvfrom(100)
                    server.sendto(caller[0].encode(), caller)
            except (OSError, TypeError):
                return

    threading.Thread(target=body, daemon=True).start()


def answer(
    world: World, name: str, address: str, number: int, kind: int = socket.SOCK_STREAM, seconds: float = 3.0
) -> str:
    """What a server there answers; nothing when nobody does in time."""
    client = endpoint(world, name, kind)
    client.settimeout(seconds)
    try:
        client.connect((address, number))
        if kind == UDP:
            client.send(b"?")
        return client.recv(100).decode()
    except OSError:
        return ""
    finally:
        client.close()


def passes(world: World, name: str, address: str, number: int, kind: int = socket.SOCK_STREAM) -> bool:
    """Whether an answer comes, asked for half a minute."""
    deadline = time.monotonic() + 90
    while not answer(world, name, address, number, kind):
        if time.monotonic() >= deadline:
            return False
    return True


def stopped(world: World, name: str, address: str, number: int, kind: int = socket.SOCK_STREAM) -> bool:
    return not answer(world, name, address, number, kind, 0.4)


def pings(world: World, name: str, address: str, *, patience: float = 90) -> bool:
    """Whether an echo comes back, tried again until *patience* ends."""
    deadline = time.monotonic() + patience
    while True:
        with contextlib.suppress(subprocess.CalledProcessError):
            return "1 received" in world.in_(name, "ping", "-6", "-c1", "-W1", address)
        if time.monotonic() >= deadline:
            return False


def packet(source: str, target: str, header: int, payload: bytes, *, hops: int = 255) -> bytes:
    """An IPv6 packet whose *payload* of type *header* begins, for ICMPv6, with a checksum to be filled in."""
    ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, target)
    if header == socket.IPPROTO_ICMPV6:
        sum_ = _checksum(ends + struct.pack(">II", len(payload), header) + payload)
        payload = payload[:2] + sum_.to_bytes(2, "big") + payload[4:]
    return struct.pack(">IHBB", 6 << 28, len(payload), header, hops) + ends + payload


def frame(to: str, by: str, content: bytes) -> bytes:
    return _mac(to) + _mac(by) + ETH_P_IPV6.to_bytes(2, "big") + content


def advertisement(target: str, mac: str) -> bytes:
    """Of a neighbour, that it has *target*, solicited and to be believed over what was known."""
    return struct.pack(">BBHI", 136, 0, 0, 0x60000000) + socket.inet_pton(socket.AF_INET6, target) + b"\2\1" + _mac(mac)


def solicitation(target: str, mac: str = "") -> bytes:
    option = b"\1\1" + _mac(mac) if mac else b""
    return struct.pack(">BBHI", 135, 0, 0, 0) + socket.inet_pton(socket.AF_INET6, target) + option


def router(lifetime: int = 1800) -> bytes:
    return struct.pack(">BBHBBHII", 134, 0, 0, 64, 0, lifetime, 0, 0)


def raw(world: World, name: str) -> socket.socket:
    """Whole frames, in and out of ``eth0`` of that namespace."""

    def make() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IPV6))
        made.bind(("eth0", ETH_P_IPV6))
        return made

    made = world.inside(name, make)
    made.settimeout(30.0)
    world.sockets.append(made)
    return made


def arrives(receiver: socket.socket, wanted: bytes, seconds: float) -> bool:
    """Whether a frame comes in whose packet is *wanted*, within *seconds*."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        receiver.settimeout(left)
        try:
            got, (_, _, kind, *_) = receiver.recvfrom(2000)
        except TimeoutError:
            return False
        if kind != 4 and got[14:] == wanted:
            return True
    return False


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
