"""One block job from its start to its end (QEMU's ``docs/interop/live-block-operations``, qapi/job.json)."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import msgspec

from lamella.host.compute.qemu.monitor import Monitor, Refused
from lamella.host.storage.blocks import Told
from lamella.model.errors import LamellaError, NoRoom, Unavailable

_LOOK = 0.05
# What a copy takes when nobody says: this share of what it could, so that the writer keeps the rest.
_SHARE = 0.05
_LEAST = 4 << 20
# Seconds in which a job that has done all that there was at first has to catch up with what was written meanwhile.
_PATIENCE = 2.0
# Seconds without a limit, to see how fast it goes, and after how many it is looked at again.
_PROBE = 0.1
_AGAIN = 5.0


class Job(msgspec.Struct):
    """``query-jobs``."""

    id: str
    status: str
    done: int = msgspec.field(name="current-progress", default=0)
    total: int = msgspec.field(name="total-progress", default=0)
    error: str = ""


async def _nothing() -> None:
    pass


async def run(
    monitor: Monitor,
    command: str,
    arguments: dict[str, object],
    *,
    told: Told | None = None,
    speed: int | None = None,
    settle: Callable[[], Awaitable[None]] = _nothing,
    late: Callable[[], None] | None = None,
    stay: bool = False,
) -> int:
    """Run the job to its end; returns the bytes that it worked on. ``speed`` is bytes a second, 0 leaves the writer its share, ``None``
    is no limit. *settle* is awaited when all is done but the change of the graph, which cannot fail any more; writers wait meanwhile.
    *late* is called every few seconds in which the writer outruns the job, which has no limit then.

    With *stay* a mirror ends when both sides are the same, and the graph stays.

    Cancelled, or when *settle* raises, the job is cancelled, and the graph is as it was.

    :raise NoRoom: when what is written to is full. :raise Unavailable: when the job fails.
    """
    id = str(arguments["job-id"])
    pace = _Pace(monitor, id) if speed == 0 else None
    first = {"speed": speed} if speed else {}
    try:
        await monitor.execute(command, {**arguments, **first, "auto-finalize": False, "auto-dismiss": False})
    except Refused:
        raise
    except BaseException:
        # Whoever asked does not wait for the answer any more; the job runs all the same.
        await asyncio.shield(cancel(monitor, id))
        raise
    try:
        return await _follow(monitor, id, told, _Chase(monitor, id, pace, late), settle, stay=stay)
    except BaseException:
        await asyncio.shield(cancel(monitor, id))
        raise


async def _follow(
    monitor: Monitor,
    id: str,
    told: Told | None,
    chase: "_Chase",
    settle: Callable[[], Awaitable[None]],
    *,
    stay: bool = False,
) -> int:
    asked = finalized = False
    while True:
        job = await find(monitor, id)
        if job is None:
            raise Unavailable(f"the storage process knows nothing of its job {id}")
        if told is not None:
            told(job.done, job.total)
        if job.status in ("running", "ready"):
            await chase.look(job)
        match job.status:
            case "ready" if not asked:
                asked = True
                if stay:
                    # Of a mirror that is ready this is no failure: it ends when what is in flight is on both sides.
                    await monitor.execute("block-job-cancel", {"device": id})
                else:
                    await monitor.execute("job-complete", {"id": id})
                continue
            case "pending" if not finalized:
                finalized = True
                await settle()
                await monitor.execute("job-finalize", {"id": id})
                continue
            case "concluded":
                await monitor.execute("job-dismiss", {"id": id})
                if job.error:
                    kind = NoRoom if "No space left" in job.error else Unavailable
                    raise kind(f"the storage process could not finish: {job.error}", hint="nothing was changed")
                return job.done
            case _:
                pass
        await asyncio.sleep(0.005 if asked else _LOOK)


async def create(monitor: Monitor, command: str, arguments: Mapping[str, object]) -> None:
    """Run a job that knows neither speed nor dismissal (``blockdev-create``, ``x-blockdev-amend``).

    :raise Unavailable: when it fails.
    """
    id = str(arguments["job-id"])
    try:
        await monitor.execute(command, arguments, deadline=60)
    except Refused as error:
        raise Unavailable(f"the storage process refused: {error.reason}") from error
    while True:
        job = await find(monitor, id)
        if job is None:
            return
        if job.status == "concluded":
            await monitor.execute("job-dismiss", {"id": id})
            if job.error:
                raise Unavailable(f"the storage process could not finish: {job.error}")
            return
        await asyncio.sleep(0.02)


async def find(monitor: Monitor, id: str) -> Job | None:
    return next((job for job in await monitor.ask(list[Job], "query-jobs") if job.id == id), None)


async def gone(monitor: Monitor, id: str) -> None:
    """Wait for the end of a job that was told to finalize."""
    while (job := await find(monitor, id)) is not None:
        if job.status == "concluded":
            await monitor.execute("job-dismiss", {"id": id})
        await asyncio.sleep(0.01)


async def cancel(monitor: Monitor, id: str) -> None:
    """End it as if it had never begun; returns when it is gone. Gone already is fine, and so is a process that is gone."""
    asked = False
    with suppress(LamellaError):
        while (job := await find(monitor, id)) is not None:
            if job.status == "concluded":
                await monitor.execute("job-dismiss", {"id": id})
            elif not asked:
                asked = True
                with suppress(Refused):
                    # By force: a mirror that is ready would else be completed without its last step.
                    await monitor.execute("block-job-cancel", {"device": id, "force": True})
            await asyncio.sleep(0.01)


class _Pace:
    """Lets a job run free for a moment, sees how far it came, and gives it a share of that."""

    def __init__(self, monitor: Monitor, id: str) -> None:
        self._monitor = monitor
        self._id = id
        self._began = time.monotonic()
        self._from = 0
        self._free = True

    async def keep(self, done: int) -> None:
        now = time.monotonic()
        past = now - self._began
        if self._free and past >= _PROBE:
            speed = max(_LEAST, int((done - self._from) / past * _SHARE))
            self._free = False
        elif not self._free and past >= _AGAIN:
            speed = 0
            self._free = True
        else:
            return
        self._began, self._from = now, done
        await _set_speed(self._monitor, self._id, speed)


class _Chase:
    """What a job does twice because it was written meanwhile: it hurries from where all was done once, and complains after a while."""

    def __init__(self, monitor: Monitor, id: str, pace: _Pace | None, late: Callable[[], None] | None) -> None:
        self._monitor = monitor
        self._id = id
        self._pace = pace
        self._late = late
        self._first = 0
        self._since: float | None = None

    async def look(self, job: Job) -> None:
        self._first = self._first or job.total
        if not self._first or job.done < self._first:
            if self._pace is not None and job.status == "running":
                await self._pace.keep(job.done)
        elif self._since is None:
            self._since = time.monotonic()
            if self._pace is not None:
                await _set_speed(self._monitor, self._id, 0)
        elif self._late is not None and time.monotonic() - self._since > _PATIENCE:
            self._since = time.monotonic()
            self._late()
            await _set_speed(self._monitor, self._id, 0)


async def _set_speed(monitor: Monitor, id: str, speed: int) -> None:
    with suppress(Refused):
        await monitor.execute("block-job-set-speed", {"device": id, "speed": speed})
