"""Firewalls of a project: what may come in to instances, and what may go out of them."""

import builtins
from collections.abc import Mapping, Sequence

from lamella.client import calls, firewall_calls
from lamella.client.blocking.talk import Talk
from lamella.model.firewall import Firewall


class Firewalls:
    """``layer.firewalls``. Rules are texts: ``tcp:80,443``, ``icmp``, ``from=10.0.0.0/8:udp``, ``from=firewall:app:tcp:5432``."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk

    def list(self, *, labels: Mapping[str, str] | None = None) -> builtins.list[Firewall]:
        found, _ = self._talk.find("firewall", labels)
        return found

    def get(self, name: str) -> Firewall:
        """:raise NotFound: when there is no such firewall."""
        return self._talk.ask(calls.get(self._talk.project, "firewall", name))

    def create(
        self,
        name: str,
        *,
        allow: Sequence[str] = (),
        allow_out: Sequence[str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Firewall:
        """Make one that lets in what *allow* says, and out what *allow_out* says (``None``: everything).

        :raise Invalid: when a text is no rule. :raise NotFound: when a rule names a firewall that is not there.
        :raise Conflict: when the name is taken.
        """
        return self._talk.ask(
            firewall_calls.create(self._talk.project, name, allow=allow, allow_out=allow_out, labels=labels)
        )

    def change(
        self,
        name: str,
        *,
        allow: Sequence[str] | None = None,
        allow_out: Sequence[str] | None = None,
        all_out: bool = False,
    ) -> Firewall:
        """Its rules of a direction become these, at once; ``None`` leaves them. With *all_out* everything may go out again. Flows that
        are forbidden then end.

        :raise Invalid: when nothing is to be changed, or a text is no rule. :raise NotFound: when there is no such firewall.
        """
        return self._talk.ask(
            firewall_calls.change(self._talk.project, name, allow=allow, allow_out=allow_out, all_out=all_out)
        )

    def attach(self, name: str, instance: str) -> Firewall:
        """Have it guard all ports of *instance*, at once. :raise NotFound: when one of the two is not there."""
        return self._talk.ask(firewall_calls.member(self._talk.project, name, "attach", instance))

    def detach(self, name: str, instance: str) -> Firewall:
        """Have it guard them no more. :raise NotFound: when it does not."""
        return self._talk.ask(firewall_calls.member(self._talk.project, name, "detach", instance))

    def default(self, name: str | None) -> None:
        """Have it guard every new NIC in the project that names no firewall; ``None``: no firewall does.

        :raise NotFound: when there is no such firewall.
        """
        self._talk.ask(firewall_calls.default(self._talk.project, name))

    def remove(self, name: str) -> None:
        """:raise Conflict: while it guards instances, another's rules name it, or it is the project's default."""
        self._talk.ask(calls.remove(self._talk.project, "firewall", name))
