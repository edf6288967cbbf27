"""A program at one end of a path, told what to do line by line: serve, send as fast as it can, or connect again and again.

listen PORT                     serve, from now on; says ok
send ADDRESS PORT SECONDS       says how many bytes a second the other end received
connect ADDRESS PORT COUNT      says the median of the seconds that a connection took
"""

import socket
import statistics
import struct
import sys
import threading
import time

SIZE = 1 << 20
# A closed connection leaves nothing behind that the next one would find.
AT_ONCE = struct.pack("ii", 1, 0)


def serve(server: socket.socket) -> None:
    """One after the other: count what comes, and say it at the end."""
    buffer = bytearray(SIZE)
    while True:
        peer, _ = server.accept()
        with peer:
            peer.settimeout(60)
            total = 0
            try:
                while got := peer.recv_into(buffer):
                    total += got
                peer.sendall(total.to_bytes(8, "big"))
            except OSError:
                continue


def listen(port: int) -> str:
    server = socket.create_server(("0.0.0.0", port), backlog=1024)
    threading.Thread(target=serve, args=(server,), daemon=True).start()
    return "ok"


def send(address: str, port: int, seconds: float) -> float:
    data = bytes(SIZE)
    with socket.create_connection((address, port), timeout=30) as peer:
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)
        total = int.from_bytes(peer.recv(8, socket.MSG_WAITALL), "big")
        return total / (time.perf_counter() - began)


def connect(address: str, port: int, count: int) -> float:
    took: list[float] = []
    for _ in range(count):
        with socket.socket() as peer:
            peer.settimeout(30)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
            began = time.perf_counter()
            peer.connect((address, port))
            took.append(time.perf_counter() - began)
    return statistics.median(took)


def main() -> None:
    for line in sys.stdin:
        verb, *words = line.split()
        if verb == "listen":
            said: object = listen(int(words[0]))
        elif verb == "send":
            said = send(words[0], int(words[1]), float(words[2]))
        else:
            said = connect(words[0], int(words[1]), int(words[2]))
        print(said, flush=True)


if __name__ == "__main__":
    main()
