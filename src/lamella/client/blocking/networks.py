"""Networks of a project, and the places that instances have on them."""

import builtins
from collections.abc import Mapping

from lamella.client import calls, network_calls
from lamella.client.blocking.talk import Talk
from lamella.model.network import Network, Port


class Networks:
    """``layer.networks``."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk

    def list(self, *, labels: Mapping[str, str] | None = None) -> builtins.list[Network]:
        found, _ = self._talk.find("network", labels)
        return found

    def get(self, name: str) -> Network:
        """:raise NotFound: when there is no such network."""
        return self._talk.ask(calls.get(self._talk.project, "network", name))

    def create(
        self,
        name: str,
        *,
        subnet: str = "",
        subnet6: str = "",
        isolated: bool = False,
        mtu: int = 1500,
        external: bool = False,
        router: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> Network:
        """Make one on *subnet* (``10.10.0.0/24``), or on a free one, with packets of at most *mtu* bytes; with a *subnet6* (``fd10::/64``)
        it has IPv6 beside IPv4. Nothing goes out of an *isolated* one. Behind the router called *router* it may overlap networks that are
        not. An *external* one is for floating addresses, on a *subnet* that comes to the hosts from outside.

        :raise Conflict: when the name is taken, or *subnet* overlaps another network's. :raise Invalid: when there can be no such network.
        :raise NotFound: when there is no such router.
        """
        return self._talk.ask(
            network_calls.create(
                self._talk.project,
                name,
                subnet=subnet,
                subnet6=subnet6,
                isolated=isolated,
                mtu=mtu,
                external=external,
                router=router,
                labels=labels,
            )
        )

    def remove(self, name: str) -> None:
        """:raise Conflict: while instances are on it."""
        self._talk.ask(calls.remove(self._talk.project, "network", name))

    def ports(self, name: str) -> builtins.list[Port]:
        """The places on it that instances of this project have."""
        network = self.get(name)
        found, _ = self._talk.find("port")
        return [port for port in found if port.spec.network == network.id]
