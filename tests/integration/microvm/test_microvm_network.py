"""A NIC is a descriptor: the guest has its address, and QEMU sees no network of the host."""

import asyncio
import fcntl
import os
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from microvm_lab import Lab, run

from lamella.host.compute.microvm.driver import MicrovmDriver
from lamella.host.linux import syscalls
from lamella.host.network.driver import Attachment

pytestmark = pytest.mark.root

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000


@pytest.fixture
def namespace() -> Iterator[str]:
    """A network namespace of its own, with a TAP and an address on it."""
    name = f"lamella-test-mv{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=90)
    yield name
    subprocess.run(["ip", "netns", "delete", name], check=True, timeout=90)


def open_tap(namespace: str) -> int:
    """A TAP made in *namespace*, by a thread that goes there and ends."""
    made: list[int] = []

    def work() -> None:
        with Path(f"/run/netns/{namespace}").open() as place:
            syscalls.setns(place.fileno(), syscalls.CLONE_NEWNET)
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", b"tap0", _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
        made.append(fd)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    for command in ("address add 10.9.0.1/24 dev tap0", "link set tap0 up"):
        subprocess.run(["ip", "-n", namespace, *command.split()], check=True, timeout=90)
    return made[0]


def ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True, timeout=90)


def ip_inside(pid: int | None, *words: str) -> subprocess.CompletedProcess[str]:
    """As the process *pid* would see it."""
    argv = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", *words]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=90)


async def test_a_guest_reaches_its_network(lab: Lab, driver: MicrovmDriver, namespace: str) -> None:
    asked: list[str] = []

    async def taps(port: str) -> int:
        asked.append(port)
        return await asyncio.to_thread(open_tap, namespace)

    driver.use_taps(taps)
    nic = Attachment(port="port_1", mac="02:00:00:00:00:07", address="10.9.0.7/24", gateway="10.9.0.1", mtu=1400)
    machine = lab.machine("/bin/sleep", "1000", nic=nic, nameservers=["10.9.0.1"])
    await driver.create(machine)
    await driver.start(machine.id)
    assert asked == ["port_1"]
    code, said = await run(driver, machine.id, "ping", "-c", "1", "-W", "60", "10.9.0.1")
    assert code == 0, said
    _, said = await run(driver, machine.id, "ip", "address", "show", "eth0")
    assert "02:00:00:00:00:07" in said and "10.9.0.7/24" in said and "mtu 1400" in said
    assert (await run(driver, machine.id, "cat", "/etc/resolv.conf"))[1].split() == ["nameserver", "10.9.0.1"]
    usage = await driver.usage(machine.id)
    assert usage.received and usage.sent
    pid = (await driver.observe(machine.id)).pid  # type: ignore[union-attr]
    links = ip_inside(pid, "-o", "link")
    assert [line.split()[1] for line in links.stdout.splitlines()] == ["lo:"]
    await driver.remove(machine.id)
    # Our copy of the descriptor is closed, QEMU's went with it: the TAP is gone.
    assert "tap0" not in ip("-n", namespace, "-o", "link").stdout
