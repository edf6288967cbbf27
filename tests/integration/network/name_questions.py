"""A DNS client of a few lines (RFC 1035), that says where it asks and what came back."""

import secrets
import socket
import struct

from network_world import World


class Refused(Exception):
    """The server answered with this code (3: there is no such name)."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


A, AAAA = 1, 28


def question(name: str, number: int, kind: int = A) -> bytes:
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, 1)


def addresses(answer: bytes, asked: int) -> list[str]:
    """The addresses in *answer* to a question of *asked* bytes. :raise Refused: when it has a code."""
    _, flags, _, count, _, _ = struct.unpack_from(">HHHHHH", answer)
    if flags & 15:
        raise Refused(flags & 15)
    found: list[str] = []
    offset = asked
    for _ in range(count):
        offset += 2  # a pointer to the name
        kind, _, _, length = struct.unpack_from(">HHIH", answer, offset)
        offset += 10
        if kind in (A, AAAA):
            family = socket.AF_INET if kind == A else socket.AF_INET6
            found.append(socket.inet_ntop(family, answer[offset : offset + length]))
        offset += length
    return sorted(found)


def resolve(world: World, where: str, server: str, name: str, *, tcp: bool = False, kind: int = A) -> list[str]:
    """What *server* says to a question from the namespace *where*.

    :raise Refused: when there is no such name. :raise OSError: when nobody answers within a second.
    """
    number = secrets.randbelow(1 << 16)
    asked = question(name, number, kind)
    of, how = socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
    client = world.inside(where, lambda: socket.socket(of, how))
    client.settimeout(3.0)
    world.sockets.append(client)
    client.connect((server, 53))
    client.sendall(struct.pack(">H", len(asked)) + asked if tcp else asked)
    answer = client.recv(4096)
    return addresses(answer[2:] if tcp else answer, len(asked))
