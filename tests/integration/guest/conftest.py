"""Real agents: one built for this run, as a process here and as the init of a microVM."""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from guest_machine import Machine

from lamella.host.compute.guest.client import GuestClient
from lamella.host.compute.microvm.boot import BootFiles, build_boot
from lamella.host.compute.microvm.kernel import fetch_kernel
from lamella.host.linux import binaries

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent, compiled from this checkout."""
    path = tmp_path_factory.mktemp("agent") / "lamella-agent"
    subprocess.run([REPOSITORY / "guest" / "build", path], check=True, timeout=120)
    return path


@pytest.fixture(scope="session")
def boot(agent: Path, tmp_path_factory: pytest.TempPathFactory) -> BootFiles:
    """Boot files with that agent, around the kernel that ./dev setup fetched."""
    tree = fetch_kernel(REPOSITORY / ".lamella" / "boot" / "kernel")
    return build_boot(tmp_path_factory.mktemp("boot"), tree, agent)


@pytest.fixture(scope="session")
def root_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small erofs root: busybox and two users."""
    directory = tmp_path_factory.mktemp("root")
    root = directory / "root"
    for name in ("bin", "etc", "home/ann"):
        (root / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, root / "bin" / "busybox")
    for applet in subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nann:x:1000:1001::/home/ann:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nann:x:1001:\nwheel:x:10:bob,ann\n")
    (root / "etc/resolv.conf").symlink_to("../run/nowhere")
    image = directory / "root.erofs"
    subprocess.run(["mkfs.erofs", image, root], check=True, capture_output=True, timeout=90)
    return image


@pytest.fixture
async def helper(agent: Path, tmp_path: Path) -> AsyncIterator[GuestClient]:
    """A client of ``lamella-agent --stdio`` here on the host."""
    process = await asyncio.create_subprocess_exec(
        agent, "--stdio", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=tmp_path
    )
    assert process.stdin is not None
    assert process.stdout is not None
    client = await GuestClient.over(process.stdout, process.stdin, timeout=90)
    yield client
    await client.close()
    async with asyncio.timeout(90):
        assert await process.wait() == 0


@pytest.fixture
def machine(boot: BootFiles, root_image: Path, tmp_path: Path) -> Iterator[Machine]:
    """A running microVM of that root with a fresh data disk; it is gone after the test."""
    tsc = subprocess.run([binaries.own("lamella-tsc")], capture_output=True, text=True, check=True, timeout=90)
    made = Machine(boot, root_image, tmp_path, tsc_khz=int(tsc.stdout))
    yield made
    made.end()
