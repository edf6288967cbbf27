"""Routers and floating addresses of the layer in memory."""

from typing import Any

from fake_part import Part
from msgspec.structs import replace

from lamella.model.ids import check_name
from lamella.model.router import AddressSpec, AddressStatus, RouterSpec, RouterStatus


class FakeRouters(Part):
    async def create(self, who: Any, project: str, body: Any) -> Any:
        check_name(body.name)
        networks = [self.layer._find(project, "network", name).id for name in body.networks]
        spec = RouterSpec(networks=networks, uplink=body.uplink, routes=body.routes)
        return self.new("router", body.name, spec, RouterStatus(), project, body.labels)


class FakeAddresses(Part):
    async def create(self, who: Any, project: str, body: Any) -> Any:
        if body.name:
            check_name(body.name)
        address = f"203.0.113.{len(self.layer.rows) % 200 + 2}"
        made = self.new(
            "address",
            body.name or address,
            AddressSpec(address=address, network=""),
            AddressStatus(),
            project,
            body.labels,
        )
        return await self.attach(who, project, made.name, body) if body.instance else made

    async def attach(self, who: Any, project: str, name: str, body: Any) -> Any:
        row = self.layer._find(project, "address", name)
        instance = self.layer._find(project, "instance", body.instance)
        return self.changed(row, status=replace(row.status, instance=instance.id))

    async def detach(self, who: Any, project: str, name: str) -> Any:
        row = self.layer._find(project, "address", name)
        return self.changed(row, status=replace(row.status, instance=""))
