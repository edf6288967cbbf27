"""What a balancer may be, and whom it leads to. Pure, but for what is read of the store."""

from collections import Counter
from collections.abc import Iterable

from lamella.model.balancer import Balancer, BalancerSpec, BalancerTask, Member, Target
from lamella.model.errors import Conflict, Invalid
from lamella.model.instance import Instance, Phase
from lamella.store.store import Transaction


def check_spec(spec: BalancerSpec) -> None:
    """:raise Invalid: when it contradicts itself. :raise Conflict: when two listeners, or two published ports, are the same."""
    listeners = Counter((listener.transport, listener.port) for listener in spec.listeners)
    for (protocol, port), count in listeners.items():
        if count > 1:
            raise Conflict(f"{protocol}:{port} is listened to twice", hint="once is enough", field="listeners")
    if any(listener.reads and listener.port == 53 for listener in spec.listeners):
        raise Invalid(
            "HTTP cannot be read on port 53, where the network's own DNS listens",
            hint="name another port: --listen http:80",
            field="listeners",
        )
    for target in spec.targets:
        if bool(target.labels) == bool(target.instance):
            raise Invalid(
                "a target is an instance, or all that bear some labels", hint="say one of them", field="targets"
            )
        if (target.host or target.path) and not any(listener.reads for listener in spec.listeners):
            raise Invalid("hosts and paths are told apart in HTTP alone", hint="--listen http:80", field="targets")
    if any(listener.protocol == "https" for listener in spec.listeners) and not spec.certificate:
        raise Invalid(
            "https needs a certificate",
            hint="--certificate FILE: certificate and private key, in PEM, where the host can read it",
            field="certificate",
        )
    if spec.check.kind != "none" and not spec.check.port and any(one.protocol == "udp" for one in spec.listeners):
        raise Invalid(
            "nobody can tell whether a UDP port is served",
            hint="--check none, or name a TCP port that says so: --check-port 8080",
            field="check",
        )
    published = Counter((item.host_address, item.host_port, item.protocol) for item in spec.publish)
    for item in spec.publish:
        if not item.host_port:
            raise Invalid(
                "a balancer is on every host, under the same port",
                hint=f"name it: --publish 8080:{item.port}",
                field="publish",
            )
        if (item.protocol, item.port) not in listeners:
            raise Invalid(
                f"{item.protocol}:{item.port} is published, and not listened to",
                hint=f"--listen {item.protocol}:{item.port}",
                field="publish",
            )
        if published[item.host_address, item.host_port, item.protocol] > 1:
            raise Conflict(f"host port {item.host_port}/{item.protocol} is published twice", field="publish")


def tasks(tx: Transaction, host: str) -> list[BalancerTask]:
    """Every balancer, with those of the *host*'s instances that it leads to: who runs, and is not being removed."""
    balancers: list[Balancer] = tx.list("balancer")
    if not balancers:
        return []
    instances: list[Instance] = [one for one in tx.list("instance") if one.status.host == host and _serves(one)]
    places = {one.id: _places(tx, one) for one in instances}
    return [
        BalancerTask(
            balancer=balancer,
            members=[list(_members(balancer, target, instances, places)) for target in balancer.spec.targets],
        )
        for balancer in balancers
    ]


def _serves(instance: Instance) -> bool:
    return instance.status.phase is Phase.RUNNING and instance.deleted_at is None


def _places(tx: Transaction, instance: Instance) -> dict[str, str]:
    """Its first address on each network, by the network's id."""
    found: dict[str, str] = {}
    for id in (instance.status.port, *instance.status.ports.values()):
        port = tx.by_id(id) if id else None
        if port is not None:
            found.setdefault(port.spec.network, port.spec.address.partition("/")[0])
    return found


def _members(
    balancer: Balancer, target: Target, instances: Iterable[Instance], places: dict[str, dict[str, str]]
) -> Iterable[Member]:
    for one in instances:
        address = places[one.id].get(balancer.spec.network)
        if address is None or one.project != balancer.project:
            continue
        if (target.instance and target.instance == one.name) or (
            target.labels and target.labels.items() <= one.labels.items()
        ):
            yield Member(instance=one.id, name=one.name, address=address, draining=one.name in balancer.spec.draining)


def holder_name(tx: Transaction, id: str) -> str:
    """Of whoever publishes a port: an instance by its port, or a balancer."""
    found = tx.by_id(id)
    owner = tx.by_id(found.spec.owner) if found is not None and found.kind == "port" else found
    return id if owner is None else owner.name
