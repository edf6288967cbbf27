"""All instances of a project."""

import builtins
from collections.abc import Iterator, Mapping
from typing import Unpack

from lamella.client import calls, wish
from lamella.client.blocking.box import Box
from lamella.client.blocking.talk import Talk
from lamella.model.instance import Instance, Power
from lamella.model.requests import InstanceCreate


class Instances:
    """``layer.instances``."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk

    def list(self, *, labels: Mapping[str, str] | None = None) -> builtins.list[Box]:
        """Every instance that bears all of *labels*, running or not."""
        found, _ = self._talk.find("instance", labels)
        return [Box(self._talk, instance) for instance in found]

    def get(self, name: str) -> Box:
        """The instance with this name or id. :raise NotFound: when there is none."""
        return Box(self._talk, self._talk.ask(calls.get(self._talk.project, "instance", name)))

    def create(self, image: str = "", *, start: bool = True, **wishes: Unpack[wish.Wishes]) -> Box:
        """Make an instance and, unless *start* is false, wait until it has started.

        :raise Invalid: when a wish is not understood. :raise NotFound: when there is no such image.
        :raise Unavailable: when it was made and failed to start; it is there to look at.
        """
        body = wish.instance(image, wishes, power=Power.RUNNING if start else Power.STOPPED)
        return self.create_from(body)

    def begin(self, image: str = "", *, start: bool = True, **wishes: Unpack[wish.Wishes]) -> Box:
        """As :meth:`create`, and come back when it is written down, not when it has started."""
        body = wish.instance(image, wishes, power=Power.RUNNING if start else Power.STOPPED)
        return Box(self._talk, self._talk.ask(calls.create_instance(self._talk.project, body, wait=None)))

    def create_from(self, body: InstanceCreate) -> Box:
        """As :meth:`create`, from the API's own request."""
        wait = calls.SETTLE if body.spec.power is not Power.STOPPED else None
        made = self._talk.ask(calls.create_instance(self._talk.project, body, wait=wait))
        return Box(self._talk, calls.started(made))

    def watch(self, *, since: int | None = None) -> Iterator[calls.Change[Instance]]:
        """What happens to instances after revision *since* (left out: from now on), without a gap or a repeat."""
        yield from self._talk.watch("instance", since)
