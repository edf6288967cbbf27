"""What other processes do to a store, as a program: ``store_actors.py VERB URL …``. Says on stdout what was acknowledged."""

import asyncio
import os
import signal
import sys
from contextlib import suppress
from itertools import count

from lamella.model.errors import Conflict, StaleRevision
from lamella.model.instance import Instance, InstanceSpec, InstanceStatus
from lamella.model.resource import new_resource
from lamella.model.storage import Volume, VolumeForm, VolumeSpec, VolumeStatus
from lamella.store.database import open_store
from lamella.store.session import Session
from lamella.store.store import Audit, Store, Transaction


def instance(name: str, **labels: str) -> Instance:
    return new_resource("instance", name, InstanceSpec(image="debian:12"), InstanceStatus(), labels=labels)


def volume(name: str) -> Volume:
    return new_resource("volume", name, VolumeSpec(form=VolumeForm.BLOCK), VolumeStatus())


def say(*words: object) -> None:
    print(*words, flush=True)


def make_pair(tx: Transaction, name: str) -> int:
    """Six effects that belong together; the last revision of them."""
    made = tx.insert(instance(name))
    tx.claim("address", name, made.id)
    disk = tx.insert(volume(name))
    made.status.volume = disk.id
    made = tx.update(made)
    tx.audit(Audit(principal="test", verb="create", subject=name))
    return made.revision


async def pairs(store: Store, prefix: str) -> None:
    """For ever, from several tasks at once: pairs, each named when it is acknowledged."""

    async def one(task: int) -> None:
        for number in count():
            name = f"{prefix}-{task}-{number}"
            revision = await store.write(lambda tx, name=name: make_pair(tx, name))
            say(name, revision)

    async with asyncio.TaskGroup() as group:
        for task in range(4):
            group.create_task(one(task))


async def inserts(store: Store, prefix: str, number: str) -> None:
    for index in range(int(number)):
        await store.write(lambda tx, index=index: tx.insert(instance(f"{prefix}-{index}")))


async def counts(store: Store, id: str, times: str) -> None:
    """Adds one to the label ``count`` of *id* so many times, from four tasks, by revision."""

    async def one() -> None:
        for _ in range(int(times)):
            while True:
                seen = await store.by_id(id)
                revision = seen.revision
                seen.labels["count"] = str(int(seen.labels["count"]) + 1)
                with suppress(StaleRevision):
                    await store.write(lambda tx, seen=seen, revision=revision: tx.update(seen, expected=revision))
                    break

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(one())


async def grabs(store: Store, owner: str, number: str) -> None:
    """Claims key after key; says which it got."""
    for key in range(int(number)):
        with suppress(Conflict):
            await store.write(lambda tx, key=key: tx.claim("slot", str(key), owner))
            say(key)


async def everything(store: Store, step: str) -> None:
    """One transaction with each verb of a :class:`Transaction`; the process dies at the driver's *step*-th statement."""
    await store.write(lambda tx: tx.insert(instance(f"old-{step}")))
    old = await store.get("instance", "default", f"old-{step}")
    await store.write(lambda tx: tx.claim("old", step, old.id))
    die_at(int(step))

    def change(tx: Transaction) -> None:
        make_pair(tx, f"new-{step}")
        tx.delete(old.id)

    await store.write(change)
    say("alive")


def die_at(step: int) -> None:
    steps = count(1)
    run, commit = Session.run, Session.commit

    def die_now() -> None:
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def run_or_die(self: Session, *args: object) -> int:
        die_now()
        return run(self, *args)  # type: ignore[arg-type]

    def commit_or_die(self: Session) -> None:
        die_now()
        commit(self)
        say("committed")
        die_now()

    Session.run, Session.commit = run_or_die, commit_or_die  # type: ignore[method-assign]


def each_step(url: str) -> None:
    """:func:`everything` in a child after a child, each of which dies one statement later, until one survives."""
    for step in count(1):
        say("step", step)
        child = os.fork()
        if child == 0:
            asyncio.run(act(everything.__name__, url, str(step)))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return


async def act(verb: str, url: str, *args: str) -> None:
    store = open_store(url)
    await store.open()
    say("open")
    await globals()[verb](store, *args)
    await store.close()


if __name__ == "__main__":
    if sys.argv[1] == "each_step":
        each_step(sys.argv[2])
    else:
        asyncio.run(act(*sys.argv[1:]))
