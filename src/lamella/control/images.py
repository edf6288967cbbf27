"""Images: long verbs are operations whose progress lives in the store; the content is the host's."""

import asyncio
import re
import time
from contextlib import suppress
from pathlib import PurePosixPath

from lamella.control.bulletin import Bulletin
from lamella.control.events import record
from lamella.control.lookup import need_project
from lamella.model.assignment import HostAgent, ImageProgress, ImageRequest
from lamella.model.errors import Conflict, Internal, Invalid, LamellaError, NotFound, error_for
from lamella.model.ids import check_image_name
from lamella.model.image import Image, ImageSpec, ImageStatus
from lamella.model.instance import Instance
from lamella.model.operation import Operation, OperationPhase, OperationSpec, OperationStatus
from lamella.model.requests import ImageCreate, Principal
from lamella.model.resource import new_resource, now
from lamella.model.template import Template
from lamella.store.store import Audit, Change, Store, Transaction

# Progress goes to the store this often at most, in seconds: it is for eyes.
PROGRESS_EVERY = 0.25


class Images:
    """``create`` returns at once; the work goes on in a task that this object holds until it is closed."""

    def __init__(self, store: Store, bulletin: Bulletin) -> None:
        self._store = store
        self._bulletin = bulletin
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def open(self) -> None:
        """Operations that a former daemon left running are over: say so."""

        def write(tx: Transaction) -> None:
            for operation in tx.list("operation"):
                ours = operation.spec.subject.startswith("image/")
                if ours and operation.status.phase is OperationPhase.RUNNING:
                    operation.status.phase = OperationPhase.FAILED
                    operation.status.error_code = "unavailable"
                    operation.status.error = "the daemon ended while this was going on"
                    operation.status.hint = "ask again; what was fetched is kept"
                    operation.status.finished_at = now()
                    tx.update(operation)

        await self._store.write(write)

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        for task in list(self._tasks.values()):
            with suppress(asyncio.CancelledError):
                await task

    async def create(
        self, who: Principal, project: str, body: ImageCreate, agent: HostAgent, *, wait: float
    ) -> Operation:
        name = check_image_name(body.name if body.name is not None else default_name(body))
        request = ImageRequest(
            verb=body.verb,
            source=body.source,
            packages=body.packages,
            disk=body.disk,
            initrd=body.initrd,
            username=body.username,
            password=body.password,
            insecure=body.insecure,
        )

        def write(tx: Transaction) -> Operation:
            need_project(tx, project)
            spec = OperationSpec(verb=body.verb, subject=f"image/{name}", principal=who.name)
            operation: Operation = new_resource(
                "operation", "pending", spec, OperationStatus(step="waiting"), project=project
            )
            operation.name = operation.id.replace("_", "-")
            tx.audit(Audit(principal=who.name, verb=f"image {body.verb}", subject=f"image/{project}/{name}"))
            return tx.insert(operation)

        operation = await self._store.write(write)
        task = asyncio.create_task(self._carry_out(operation, project, name, request, agent), name=operation.name)
        self._tasks[operation.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(operation.id, None))
        if wait > 0:
            await self._wait(operation.id, wait)
            operation = await self._store.by_id(operation.id)
        return operation

    async def _wait(self, id: str, wait: float) -> None:
        async def first() -> bool:
            return (await self._store.by_id(id)).status.phase is not OperationPhase.RUNNING

        def check(change: Change) -> bool:
            return change.resource.status.phase is not OperationPhase.RUNNING

        with suppress(LamellaError):
            await self._bulletin.until({id}, first, check, timeout=wait)

    async def _carry_out(
        self, operation: Operation, project: str, name: str, request: ImageRequest, agent: HostAgent
    ) -> None:
        try:
            result = await self._follow(operation, request, agent)
            await self._store.write(lambda tx: _finish(tx, operation, project, name, request, result))
        except asyncio.CancelledError:
            await self._fail(operation, Internal("the daemon is ending", hint="ask again; what was fetched is kept"))
            raise
        except LamellaError as error:
            await self._fail(operation, error)
        except Exception as error:
            await self._fail(operation, Internal(f"{type(error).__name__}: {error}"))

    async def _follow(self, operation: Operation, request: ImageRequest, agent: HostAgent) -> ImageStatus:
        told = 0.0
        result: ImageStatus | None = None
        last = ""
        async for line in agent.image(request):
            if line.error_code:
                raise error_for(line.error_code)(line.error, hint=line.hint)
            if line.result is not None:
                result = line.result
            elif line.step != last or time.monotonic() - told > PROGRESS_EVERY:
                told, last = time.monotonic(), line.step
                await self._store.write(lambda tx, seen=line: _progress(tx, operation.id, seen))
        if result is None:
            raise Internal("the host ended without a result")
        return result

    async def _fail(self, operation: Operation, error: LamellaError) -> None:
        def write(tx: Transaction) -> None:
            current = tx.by_id(operation.id)
            if current is not None:
                current.status.phase = OperationPhase.FAILED
                current.status.error_code, current.status.error, current.status.hint = (
                    error.code,
                    error.message,
                    error.hint,
                )
                current.status.finished_at = now()
                tx.update(current)

        await self._store.write(write)

    async def delete(self, who: Principal, project: str, name: str, *, force: bool, expected: int | None) -> None:
        """Forget the name; ``collect`` frees what no name and no instance needs."""

        def write(tx: Transaction) -> None:
            image = tx.get("image", project, name) or tx.by_id(name)
            if image is None or image.kind != "image":
                raise NotFound(f"no image is called {name!r} in project {project}", hint="lamella image ls lists them")
            users = [i.name for i in tx.list("instance") if image.status.digest in _digests(i)]
            users += [f"template {t.name}" for t in tx.list("template") if image.status.digest in _frozen(t)]
            others = [i for i in tx.list("image") if i.status.digest == image.status.digest and i.id != image.id]
            if users and not others and not force:
                raise Conflict(
                    f"image {name} is used by {', '.join(users[:5])}",
                    hint="remove them first, or use --force (they keep running)",
                )
            if expected is not None:
                tx.update(image, expected=expected)
            record(tx, image, "image.removed", f"{who.name} removed image {image.name}")
            tx.audit(Audit(principal=who.name, verb="delete", subject=f"image/{project}/{image.name}"))
            tx.delete(image.id)

        await self._store.write(write)

    async def collect(self, who: Principal, agent: HostAgent) -> int:
        """Free what no image name, no instance and no template needs; returns bytes."""
        if self._tasks:
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

        def look(tx: Transaction) -> set[str]:
            named = {image.status.digest for image in tx.list("image")}
            frozen = {digest for template in tx.list("template") for digest in _frozen(template)}
            # What a memory is of, somebody may still begin as.
            origins = {
                item.status.origin.image_digest for item in tx.list("snapshot") if item.status.origin is not None
            }
            return (
                named | frozen | origins | {digest for instance in tx.list("instance") for digest in _digests(instance)}
            )

        keep = await self._store.read(look)
        freed = await agent.collect_images({digest for digest in keep if digest})
        await self._store.write(lambda tx: tx.audit(Audit(principal=who.name, verb="collect", subject="images")))
        return freed


def _digests(instance: Instance) -> set[str]:
    """Of all images that an instance stands on: the one it was made from, and those in its drives."""
    return {instance.status.image_digest, *instance.status.cdroms.values()}


def _frozen(template: Template) -> set[str]:
    """Of the image that copies of a template stand on."""
    return {template.status.image.digest} if template.status.image is not None else set()


def default_name(body: ImageCreate) -> str:
    """The name that an image gets when nobody gives one; an imported one is called as its file is.

    :raise Invalid: when the source suggests none.
    """
    if body.verb == "build":
        return body.source
    if body.verb == "pull":
        reference = body.source.removeprefix("docker://")
        _, slash, rest = reference.partition("/")
        name = (rest if slash else reference).partition("@")[0]
        return name if ":" in name else f"{name}:latest"
    name = re.sub(r"[^a-z0-9._-]+", "-", PurePosixPath(body.source).stem.lower()).strip("-._")
    if not name:
        raise Invalid("an imported image needs a name", hint="lamella image import FILE --name NAME", field="name")
    return name


def _progress(tx: Transaction, id: str, line: ImageProgress) -> None:
    operation = tx.by_id(id)
    if operation is not None:
        status = operation.status
        status.step, status.done, status.total, status.unit = line.step, line.done, line.total, line.unit
        tx.update(operation)


def _finish(
    tx: Transaction, operation: Operation, project: str, name: str, request: ImageRequest, result: ImageStatus
) -> None:
    source = f"{'mmdebstrap:' if request.verb == 'build' else ''}{request.source}"
    if request.packages:
        source += f" with {' '.join(request.packages)}"
    known: Image | None = tx.get("image", project, name)
    if known is None:
        image = tx.insert(new_resource("image", name, ImageSpec(source=source), result, project=project))
        record(tx, image, "image.created", f"image {name} is {result.digest[:19]}")
    else:
        moved = known.status.digest != result.digest
        known.spec, known.status = ImageSpec(source=source), result
        image = tx.update(known)
        if moved:
            record(tx, image, "image.updated", f"image {name} is now {result.digest[:19]}")
    current = tx.by_id(operation.id)
    if current is not None:
        current.status.phase, current.status.result = OperationPhase.DONE, image.name
        current.status.step, current.status.finished_at = "done", now()
        tx.update(current)
