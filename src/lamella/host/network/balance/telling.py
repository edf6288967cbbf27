"""What is told of balancers: who is up, what stands in the way, and what has changed since."""

from collections.abc import Callable, Iterable, Mapping

from lamella.host.network.balance.desired import Backend, DesiredBalancer
from lamella.host.network.balance.health import Seen
from lamella.model.balancer import BackendState, BalancerReport
from lamella.model.resource import Condition

AVAILABLE = "Available"


class Teller:
    """Tells *heard* of a balancer when something of it is new."""

    def __init__(self) -> None:
        self.heard: Callable[[BalancerReport], None] = lambda _: None
        self._told: dict[str, BalancerReport] = {}

    def tell(
        self,
        balancers: Iterable[DesiredBalancer],
        seen: Mapping[tuple[str, Backend], Seen],
        failures: Mapping[str, str],
    ) -> None:
        """*failures* say by id why one is not in force."""
        balancers = list(balancers)
        for id in self._told.keys() - {balancer.id for balancer in balancers}:
            del self._told[id]
        for balancer in balancers:
            states = [state(backend, seen[balancer.id, backend]) for backend in balancer.backends]
            report = BalancerReport(
                id=balancer.id, backends=states, conditions=conditions(states, failures.get(balancer.id, ""))
            )
            before = self._told.get(balancer.id)
            if report != before:
                self._told[balancer.id] = report
                events = [] if before is None else list(changes(balancer.name, before.backends, states))
                self.heard(BalancerReport(id=report.id, backends=states, conditions=report.conditions, events=events))


def state(backend: Backend, seen: Seen) -> BackendState:
    word = "unknown" if seen.up is None else "down" if not seen.up else "draining" if backend.draining else "up"
    return BackendState(
        instance=backend.name, address=backend.address, port=backend.port, state=word, reason=seen.reason
    )


def conditions(states: Iterable[BackendState], failure: str) -> list[Condition]:
    if failure:
        return [Condition(type=AVAILABLE, status=False, reason="failed", message=failure)]
    if not any(each.state == "up" for each in states):
        return [Condition(type=AVAILABLE, status=False, reason="no-backend", message="no backend is up")]
    return [Condition(type=AVAILABLE, status=True, reason="up")]


def changes(name: str, before: Iterable[BackendState], after: Iterable[BackendState]) -> Iterable[tuple[str, str]]:
    """Events of backends that went up or down."""
    old = {(each.instance, each.address, each.port): each.state for each in before}
    for each in after:
        was = old.get((each.instance, each.address, each.port))
        who = f"backend {each.instance} ({each.address}:{each.port}) of balancer {name}"
        if each.state == "down" and was in ("up", "draining"):
            yield "balancer.backend.down", f"{who} is down: {each.reason}"
        elif each.state == "up" and was == "down":
            yield "balancer.backend.up", f"{who} is up again"
