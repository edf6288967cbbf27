"""Firewalls: making them, and which instances they guard; the rest is what every kind has."""

from urllib.parse import quote

from lamella.api import answer
from lamella.api.call import Call, NoQuery
from lamella.api.route import AnyRoute, Success, change
from lamella.model.firewall import Firewall
from lamella.model.network_bodies import FirewallCreate, FirewallDefault, FirewallMember
from lamella.model.operation import Project

MANY = "/v1/projects/{project:str}/firewalls"


async def create(call: Call[NoQuery]) -> answer.Answer:
    made = await call.layer.firewalls.create(call.who, call.project, await call.body(FirewallCreate))
    return answer.resource(made, status=201, headers={"location": f"{call.path}/{quote(made.name)}"})


async def attach(call: Call[NoQuery]) -> answer.Answer:
    body = await call.body(FirewallMember)
    return answer.resource(await call.layer.firewalls.attach(call.who, call.project, call.name, body))


async def detach(call: Call[NoQuery]) -> answer.Answer:
    body = await call.body(FirewallMember)
    return answer.resource(await call.layer.firewalls.detach(call.who, call.project, call.name, body))


async def default(call: Call[NoQuery]) -> answer.Answer:
    return answer.resource(
        await call.layer.firewalls.make_default(call.who, call.project, await call.body(FirewallDefault))
    )


ROUTES: list[AnyRoute] = [
    change(
        "firewall",
        "/v1/projects/{project:str}/default-firewall",
        "defaultFirewall",
        "Choose the firewall of every new NIC in the project that names none",
        default,
        body=FirewallDefault,
        answers=Success(type=Project, etag=True),
    ),
    change(
        "firewall",
        MANY,
        "createFirewall",
        "Make a firewall: what may come in to its members, and what may go out of them",
        create,
        body=FirewallCreate,
        answers=Success(status=201, type=Firewall, etag=True),
    ),
    *(
        change(
            "firewall",
            f"{MANY}/{{name:str}}/{verb}",
            f"{verb}Firewall",
            summary,
            handler,
            body=FirewallMember,
            answers=Success(type=Firewall, etag=True),
        )
        for verb, summary, handler in (
            ("attach", "Have it guard an instance's ports, at once", attach),
            ("detach", "Have it guard them no more", detach),
        )
    ),
]
