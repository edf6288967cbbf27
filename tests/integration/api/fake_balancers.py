"""Balancers of the layer in memory; what they may be is the real rule."""

from typing import Any

from fake_part import Part

from lamella.control.network.balancing import check_spec
from lamella.model.balancer import BalancerSpec, BalancerStatus
from lamella.model.ids import check_name


class FakeBalancers(Part):
    async def create(self, who: Any, project: str, body: Any) -> Any:
        check_name(body.name)
        spec = BalancerSpec(
            network=body.network,
            address=body.address,
            listeners=body.listeners,
            targets=body.targets,
            check=body.check,
            spread=body.spread,
            publish=body.publish,
            drain=body.drain,
            certificate=body.certificate,
        )
        check_spec(spec)
        return self.new("balancer", body.name, spec, BalancerStatus(), project, body.labels)
