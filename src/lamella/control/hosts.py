"""The policy of a host: how far it is promised beyond what it has, what stays its own, whose pages are one, which are set apart."""

import msgspec

from lamella.control.events import record
from lamella.control.huge_pages import check_given_back, check_reservation
from lamella.control.merging import merge_labels, merge_patch
from lamella.model.errors import Invalid, NotFound
from lamella.model.host import Host, HostSpec
from lamella.model.instance import Instance
from lamella.model.quantity import format_cpu, format_size
from lamella.model.requests import Principal, ResourcePatch
from lamella.model.validation import invalid
from lamella.store.store import Audit, Store, Transaction


class Hosts:
    """Intent for hosts, the administrator's. A host itself says where it is reached, and nothing of this."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def patch(
        self, who: Principal, project: str, name: str, body: ResourcePatch, *, expected: int | None
    ) -> Host:
        """Labels and policy; the host's agent is told of it at once.

        :raise NotFound: when there is no such host. :raise Invalid: when the policy does not fit the host.
        :raise Conflict: when instances hold more huge pages than would be set apart.
        """

        def write(tx: Transaction) -> Host:
            host = find_host(tx, project, name)
            if isinstance(body.labels, dict):
                merge_labels(host.labels, body.labels)
            if isinstance(body.spec, dict):
                try:
                    wanted = msgspec.convert(merge_patch(msgspec.to_builtins(host.spec), body.spec), HostSpec)
                except msgspec.ValidationError as error:
                    raise invalid(str(error), "the change", "spec") from None
                _check(tx, host, wanted)
                if wanted != host.spec:
                    host.spec = wanted
                    record(tx, host, "host.changed", f"{who.name} changed the policy of host {host.name}")
            tx.audit(Audit(principal=who.name, verb="patch", subject=f"host/{project}/{host.name}"))
            return tx.update(host, expected=expected)

        return await self._store.write(write)


def find_host(tx: Transaction, project: str, name: str) -> Host:
    """:raise NotFound: when there is none."""
    found = tx.get("host", project, name) or tx.by_id(name)
    if found is None or found.kind != "host" or found.project != project:
        raise NotFound(f"no host is called {name!r}", hint="lamella host ls shows what there is")
    return found


def _check(tx: Transaction, host: Host, wanted: HostSpec) -> None:
    if wanted.address != host.spec.address:
        raise Invalid(
            "where a host is reached it says itself", hint="lamellad --address at the host", field="spec.address"
        )
    if host.status.cpu and wanted.reserve.cpu > host.status.cpu:
        raise Invalid(
            f"host {host.name} has {format_cpu(host.status.cpu)} cores and cannot keep "
            f"{format_cpu(wanted.reserve.cpu)} for itself",
            hint="reserve less",
            field="spec.reserve.cpu",
        )
    if host.status.memory and wanted.reserve.memory > host.status.memory:
        raise Invalid(
            f"host {host.name} has {format_size(host.status.memory)} of memory and cannot keep "
            f"{format_size(wanted.reserve.memory)} for itself",
            hint="reserve less",
            field="spec.reserve.memory",
        )
    if wanted.huge_pages != host.spec.huge_pages:
        instances: list[Instance] = tx.list("instance")
        here = [instance for instance in instances if instance.status.host == host.id]
        if wanted.huge_pages is None:
            check_given_back(host, here)
        else:
            wanted.huge_pages = check_reservation(host, wanted, here)
