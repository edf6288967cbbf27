"""Control's desk over the wire: served by control, called by hosts. A host is answered for itself alone."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

from lamella.model.assignment import Assignments, ControlDesk, InstanceReport
from lamella.model.balancer import BalancerReport
from lamella.model.errors import Conflict, Forbidden
from lamella.model.host import HostStatus
from lamella.model.storage import StorageEvent
from lamella.wire import listener
from lamella.wire.certificates import Bundle
from lamella.wire.connection import Party
from lamella.wire.http import CALL_SECONDS, Caller
from lamella.wire.service import Service, call
from lamella.wire.verbs import AskAssignments, Nothing, Register, Report, ReportBalancers, Tell

# From a host's name to its id; ``None`` when no such host has registered.
Resolve = Callable[[str], Awaitable[str | None]]


class RemoteDesk:
    """The desk as a host sees it: a ``ControlDesk``. Every method may raise Unavailable."""

    def __init__(self, address: str, bundle: Bundle) -> None:
        self._caller = Caller(Party(address, bundle.client_context(), role="control"))

    async def register(self, name: str, status: HostStatus, address: str) -> str:
        return await self._caller.call("register", Register(name=name, status=status, address=address), str)

    async def assignments(self, host: str, since: int, wait: float) -> Assignments:
        arguments = AskAssignments(host=host, since=since, wait=wait)
        return await self._caller.call("assignments", arguments, Assignments, seconds=wait + CALL_SECONDS)

    async def report(self, host: str, reports: list[InstanceReport]) -> None:
        await self._caller.call("report", Report(host=host, reports=reports), Nothing)

    async def report_balancers(self, host: str, reports: list[BalancerReport]) -> None:
        await self._caller.call("report_balancers", ReportBalancers(host=host, reports=reports), Nothing)

    async def tell(self, host: str, events: list[StorageEvent]) -> None:
        await self._caller.call("tell", Tell(host=host, events=events), Nothing)

    async def close(self) -> None:
        await self._caller.close()


class _Counter:
    """Looks who asks before the desk is asked."""

    def __init__(self, desk: ControlDesk, resolve: Resolve | None) -> None:
        self._desk = desk
        self._resolve = resolve
        self._ids: dict[str, str] = {}

    async def register(self, caller: str, asked: Register) -> str:
        if asked.name != caller:
            raise Forbidden(f"host {caller} cannot register as {asked.name}", hint="use that host's own certificate")
        self._ids[caller] = await self._desk.register(asked.name, asked.status, asked.address)
        return self._ids[caller]

    async def assignments(self, caller: str, asked: AskAssignments) -> Assignments:
        await self._own(caller, asked.host)
        return await self._desk.assignments(asked.host, asked.since, asked.wait)

    async def report(self, caller: str, asked: Report) -> Nothing:
        await self._own(caller, asked.host)
        await self._desk.report(asked.host, asked.reports)
        return Nothing()

    async def report_balancers(self, caller: str, asked: ReportBalancers) -> Nothing:
        await self._own(caller, asked.host)
        await self._desk.report_balancers(asked.host, asked.reports)
        return Nothing()

    async def tell(self, caller: str, asked: Tell) -> Nothing:
        await self._own(caller, asked.host)
        await self._desk.tell(asked.host, asked.events)
        return Nothing()

    async def _own(self, caller: str, host: str) -> None:
        known = self._ids.get(caller)
        if known is None and self._resolve is not None:
            known = await self._resolve(caller)
        if known is None:
            raise Conflict(f"host {caller} has not registered since this desk opened", hint="register first")
        self._ids[caller] = known
        if known != host:
            raise Forbidden(
                f"host {caller} asked for what belongs to {host}", hint="a host is answered for itself alone"
            )


async def serve_desk(
    desk: ControlDesk,
    sock: socket.socket,
    bundle: Bundle,
    *,
    resolve: Resolve | None = None,
    ready: asyncio.Event | None = None,
) -> None:
    """Serve *desk* on the bound *sock* (``listener.bind_tcp``) until cancelled, to holders of a host's certificate.

    Without *resolve*, a host must register again after this desk was opened anew: it is told so by a Conflict.
    """
    counter = _Counter(desk, resolve)
    service = Service(
        "host",
        calls={
            "register": call(Register, counter.register),
            "assignments": call(AskAssignments, counter.assignments),
            "report": call(Report, counter.report),
            "report_balancers": call(ReportBalancers, counter.report_balancers),
            "tell": call(Tell, counter.tell),
        },
        streams={},
    )
    await listener.serve(service, sock, tls=bundle.server_context(), ready=ready)
