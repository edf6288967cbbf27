"""Runs one verb of a driver in a process of its own, to be killed in the middle; a program of the cut tests, and their side of it.

Python's start would take longer than most verbs: one process imports everything and forks for each verb. It reads lines of JSON and
writes ``pid N``, ``ready`` (the pool is open), ``done`` or ``failed …`` (what the verb came to, if it came to that) and ``ended``.
"""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from contract_lab import driver

from lamella.host.storage.driver import Source, StorageDriver
from lamella.model.storage import VolumeForm


async def perform(job: dict[str, Any]) -> None:
    pool = driver(job)
    await pool.open()
    say("ready")
    await act(pool, job["verb"], job["arguments"])
    say("done")


async def act(pool: StorageDriver, verb: str, arguments: dict[str, Any]) -> None:
    """*verb* of the Protocol, its arguments as JSON has them."""
    given = dict(arguments)
    if "form" in given:
        given["form"] = VolumeForm(given["form"])
    if "source" in given:
        given["source"] = Source(**given["source"])
    await getattr(pool, verb)(**given)


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


def serve() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os.setsid()
            say(f"pid {os.getpid()}")
            try:
                asyncio.run(perform(json.loads(line)))
            except BaseException as error:
                say(f"failed {type(error).__name__}: {error}".replace("\n", " "))
            # Whoever asked kills us, and by a number that is nobody else's.
            while True:
                signal.pause()
        os.waitpid(child, 0)
        say("ended")


class Cutter:
    """The test's side."""

    def __init__(self, prefix: list[str], environment: dict[str, str]) -> None:
        root = Path(__file__).parents[4]
        self._process = subprocess.Popen(
            [*prefix, sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment, "PYTHONPATH": str(root / "src")},
            text=True,
            bufsize=1,
        )

    def cut(
        self, described: dict[str, Any], verb: str, arguments: dict[str, Any], after: float | None
    ) -> tuple[bool, float]:
        """Begin the verb, kill it *after* seconds (all its children too, every other time), or when it has answered: whether it had
        answered before, and how long it ran."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({**described, "verb": verb, "arguments": arguments}) + "\n")
        pid = 0
        while (line := self._line()) != "ready":
            if line.startswith("pid "):
                pid = int(line.removeprefix("pid "))
            if line.startswith("failed"):
                os.kill(pid, signal.SIGKILL)
                raise AssertionError(line)
        began = time.monotonic()
        said = ""
        if after is None:
            said = self._line()
        else:
            time.sleep(after)
        took = time.monotonic() - began
        (os.kill if random.random() < 0.5 else os.killpg)(pid, signal.SIGKILL)
        while (line := self._line()) != "ended":
            said = line
        assert not said.startswith("failed"), said
        return said == "done", took

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process that forks is gone"
        return line.strip()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(90)


if __name__ == "__main__":
    serve()
