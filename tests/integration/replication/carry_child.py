"""A daemon's stand-in that can be killed at any moment: for each order on stdin, a fork opens the wing with its pools, answers one
request and goes on until it is killed."""

import asyncio
import os
import sys
from pathlib import Path

import msgspec

from lamella.host.compute.driver import Home
from lamella.host.storage.directory import DirectoryDriver
from lamella.host.storage.volumes import Volumes
from lamella.model.storage import Pool
from lamella.model.storage_requests import AnyStorageRequest


class Order(msgspec.Struct, kw_only=True):
    path: str
    mark: str
    pools: list[Pool]
    request: AnyStorageRequest


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


async def answer(order: Order) -> None:
    wing = Volumes(Home(path=Path(order.path), mark=order.mark), {"directory": DirectoryDriver})
    await wing.open()
    await wing.use_pools(order.pools)
    say("begun")
    last = None
    async for line in wing.request(order.request):
        last = line
    say(f"failed {last.error}" if last is not None and last.error_code else "done")
    await asyncio.sleep(60)


def main() -> None:
    for line in sys.stdin:
        order = msgspec.json.decode(line, type=Order)
        pid = os.fork()
        if pid == 0:
            try:
                asyncio.run(answer(order))
            except BaseException as error:
                say(f"failed {error!r}")
            os._exit(0)
        say(f"pid {pid}")
        os.waitpid(pid, 0)
        say("ended")


if __name__ == "__main__":
    main()
