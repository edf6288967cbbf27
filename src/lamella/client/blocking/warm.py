"""Many boxes that are already running: one an item, each used once, so many at a time."""

import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypeVar, overload

from lamella.client import calls, template_calls, warm_calls
from lamella.client.blocking.box import Box
from lamella.client.blocking.streams import communicate
from lamella.client.blocking.talk import Talk
from lamella.client.blocking.templates import Templates
from lamella.client.result import Result
from lamella.model.errors import Invalid, LamellaError, NotFound
from lamella.model.template import Template

ItemT = TypeVar("ItemT")
FoundT = TypeVar("FoundT")


class Boxes:
    """Copies of ``template``, ``size`` of them at a time at most. Each is removed when it was used, whatever became of it."""

    def __init__(self, talk: Talk, template: Template, size: int) -> None:
        self._talk = talk
        self.template = template
        self.size = size
        self._free = threading.Semaphore(size)

    @contextmanager
    def box(self) -> Generator[Box]:
        """One that runs and does nothing, for as long as the block lasts; waits while ``size`` of them are there."""
        with self._box(warm_calls.IDLE, attached=False) as made:
            yield made

    def run(self, *command: str, input: bytes | None = None) -> Result:
        """What becomes of *command* in a box of its own."""
        with self._box(list(command), attached=True) as made:
            with made.attach(start=True) as stream:
                return communicate(stream, command, input)

    @overload
    def map(self, job: Callable[[Box, ItemT], FoundT], items: Iterable[ItemT]) -> list[FoundT]: ...

    @overload
    def map(self, job: Sequence[str] | str, items: Iterable[Sequence[str] | str]) -> list[Result]: ...

    def map(self, job: Any, items: Iterable[Any]) -> list[Any]:
        """What becomes of each of *items*, in their order. *job* is a command, to which the item is added (or put where ``{}`` is): the
        :class:`Result` has its exit code and output; or a function of a box and the item, called in a thread of its own.

        After the first exception no other item is begun; it is raised when what had begun is over. No box is left.
        """

        def one(item: Any) -> Any:
            if warm_calls.is_command(job):
                return self.run(*warm_calls.filled(job, item))
            with self.box() as made:
                return job(made, item)

        with ThreadPoolExecutor(self.size) as pool:
            try:
                return list(pool.map(one, items))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    @contextmanager
    def _box(self, command: list[str], *, attached: bool) -> Generator[Box]:
        name = warm_calls.name_of_box(self.template.name)
        with self._free:
            try:
                call = warm_calls.begin(self._talk.project, self.template, name, command, attached=attached)
                yield Box(self._talk, calls.started(self._talk.ask(call)))
            finally:
                with suppress(NotFound):
                    self._talk.ask(calls.remove(self._talk.project, "instance", name, force=True, wait=calls.SETTLE))


@contextmanager
def warm(talk: Talk, templates: Templates, what: str, size: int, wishes: template_calls.Wishes) -> Generator[Boxes]:
    """See :meth:`lamella.client.blocking.layer.Layer.warm`."""
    if size < 1:
        raise Invalid(f"{size} boxes at a time are none", hint="ask for one or more", field="size")
    found = None
    # What names an image need be no name of a template.
    with suppress(NotFound, Invalid):
        found = templates.get(what)
    if found is None:
        yours: template_calls.Wishes = {"idle": warm_calls.FORGOTTEN, "warm": size, **wishes}
        found = templates.create(None, what, **yours)
        try:
            yield Boxes(talk, found, size)
        finally:
            with suppress(NotFound):
                templates.remove(found.name)
        return
    if wishes:
        raise Invalid(
            f"template {what} is there, and is what it is", hint=f"leave {', '.join(sorted(wishes))} out", field="what"
        )
    before = found.spec.warm
    if before < size:
        found = templates.change(found.name, warm=size)
    try:
        yield Boxes(talk, found, size)
    finally:
        if before < size:
            # As many wait as did, unless somebody has asked for another number since.
            with suppress(LamellaError):
                if templates.get(found.name).spec.warm == size:
                    templates.change(found.name, warm=before)
