"""One QEMU microVM with the agent as its init, its sockets and disks in a directory of the test."""

import os
import subprocess
from pathlib import Path

from lamella.host.compute.guest.client import GuestClient
from lamella.host.compute.guest.setup import GuestNetwork, GuestSetup
from lamella.host.compute.microvm.boot import BootFiles
from lamella.model.resource import now

MAC = "02:00:00:00:00:07"

SETUP = GuestSetup(
    hostname="box",
    network=GuestNetwork(
        mac=MAC, address="10.0.2.15/24", gateway="10.0.2.2", mtu=1400, address6="fd02::15/64", gateway6="fd02::2"
    ),
    nameservers=["10.0.2.3"],
    pids=100,
    entropy=os.urandom(32),
)


class Machine:
    """Runs from the moment it is made; a guest under TCG on a busy host is given a minute to answer."""

    def __init__(self, boot: BootFiles, root: Path, directory: Path, *, tsc_khz: int) -> None:
        self.socket = directory / "agent"
        self.console = directory / "console"
        self.data = directory / "data"
        if not self.data.exists():
            with self.data.open("wb") as file:
                file.truncate(128 << 20)
            subprocess.run(["mke2fs", "-q", "-t", "ext4", self.data], check=True, timeout=90)
        line = "console=ttyS0 quiet reboot=t panic=-1 no_timer_check tsc=reliable mitigations=off cryptomgr.notests=1"
        line += f" tsc_early_khz={tsc_khz}"
        self.qemu = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
                *("-machine", "microvm,rtc=on", "-accel", "tcg,thread=multi,tb-size=64", "-cpu", "max", "-m", "192M"),
                *("-global", "virtio-mmio.force-legacy=false"),
                *("-kernel", boot.kernel, "-initrd", boot.initramfs, "-append", line),
                *("-serial", f"file:{self.console}"),
                *("-device", "virtio-serial-device"),
                *("-chardev", f"socket,id=agent,path={self.socket},server=on,wait=off"),
                *("-device", "virtserialport,chardev=agent,name=org.lamella.agent"),
                *("-drive", f"if=none,id=root,file={root},format=raw,readonly=on"),
                *("-device", "virtio-blk-device,drive=root,serial=lamella-root"),
                *("-drive", f"if=none,id=data,file={self.data},format=raw"),
                *("-device", "virtio-blk-device,drive=data,serial=lamella-data"),
                *("-netdev", "user,id=net,restrict=on", "-device", f"virtio-net-device,netdev=net,mac={MAC}"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    async def connect(self) -> GuestClient:
        return await GuestClient.connect(self.socket, timeout=90)

    async def configured(self, client: GuestClient | None = None) -> GuestClient:
        """A client of the guest after its set-up."""
        client = client or await self.connect()
        setup = GuestSetup(
            hostname=SETUP.hostname,
            network=SETUP.network,
            nameservers=SETUP.nameservers,
            pids=SETUP.pids,
            entropy=SETUP.entropy,
            time=now(),
        )
        await client.configure(setup)
        return client

    def end(self) -> None:
        self.qemu.kill()
        self.qemu.wait()
