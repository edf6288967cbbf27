"""The level on this machine, as it is: what it has, what it lacks, and that a machine is refused with all of it."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lamella.host.compute.confidential import probe
from lamella.host.compute.confidential.attestation import Attestation, attest
from lamella.host.compute.confidential.driver import ConfidentialDriver
from lamella.host.compute.driver import ComputeDriver, Home, Limits, Machine, Rootfs
from lamella.model.board import Confidential
from lamella.model.errors import Corrupt, Invalid, Unsupported
from lamella.model.ids import new_id
from lamella.model.image import ImageConfig
from lamella.model.stream import ExecSpec, Exit, FromProcess, ProcessStream, Stderr, Stdout, ToProcess

pytestmark = pytest.mark.root


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[ConfidentialDriver]:
    home = Home(tmp_path / "home", f"lamella-test-cc{os.getpid()}")
    home.state.mkdir(parents=True)
    home.run.mkdir()
    driver = ConfidentialDriver(home, lambda _: None)
    _: ComputeDriver = driver
    yield driver
    await driver.close()


def machine() -> Machine:
    return Machine(
        id=new_id("instance"),
        name="secret",
        project="default",
        rootfs=Rootfs(digest="sha256:0", layers=[], config=ImageConfig()),
        command=[],
        environment={},
        working_directory="/",
        user="",
        hostname="secret",
        terminal=False,
        stdin=False,
        limits=Limits(memory=256 << 20),
        id_base=1_990_000_000,
        disk=None,
        nic=None,
        nameservers=[],
        stop_signal="SIGTERM",
    )


async def test_this_host_says_what_it_lacks_and_refuses_with_that(driver: ConfidentialDriver) -> None:
    found = await driver.open()
    assert found[0].name == "compute.confidential"
    names = {item.name for item in found}
    for technology in Confidential:
        parts = {"processor", "kernel", "kvm", "qemu", "firmware"}
        assert names >= {f"compute.confidential.{technology}.{part}" for part in parts}
    assert all(item.reason for item in found)
    if found[0].available:
        pytest.skip("this host can run confidential machines; nothing here was written on one")
    flags = probe.processor(Path("/proc/cpuinfo").read_text())[1]
    assert not next(item for item in found if item.name.endswith("sev-snp.processor")).available or "sev_snp" in flags
    asked = machine()
    with pytest.raises(Unsupported, match="cannot run confidential machines") as raised:
        await driver.create(asked)
    for item in found:
        if not item.available and item.name.count(".") == 3:
            assert item.reason in raised.value.message
    await driver.remove(asked.id)
    assert await driver.inventory() == set()


class ShellHere:
    """A :class:`ProcessStream` of a command that runs on this host, where a guest would run it."""

    def __init__(self, out: bytes, said: bytes, code: int) -> None:
        self._frames: list[FromProcess] = [Stdout(out), Stderr(said), Exit(code)]

    async def send(self, frame: ToProcess) -> None: ...

    async def receive(self) -> FromProcess | None:
        return self._frames.pop(0) if self._frames else None

    async def close(self) -> None: ...


class FakeConfigfs:
    """Stands for ``/sys/kernel/config/tsm/report``, which the kernel makes only in an encrypted guest: a mkdir that fills what it makes."""

    def __init__(self, folder: Path, provider: str, generation: int = 1) -> None:
        self.reports = folder / "report"
        self.reports.mkdir()
        self._tools = folder / "tools"
        self._tools.mkdir()
        fill = f"printf {provider} >$d/provider; echo >>$d/provider; printf report >$d/outblob; echo {generation} >$d/generation"
        (self._tools / "mkdir").write_text(f'#!/bin/sh\nfor d; do :; done\n/bin/mkdir "$@" && {fill}\n')
        (self._tools / "rmdir").write_text(f'#!/bin/sh\ncp "$1/inblob" {folder}/asked\nrm -r "$1"\n')
        for tool in self._tools.iterdir():
            tool.chmod(0o755)
        self.asked = folder / "asked"

    async def execute(self, spec: ExecSpec) -> ProcessStream:
        path = f"{self._tools}:/usr/bin:/bin"
        run = asyncio.to_thread(subprocess.run, spec.command, capture_output=True, env={"PATH": path}, check=False)
        done = await run
        return ShellHere(done.stdout, done.stderr, done.returncode)


async def test_the_script_asks_as_the_kernel_wants_to_be_asked(tmp_path: Path) -> None:
    guest = FakeConfigfs(tmp_path, "sev_guest")
    nonce = bytes(range(200, 240))
    found = await attest(guest.execute, nonce, reports=str(guest.reports))
    assert found == Attestation(technology=Confidential.SEV_SNP, report=b"report")
    assert guest.asked.read_bytes() == nonce.ljust(64, b"\0")
    assert list(guest.reports.iterdir()) == []
    for wrong in (b"", bytes(65)):
        with pytest.raises(Invalid):
            await attest(guest.execute, wrong, reports=str(guest.reports))


async def test_answers_that_are_no_report(tmp_path: Path) -> None:
    for number, (provider, generation, words) in enumerate(
        [("somebody", 1, "not known"), ("tdx_guest", 2, "somebody else")]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        guest = FakeConfigfs(folder, provider, generation)
        with pytest.raises(Corrupt, match=words):
            await attest(guest.execute, b"n", reports=str(guest.reports))
    with pytest.raises(Unsupported, match=r"Linux 6\.7"):
        await attest(FakeConfigfs(tmp_path, "x").execute, b"n", reports=str(tmp_path / "none"))
