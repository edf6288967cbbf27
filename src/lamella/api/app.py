"""The application: every route behind one door, where identity and permission are decided."""

from typing import Any, cast

from litestar import Litestar, Request, WebSocket
from litestar.enums import ScopeType
from litestar.handlers import HTTPRouteHandler, WebsocketRouteHandler
from litestar.types import ASGIApp, Receive, Scope, Send

from lamella.api import answer, problems
from lamella.api.access import Action, decide
from lamella.api.call import LARGEST_BODY, Call, canonical
from lamella.api.face import LayerFace
from lamella.api.identity import Identity
from lamella.api.openapi import document
from lamella.api.route import AnyRoute, Route, Success
from lamella.api.routes import (
    backups,
    balancers,
    files,
    firewalls,
    images,
    instances,
    machines,
    networks,
    pools,
    processes,
    replications,
    resources,
    routers,
    snapshots,
    templates,
    transfers,
    volumes,
)
from lamella.api.routes import layer as layer_routes
from lamella.model.errors import LamellaError
from lamella.model.requests import Principal
from lamella.wire.pump import guarded

AnyRequest = Request[Any, Any, Any]
AnyWebSocket = WebSocket[Any, Any, Any]


def create_app(layer: LayerFace, *, identity: Identity | None = None) -> Litestar:
    """The HTTP API over *layer*, an ASGI application.

    The server must put a ``peer`` into every scope's ``state``: ``lamella.wire.listener`` does.
    """
    routes = all_routes()
    return Door(identity or Identity(), routes, layer)


def all_routes() -> list[AnyRoute]:
    """Every HTTP route, the document's own included."""
    routes = [
        *layer_routes.ROUTES,
        *resources.ROUTES,
        *instances.ROUTES,
        *machines.ROUTES,
        *images.ROUTES,
        *networks.ROUTES,
        *firewalls.ROUTES,
        *routers.ROUTES,
        *balancers.ROUTES,
        *templates.ROUTES,
        *pools.ROUTES,
        *volumes.ROUTES,
        *transfers.ROUTES,
        *replications.ROUTES,
        *snapshots.ROUTES,
        *backups.ROUTES,
        *files.ROUTES,
        *processes.ROUTES,
    ]
    described: list[bytes] = []

    async def openapi(call: Call[Any]) -> answer.Answer:
        return answer.Answer(200, described[0])

    routes.append(
        Route(
            method="GET",
            path="/v1/openapi.json",
            name="openapi",
            summary="This document",
            action=Action.ABOUT,
            handler=openapi,
            answers=Success(type=dict[str, Any]),
        )
    )
    described.append(document(routes))
    return routes


class Door(Litestar):
    """Litestar, entered through identity: who proved nothing is refused before the router has looked at the path."""

    def __init__(self, identity: Identity, routes: list[AnyRoute], layer: LayerFace) -> None:
        self._identity = identity
        super().__init__(  # pyright: ignore[reportUnknownMemberType]
            route_handlers=[
                *(_http(layer, route) for route in routes),
                *(_socket(layer, route) for route in processes.SOCKETS),
            ],
            exception_handlers={Exception: problems.handle},
            openapi_config=None,
            logging_config=None,
            request_max_body_size=LARGEST_BODY,
            debug=False,
            pdb_on_exception=False,
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            raw_path = cast("bytes", scope["raw_path"])
            try:
                state = scope.setdefault("state", {})
                state["who"] = self._identity.of(state.get("peer"))
                scope["path"] = canonical(raw_path)
            except LamellaError as error:
                await _refuse(problems.answer_of(error, raw_path.decode("latin-1")), scope, receive, send)
                return
        await super().__call__(scope, receive, send)


def _http(layer: LayerFace, route: AnyRoute) -> HTTPRouteHandler:
    async def handle(request: AnyRequest) -> ASGIApp:
        who = _allowed(request.scope, route.action, route.kind)
        return await route.handler(Call(layer, request, who, route.kind, route.query))

    handler = HTTPRouteHandler(
        route.path,
        http_method=cast("Any", route.method),
        name=route.name,
        status_code=200,
        request_max_body_size=None if route.body is bytes else LARGEST_BODY,
    )
    return handler(handle)


def _socket(layer: LayerFace, route: processes.SocketRoute) -> WebsocketRouteHandler:
    async def handle(socket: AnyWebSocket) -> None:
        receive, send = cast("Any", socket.receive), cast("Any", socket.send)

        async def work() -> None:
            who = _allowed(socket.scope, route.action, route.kind)
            await route.handler(Call(layer, socket, who, route.kind, route.query), receive, send)

        await socket.accept()
        await guarded(send, work())

    return WebsocketRouteHandler(route.path)(handle)


def _allowed(scope: Any, action: Action, kind: str | None) -> Principal:
    """The one place where permission is asked for."""
    who = cast("Principal", scope["state"]["who"])
    decide(who, action, scope["path_params"].get("project"), kind)
    return who


async def _refuse(refusal: answer.Answer, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != ScopeType.WEBSOCKET:
        await refusal(scope, receive, send)
        return
    # ASGI's extension "websocket.http.response": the handshake is answered with a status and a body.
    await receive()
    await send(
        cast("Any", {"type": "websocket.http.response.start", "status": refusal.status, "headers": refusal.headers})
    )
    await send(cast("Any", {"type": "websocket.http.response.body", "body": refusal.body, "more_body": False}))
