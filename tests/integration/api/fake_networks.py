"""Networks and firewalls of the layer in memory; what subnets may be is the real rule."""

from ipaddress import IPv4Network, IPv6Network
from typing import Any

from fake_part import Part
from msgspec.structs import replace

from lamella.control.network import subnets
from lamella.model.errors import NotFound
from lamella.model.firewall import FirewallSpec, FirewallStatus
from lamella.model.ids import check_name
from lamella.model.network import NetworkSpec, NetworkStatus, PortSpec, PortStatus
from lamella.model.resource import new_resource


class FakeNetworks(Part):
    async def create(self, who: Any, project: str, body: Any) -> Any:
        check_name(body.name)
        subnet = subnets.parse(body.subnet, IPv4Network) if body.subnet else subnets.choose([])
        subnet6 = str(subnets.parse(body.subnet6, IPv6Network)) if body.subnet6 else ""
        spec = NetworkSpec(subnet=str(subnet), subnet6=subnet6, mtu=body.mtu, isolated=body.isolated)
        return self.new("network", body.name, spec, NetworkStatus(), project, body.labels)

    async def mirror(self, who: Any, project: str, name: str, body: Any) -> Any:
        row = self.layer._find(project, "instance", name)
        target = "" if body.to is None else self.layer._find(project, "instance", body.to).id
        if body.nic is not None:
            raise NotFound(f"{name} has no NIC {body.nic!r}")
        spec = PortSpec(network="default", address="10.0.0.2/24", mac="02:00:00:00:00:01", owner=row.id, mirror=target)
        return new_resource("port", "port", spec, PortStatus(), project=project)


class FakeFirewalls(Part):
    async def create(self, who: Any, project: str, body: Any) -> Any:
        check_name(body.name)
        spec = FirewallSpec(inbound=body.inbound, outbound=body.outbound)
        return self.new("firewall", body.name, spec, FirewallStatus(), project, body.labels)

    async def make_default(self, who: Any, project: str, body: Any) -> Any:
        row = self.layer._find("default", "project", project)
        chosen = self.layer._find(project, "firewall", body.firewall).id if body.firewall else ""
        return self.changed(row, spec=replace(row.spec, firewall=chosen))

    async def attach(self, who: Any, project: str, name: str, body: Any) -> Any:
        row = self.layer._find(project, "firewall", name)
        self.layer._find(project, "instance", body.instance)
        return row

    detach = attach
