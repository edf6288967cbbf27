"""Networks: making them, and following a packet through them; the rest is what every kind has."""

from urllib.parse import quote

from lamella.api import answer
from lamella.api.access import Action
from lamella.api.call import Call, NoQuery
from lamella.api.queries import CaptureQuery, TraceQuery
from lamella.api.route import PCAP, AnyRoute, Route, Success, change
from lamella.model.network import Network, Port
from lamella.model.network_bodies import NetworkCreate, PortMirror
from lamella.model.trace import Trace


async def create(call: Call[NoQuery]) -> answer.Answer:
    made = await call.layer.networks.create(call.who, call.project, await call.body(NetworkCreate))
    return answer.resource(made, status=201, headers={"location": f"{call.path}/{quote(made.name)}"})


async def trace(call: Call[TraceQuery]) -> answer.Answer:
    query = call.query
    return answer.json(
        await call.layer.trace(
            call.who, call.project, call.name, to=query.to, protocol=query.protocol, port=query.port, type=query.type
        )
    )


async def mirror(call: Call[NoQuery]) -> answer.Answer:
    body = await call.body(PortMirror)
    return answer.resource(await call.layer.networks.mirror(call.who, call.project, call.name, body))


async def capture(call: Call[CaptureQuery]) -> answer.Stream:
    chunks = call.layer.capture(call.who, call.project, call.name, call.query)
    return await answer.Stream(chunks, PCAP).begin(grace=None)


ROUTES: list[AnyRoute] = [
    Route(
        method="GET",
        path="/v1/projects/{project:str}/instances/{name:str}/capture",
        name="capturePackets",
        summary="What passes a NIC of an instance, as a capture file (pcap), for as long as one reads",
        # Whoever reads what an instance says is inside.
        action=Action.ENTER,
        handler=capture,
        kind="instance",
        query=CaptureQuery,
        answers=Success(streams=(PCAP,)),
        refuses=(404, 409, 422),
    ),
    Route(
        method="GET",
        path="/v1/projects/{project:str}/instances/{name:str}/trace",
        name="tracePacket",
        summary="What becomes of the first packet that an instance sends somewhere, and which rule says so",
        action=Action.READ,
        handler=trace,
        kind="instance",
        query=TraceQuery,
        answers=Success(type=Trace),
        refuses=(404, 409, 422),
    ),
    change(
        "instance",
        "/v1/projects/{project:str}/instances/{name:str}/mirror",
        "mirrorPort",
        "Send a copy of all that passes a NIC of an instance to another instance, or end that",
        mirror,
        body=PortMirror,
        answers=Success(type=Port, etag=True),
        # Whoever reads what an instance says is inside.
        action=Action.ENTER,
    ),
    change(
        "network",
        "/v1/projects/{project:str}/networks",
        "createNetwork",
        "Make a network, on the subnet that is asked for or on a free one",
        create,
        body=NetworkCreate,
        answers=Success(status=201, type=Network, etag=True),
    ),
]
