"""Tools of others: how they ended is told, and none outlives who asked, however that ends."""

import asyncio
import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lamella.host.storage import command
from lamella.model.errors import DeadlineExceeded, Unavailable

_DAEMON = """
import asyncio, sys
from lamella.host.storage import command

asyncio.run(command.run(["/bin/sh", "-c", "echo $$ >$0.new; mv $0.new $0; exec sleep 600", sys.argv[1]], timeout=600))
"""


def test_a_tool_dies_with_the_daemon_that_is_killed(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    daemon = subprocess.Popen([sys.executable, "-c", _DAEMON, str(told)])
    try:
        deadline = time.monotonic() + 90
        while not told.exists():
            assert time.monotonic() < deadline and daemon.poll() is None
            time.sleep(0.01)
        tool = os.pidfd_open(int(told.read_text()))
    finally:
        daemon.kill()
        daemon.wait(90)
    try:
        assert select.select([tool], [], [], 30)[0], "it goes on"
    finally:
        os.close(tool)


async def test_how_it_ended_is_told(tmp_path: Path) -> None:
    said = await command.run(["/bin/sh", "-c", "cat; echo wrong >&2; exit 3"], timeout=90, stdin=b"given")
    assert (said.code, said.out, said.error) == (3, b"given", "wrong")
    assert (await command.run(["/bin/sh", "-c", "kill -9 $$"], timeout=90)).code == 128 + 9
    with pytest.raises(Unavailable, match="not installed"):
        await command.run([str(tmp_path / "nothing")], timeout=90)
    with pytest.raises(DeadlineExceeded, match="sleep did not end"):
        await command.run(["sleep", "600"], timeout=0.1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await command.run(["sleep", "600"], timeout=600)
