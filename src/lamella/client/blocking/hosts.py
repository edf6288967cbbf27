"""Hosts of the layer: what each has, how far it is promised, and what its instances share."""

import builtins
from collections.abc import Mapping

from lamella.client import calls, host_calls
from lamella.client.blocking.talk import Talk
from lamella.model.host import Host


class Hosts:
    """``layer.hosts``. ``spec`` is the policy, ``status`` what the host told."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk

    def list(self, *, labels: Mapping[str, str] | None = None) -> builtins.list[Host]:
        found, _ = self._talk.find("host", labels)
        return found

    def get(self, name: str) -> Host:
        """:raise NotFound: when there is no such host."""
        return self._talk.ask(calls.get(self._talk.project, "host", name))

    def set(
        self,
        name: str,
        *,
        overcommit_cpu: float | None = None,
        overcommit_memory: float | None = None,
        reserve_cpu: float | None = None,
        reserve_memory: str | int | None = None,
        ksm: str | None = None,
        copies: str | None = None,
        huge_pages: Mapping[str, int] | None = None,
    ) -> Host:
        """Change the policy of a host; ``None`` leaves a part. Cores, ``1GiB`` or bytes; *ksm* is ``off``, ``same-project``, ``all`` or
        ``unset``, *copies* the first three of them; *huge_pages* counts by size (``{"2MiB": 512}``), and ``{}`` gives them back.

        :raise Invalid: when nothing is to be changed, or it does not fit the host. :raise NotFound: when there is no such host.
        :raise Conflict: when instances hold more huge pages than would be left.
        """
        return self._talk.ask(
            host_calls.change(
                self._talk.project,
                name,
                overcommit_cpu=overcommit_cpu,
                overcommit_memory=overcommit_memory,
                reserve_cpu=reserve_cpu,
                reserve_memory=reserve_memory,
                ksm=ksm,
                copies=copies,
                huge_pages=huge_pages,
            )
        )
