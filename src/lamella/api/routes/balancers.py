"""Balancers: making them; the rest is what every kind has."""

from urllib.parse import quote

from lamella.api import answer
from lamella.api.call import Call, NoQuery
from lamella.api.route import AnyRoute, Success, change
from lamella.model.balancer import Balancer
from lamella.model.network_bodies import BalancerCreate


async def create(call: Call[NoQuery]) -> answer.Answer:
    made = await call.layer.balancers.create(call.who, call.project, await call.body(BalancerCreate))
    return answer.resource(made, status=201, headers={"location": f"{call.path}/{quote(made.name)}"})


ROUTES: list[AnyRoute] = [
    change(
        "balancer",
        "/v1/projects/{project:str}/balancers",
        "createBalancer",
        "Make a balancer: one address before many instances",
        create,
        body=BalancerCreate,
        answers=Success(status=201, type=Balancer, etag=True),
    ),
]
