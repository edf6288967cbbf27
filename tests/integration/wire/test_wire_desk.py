"""Control's desk in a process of its own, called by hosts over mutual TLS."""

import asyncio
import time

import pytest

from lamella.model.assignment import InstanceReport
from lamella.model.errors import Conflict, Forbidden, Unauthenticated
from lamella.model.host import HostStatus
from lamella.model.instance import InstanceStatus, Phase
from lamella.model.storage import StorageEvent
from lamella.wire.certificates import Authority
from lamella.wire.desk import RemoteDesk


async def test_a_host_registers_asks_and_reports(start, authority: Authority) -> None:
    party = await start("desk", "main")
    desk = RemoteDesk(party.address, authority.issue("host", "alpha"))
    with pytest.raises(Conflict, match="register first"):
        await desk.assignments("host_alpha", 0, 0)
    host = await desk.register("alpha", HostStatus(cpu=1000), "https://127.0.0.1:1")
    assert host == "host_alpha"
    await desk.report(
        host, [InstanceReport(id="inst_1", status=InstanceStatus(phase=Phase.RUNNING), events=[("a", "b")])]
    )
    await desk.tell(host, [StorageEvent(type="pool.low", message="nine tenths are used", pool="fast")])
    started = time.monotonic()
    assignments = await desk.assignments(host, 4, 0.3)
    assert time.monotonic() - started >= 0.3
    assert (assignments.revision, assignments.gone) == (5, ["inst_1"])
    assert assignments.images == ["pool.low fast"]
    await desk.close()


async def test_a_host_is_answered_for_itself_alone(start, authority: Authority) -> None:
    party = await start("desk", "main")
    alpha = RemoteDesk(party.address, authority.issue("host", "alpha"))
    beta = RemoteDesk(party.address, authority.issue("host", "beta"))
    await asyncio.gather(
        alpha.register("alpha", HostStatus(), ""),
        beta.register("beta", HostStatus(), ""),
    )
    with pytest.raises(Forbidden, match="belongs to host_alpha"):
        await beta.assignments("host_alpha", 0, 0)
    with pytest.raises(Forbidden):
        await beta.report("host_alpha", [])
    with pytest.raises(Forbidden):
        await beta.tell("host_alpha", [])
    with pytest.raises(Forbidden, match="cannot register as alpha"):
        await beta.register("alpha", HostStatus(), "")
    control = RemoteDesk(party.address, authority.issue("control", "main"))
    with pytest.raises(Forbidden, match="only a host"):
        await control.register("alpha", HostStatus(), "")
    for desk in (alpha, beta, control):
        await desk.close()


async def test_a_host_tells_nobody_but_control(start, authority: Authority) -> None:
    impostor = await start("agent", "beta")
    desk = RemoteDesk(impostor.address, authority.issue("host", "alpha"))
    with pytest.raises(Unauthenticated, match="host beta answered"):
        await desk.register("alpha", HostStatus(), "")
