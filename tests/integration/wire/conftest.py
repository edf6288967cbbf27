"""Two processes on loopback, each with a certificate of one authority."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from lamella.wire.certificates import Authority

PROGRAM = Path(__file__).parent / "wire_party.py"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open(tmp_path / "authority")


class Party:
    """A running process of ``wire_party.py``."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port
        self.address = f"https://127.0.0.1:{port}"

    def peak_memory(self) -> int:
        """The most memory that it ever had resident, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) << 10


Start = Callable[[str, str], Awaitable[Party]]


@pytest.fixture
async def start(authority: Authority, tmp_path: Path) -> AsyncIterator[Start]:
    running: list[Party] = []

    async def start_party(part: str, name: str) -> Party:
        bundle = tmp_path / f"{part}-{name}.json"
        authority.issue("host" if part == "agent" else "control", name).save(bundle)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(PROGRAM),
            part,
            str(bundle),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "LAMELLA_MARK": "wiretest"},
        )
        assert process.stdout is not None
        async with asyncio.timeout(90):
            party = Party(process, int(await process.stdout.readline()))
            running.append(party)
            # The port is bound before it listens.
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", party.port)
                except ConnectionRefusedError:
                    await asyncio.sleep(0.02)
                    continue
                writer.close()
                return party

    yield start_party
    for party in running:
        if party.process.returncode is None:
            party.process.kill()
        await party.process.wait()
