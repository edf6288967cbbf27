"""Routers and floating addresses: making them, and whom an address leads to; the rest is what every kind has."""

from urllib.parse import quote

from lamella.api import answer
from lamella.api.call import Call, NoQuery
from lamella.api.route import AnyRoute, Success, change
from lamella.model.router import FloatingAddress, Router
from lamella.model.router_bodies import AddressAttach, AddressCreate, RouterCreate

ROUTERS = "/v1/projects/{project:str}/routers"
ADDRESSES = "/v1/projects/{project:str}/addresses"


async def create_router(call: Call[NoQuery]) -> answer.Answer:
    made = await call.layer.routers.create(call.who, call.project, await call.body(RouterCreate))
    return answer.resource(made, status=201, headers={"location": f"{call.path}/{quote(made.name)}"})


async def create_address(call: Call[NoQuery]) -> answer.Answer:
    made = await call.layer.addresses.create(call.who, call.project, await call.body(AddressCreate))
    return answer.resource(made, status=201, headers={"location": f"{call.path}/{quote(made.name)}"})


async def attach(call: Call[NoQuery]) -> answer.Answer:
    body = await call.body(AddressAttach)
    return answer.resource(await call.layer.addresses.attach(call.who, call.project, call.name, body))


async def detach(call: Call[NoQuery]) -> answer.Answer:
    return answer.resource(await call.layer.addresses.detach(call.who, call.project, call.name))


ROUTES: list[AnyRoute] = [
    change(
        "router",
        ROUTERS,
        "createRouter",
        "Make a router between networks, and out of them",
        create_router,
        body=RouterCreate,
        answers=Success(status=201, type=Router, etag=True),
    ),
    change(
        "address",
        ADDRESSES,
        "createAddress",
        "Take an address of an external network, and have it lead to an instance",
        create_address,
        body=AddressCreate,
        answers=Success(status=201, type=FloatingAddress, etag=True),
    ),
    change(
        "address",
        f"{ADDRESSES}/{{name:str}}/attach",
        "attachAddress",
        "Have it lead to an instance",
        attach,
        body=AddressAttach,
        answers=Success(type=FloatingAddress, etag=True),
    ),
    change(
        "address",
        f"{ADDRESSES}/{{name:str}}/detach",
        "detachAddress",
        "Have it lead to nobody",
        detach,
        answers=Success(type=FloatingAddress, etag=True),
    ),
]
