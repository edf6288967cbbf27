"""Networks: making them; the rest is what every kind has."""

from urllib.parse import quote

from lamella.api import answer
from lamella.api.call import Call, NoQuery
from lamella.api.route import AnyRoute, Success, change
from lamella.model.network import Network
from lamella.model.network_bodies import NetworkCreate


async def create(call: Call[NoQuery]) -> answer.Answer:
    made = await call.layer.networks.create(call.who, call.project, await call.body(NetworkCreate))
    return answer.resource(made, status=201, headers={"location": f"{call.path}/{quote(made.name)}"})


ROUTES: list[AnyRoute] = [
    change(
        "network",
        "/v1/projects/{project:str}/networks",
        "createNetwork",
        "Make a network, on the subnet that is asked for or on a free one",
        create,
        body=NetworkCreate,
        answers=Success(status=201, type=Network, etag=True),
    )
]
