"""Templates: making them, and making them anew; the rest is what every kind has."""

from urllib.parse import quote

from lamella.api import answer
from lamella.api.call import Call
from lamella.api.queries import WriteQuery
from lamella.api.route import AnyRoute, Success, change
from lamella.model.template import Template
from lamella.model.template_bodies import TemplateCreate

MANY = "/v1/projects/{project:str}/templates"


async def create(call: Call[WriteQuery]) -> answer.Answer:
    body = await call.body(TemplateCreate)
    made = await call.layer.templates.create(
        call.who, call.project, body, wait=call.query.wait, idempotency_key=call.idempotency_key
    )
    return answer.resource(made, status=201, headers={"location": f"{call.path}/{quote(made.name)}"})


async def rebuild(call: Call[WriteQuery]) -> answer.Answer:
    return answer.resource(await call.layer.templates.rebuild(call.who, call.project, call.name, wait=call.query.wait))


ROUTES: list[AnyRoute] = [
    change(
        "template",
        MANY,
        "createTemplate",
        "Make a template: a machine that is booted, warmed up and frozen once, and of which instances begin as copies",
        create,
        query=WriteQuery,
        body=TemplateCreate,
        headers=("Idempotency-Key",),
        answers=Success(status=201, type=Template, etag=True),
    ),
    change(
        "template",
        MANY + "/{name:str}/rebuild",
        "rebuildTemplate",
        "Make a template anew; what could be copied before can be until then",
        rebuild,
        query=WriteQuery,
        answers=Success(type=Template, etag=True),
    ),
]
