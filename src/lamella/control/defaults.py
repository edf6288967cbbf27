"""What every layer has from its first start: the project, the pool and the network called ``default``."""

from ipaddress import IPv4Network

from lamella.control.addressing import gateway_of
from lamella.model.network import NetworkSpec, NetworkStatus
from lamella.model.operation import ProjectSpec, ProjectStatus
from lamella.model.resource import new_resource
from lamella.model.storage import PoolSpec, PoolStatus
from lamella.store.store import Store, Transaction


async def ensure_defaults(store: Store) -> None:
    """Make what is missing; what is there is left as it is."""

    def write(tx: Transaction) -> None:
        if tx.get("project", "default", "default") is None:
            tx.insert(
                new_resource(
                    "project", "default", ProjectSpec(description="everything that names none"), ProjectStatus()
                )
            )
        if tx.get("pool", "default", "default") is None:
            tx.insert(new_resource("pool", "default", PoolSpec(), PoolStatus()))
        if tx.get("network", "default", "default") is None:
            spec = NetworkSpec()
            gateway = str(gateway_of(IPv4Network(spec.subnet)))
            tx.insert(new_resource("network", "default", spec, NetworkStatus(gateway=gateway)))

    await store.write(write)
