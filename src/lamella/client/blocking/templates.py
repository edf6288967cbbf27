"""Templates of a project: machines that are booted, warmed up and frozen once, and of which instances begin as copies."""

import builtins
from collections.abc import Mapping
from typing import Unpack

from lamella.client import calls, template_calls, template_routes
from lamella.client.blocking.talk import Talk
from lamella.model.template import Template


class Templates:
    """``layer.templates``. ``status.ready`` is how many copies wait for their command, ``status.copies`` how many others there are."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk

    def list(self, *, labels: Mapping[str, str] | None = None) -> builtins.list[Template]:
        found, _ = self._talk.find("template", labels)
        return found

    def get(self, name: str) -> Template:
        """:raise NotFound: when there is no such template."""
        return self._talk.ask(calls.get(self._talk.project, "template", name))

    def create(
        self,
        name: str | None,
        image: str,
        *,
        labels: Mapping[str, str] | None = None,
        wait: float = template_routes.SETTLE,
        **wishes: Unpack[template_calls.Wishes],
    ) -> Template:
        """Make one, and wait up to *wait* seconds until it is ready: ``create("py", "debian:12", warmup='python3 -c "import numpy"')``.
        Without a *name* one is chosen.

        :raise Invalid: when a wish is not understood. :raise NotFound: when there is no such image. :raise Conflict: when the name is
            taken, or the warm-up ended with another code than 0. :raise Unsupported: when its level has no memory that can be kept.
        """
        return self._talk.ask(template_calls.create(self._talk.project, name, image, wishes, labels=labels, wait=wait))

    def change(self, name: str, **changes: Unpack[template_calls.Changes]) -> Template:
        """What is said of it becomes so: ``change("py", warm=4)``. Another recipe has it built anew; it is ready again then.

        :raise Invalid: when nothing is to be changed, or a change is not understood. :raise NotFound: when there is no such template.
        """
        return self._talk.ask(template_calls.change(self._talk.project, name, changes))

    def rebuild(self, name: str) -> Template:
        """Make it anew, though nothing has changed. :raise NotFound: when there is no such template."""
        return self._talk.ask(template_calls.rebuild(self._talk.project, name))

    def remove(self, name: str) -> None:
        """Remove it, with the copies that wait; others live on. :raise NotFound: when there is no such template."""
        self._talk.ask(calls.remove(self._talk.project, "template", name))
