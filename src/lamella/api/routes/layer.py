"""What belongs to the whole layer: which one it is, how it is, and what it could give back."""

from typing import Any

from lamella.api import answer
from lamella.api.access import Action
from lamella.api.call import Call
from lamella.api.route import METRICS, AnyRoute, Route, Success
from lamella.model.contract import Comparison, WhyNot
from lamella.model.errors import NotFound
from lamella.model.instance import Isolation
from lamella.model.requests import About, Diagnosis, Freed


async def about(call: Call[Any]) -> answer.Answer:
    return answer.json(await call.layer.about(call.who))


async def doctor(call: Call[Any]) -> answer.Answer:
    return answer.json(await call.layer.doctor(call.who))


async def collect(call: Call[Any]) -> answer.Answer:
    return answer.json(await call.layer.collect_images(call.who))


async def compare(call: Call[Any]) -> answer.Answer:
    return answer.json(await call.layer.compare(call.who))


async def why_not(call: Call[Any]) -> answer.Answer:
    if call.name not in list(Isolation):
        raise NotFound(
            f"there is no isolation level {call.name!r}", hint=f"one of: {', '.join(Isolation)}", field="name"
        )
    return answer.json(await call.layer.why_not(call.who, Isolation(call.name)))


async def metrics(call: Call[Any]) -> answer.Answer:
    return answer.text(await call.layer.metrics(call.who), METRICS)


ROUTES: list[AnyRoute] = [
    Route(
        method="GET",
        path="/v1",
        name="about",
        summary="Which layer answers, and who you are to it",
        action=Action.ABOUT,
        handler=about,
        answers=Success(type=About),
    ),
    Route(
        method="GET",
        path="/v1/doctor",
        name="doctor",
        summary="What was looked at on the host, and what to do about what is wrong",
        action=Action.ADMINISTER,
        handler=doctor,
        answers=Success(type=Diagnosis),
    ),
    Route(
        method="POST",
        path="/v1/images/collect",
        name="collectImages",
        summary="Remove what no image and no instance needs",
        action=Action.ADMINISTER,
        handler=collect,
        kind="image",
        answers=Success(type=Freed),
        refuses=(409,),
    ),
    Route(
        method="GET",
        path="/v1/metrics",
        name="getMetrics",
        summary="What all instances use, and whether their contracts are kept, as Prometheus reads it",
        action=Action.ADMINISTER,
        handler=metrics,
        answers=Success(streams=(METRICS,)),
    ),
    Route(
        method="GET",
        path="/v1/levels",
        name="compareLevels",
        summary="The contracts of all isolation levels side by side",
        action=Action.READ,
        handler=compare,
        answers=Success(type=Comparison),
    ),
    Route(
        method="GET",
        path="/v1/levels/{name:str}/why-not",
        name="whyNot",
        summary="What an isolation level needs on every host, and which of it is missing",
        action=Action.READ,
        handler=why_not,
        answers=Success(type=WhyNot),
        refuses=(404,),
    ),
]
