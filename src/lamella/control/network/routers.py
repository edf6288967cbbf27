"""Routers as rows: which networks they join, where they lead, and what would be ambiguous."""

import msgspec

from lamella.control.events import record
from lamella.control.lookup import need_project
from lamella.control.merging import merge_labels, merge_patch
from lamella.control.network import joining
from lamella.model.errors import NotFound
from lamella.model.ids import check_name
from lamella.model.requests import Principal, ResourcePatch
from lamella.model.resource import new_resource
from lamella.model.router import Router, RouterSpec, RouterStatus
from lamella.model.router_bodies import RouterCreate
from lamella.model.validation import invalid
from lamella.store.store import Audit, Store, Transaction


class Routers:
    """Intent for routers. Whoever may write in a project may make them there."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def create(self, who: Principal, project: str, body: RouterCreate) -> Router:
        """:raise Conflict: when networks of its overlap, or one has a router already. :raise Invalid: for a route that leads nowhere."""
        check_name(body.name)

        def write(tx: Transaction) -> Router:
            need_project(tx, project)
            router: Router = new_resource(
                "router", body.name, RouterSpec(), RouterStatus(), project=project, labels=body.labels
            )
            tx.insert(router)
            wanted = RouterSpec(networks=list(body.networks), uplink=body.uplink, routes=list(body.routes))
            router.spec = joining.join(tx, router, wanted)
            tx.audit(Audit(principal=who.name, verb="create", subject=f"router/{project}/{body.name}"))
            record(tx, router, "router.created", f"{who.name} created router {body.name}")
            return tx.update(router)

        return await self._store.write(write)

    async def patch(
        self, who: Principal, project: str, name: str, body: ResourcePatch, *, expected: int | None
    ) -> Router:
        """Labels, networks, uplink and routes; what is said of one of these replaces it whole.

        :raise Conflict: as :meth:`create`; when a network that would leave overlaps others; when floating addresses would lead nowhere.
        """

        def write(tx: Transaction) -> Router:
            router = find_router(tx, project, name)
            if isinstance(body.labels, dict):
                merge_labels(router.labels, body.labels)
            if isinstance(body.spec, dict):
                try:
                    merged = merge_patch(msgspec.to_builtins(router.spec), body.spec)
                    wanted = msgspec.convert(merged, RouterSpec)
                except msgspec.ValidationError as error:
                    raise invalid(str(error), "the change", "spec") from None
                router.spec = joining.join(tx, router, wanted)
                record(tx, router, "router.changed", f"{who.name} changed router {router.name}")
            tx.audit(Audit(principal=who.name, verb="patch", subject=f"router/{project}/{router.name}"))
            return tx.update(router, expected=expected)

        return await self._store.write(write)

    async def delete(self, who: Principal, project: str, name: str, *, expected: int | None) -> None:
        """Its networks go on without it.

        :raise Conflict: when they would overlap then; when floating addresses lead by it.
        """

        def write(tx: Transaction) -> None:
            router = find_router(tx, project, name)
            if expected is not None:
                tx.update(router, expected=expected)
            joining.join(tx, router, RouterSpec())
            tx.audit(Audit(principal=who.name, verb="delete", subject=f"router/{project}/{router.name}"))
            record(tx, router, "router.removed", f"{who.name} removed router {router.name}")
            tx.delete(router.id)

        await self._store.write(write)


def find_router(tx: Transaction, project: str, name: str, *, field: str = "") -> Router:
    """By name in *project*, or by id. :raise NotFound: when there is none."""
    found = tx.get("router", project, name) or tx.by_id(name)
    if found is None or found.kind != "router" or found.project != project:
        raise NotFound(
            f"no router is called {name!r} in project {project}", hint="lamella router ls lists them", field=field
        )
    return found
