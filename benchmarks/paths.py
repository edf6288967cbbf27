"""Paths between two network namespaces, and programs at their ends."""

import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from tests.house import named_netns

HERE = Path(__file__).resolve().parent.parent
PORT = 5201


class End:
    """The program of ``traffic`` in the network namespace at *netns*. A context manager: it ends with the block."""

    def __init__(self, netns: Path | str) -> None:
        self._process = subprocess.Popen(
            ["nsenter", f"--net={netns}", sys.executable, "-m", "benchmarks.traffic"],
            cwd=HERE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *words: object) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        said = self._process.stdout.readline().strip()
        if not said:
            raise RuntimeError(f"{words}: the program ended with {self._process.wait(10)}")
        return said

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


class Route:
    """Two ends, the second of which serves at *address*."""

    def __init__(self, first: End, second: End, address: str) -> None:
        self._first, self._address = first, address
        second.ask("listen", PORT)

    def throughput(self, seconds: float) -> float:
        """Bytes a second over one TCP connection."""
        return float(self._first.ask("send", self._address, PORT, seconds))

    def connect(self, count: int) -> float:
        """Seconds that a TCP connection takes, the median of *count*."""
        return float(self._first.ask("connect", self._address, PORT, count))


@contextmanager
def between(first: Path | str, second: Path | str, address: str) -> Iterator[Route]:
    with End(first) as one, End(second) as other:
        yield Route(one, other, address)


@contextmanager
def bare() -> Iterator[Route]:
    """veth -- bridge -- veth, made by hand, in namespaces of its own: no rule, and bridged packets are shown to none."""
    mark = f"lamella-bench-{secrets.token_hex(3)}"
    with ExitStack() as stack:
        bridge, *ends = (stack.enter_context(named_netns(f"{mark}-{name}")) for name in ("bridge", "a", "b"))
        _ip("-n", bridge, "link", "add", "br0", "type", "bridge")
        _ip("-n", bridge, "link", "set", "br0", "up")
        shown = "/proc/sys/net/bridge/bridge-nf-call-iptables"
        quiet_shell = f"if [ -e {shown} ]; then echo 0 >{shown}; fi"
        subprocess.run(["nsenter", f"--net=/run/netns/{bridge}", "sh", "-c", quiet_shell], check=True)
        for number, end in enumerate(ends, 1):
            _ip(
                "-n", bridge, "link", "add", f"p{number}", "master", "br0", "type", "veth",
                "peer", "name", "eth0", "netns", end,
            )  # fmt: skip
            _ip("-n", bridge, "link", "set", f"p{number}", "up")
            _ip("-n", end, "addr", "add", f"10.99.7.{number}/24", "dev", "eth0")
            _ip("-n", end, "link", "set", "eth0", "up")
        yield stack.enter_context(between(f"/run/netns/{ends[0]}", f"/run/netns/{ends[1]}", "10.99.7.2"))


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=30)
