"""Who answers inside a VM, who is asked, how long one waits for them, and what is said when nobody does."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.host.compute.vm import inside as module
from lamella.host.compute.vm.inside import BOOT_PATIENCE, YOUNG, Agents, Inside, patience
from lamella.model.errors import Unsupported
from lamella.model.stream import ExecSpec


@given(st.none() | st.floats(-1e6, 1e6))
def test_nobody_is_waited_for_longer_than_is_said(age: float | None) -> None:
    waited = patience(age)
    assert 0 <= waited <= BOOT_PATIENCE
    if age is None or age >= YOUNG:
        assert waited == 0
    elif age <= YOUNG - BOOT_PATIENCE:
        assert waited == BOOT_PATIENCE
    assert age is None or age < 0 or waited == 0 or age + waited <= YOUNG


@asynccontextmanager
async def silent_machine(directory: Path) -> AsyncIterator[tuple[Inside, list[socket.socket]]]:
    """Ports as QEMU has them while nobody in the guest has opened them: connections are taken and nothing is read."""
    listeners: list[socket.socket] = []
    for name in ("agent", "qga"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(directory / name))
        listener.listen(8)
        listeners.append(listener)
    inside = Inside(directory / "agent", directory / "qga")
    inside.open()
    try:
        yield inside, listeners
    finally:
        await inside.close()
        for listener in listeners:
            listener.close()


@pytest.fixture(autouse=True)
def short_introduction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTRODUCTION", 0.1)


async def test_an_old_guest_where_nobody_answers_is_told_at_once_with_what_to_do(tmp_path: Path) -> None:
    async with silent_machine(tmp_path) as (inside, _), asyncio.timeout(90):
        for verb, asked in {
            "exec": inside.exec(ExecSpec(command=["true"])),
            "stat": inside.stat("/"),
            "usage": inside.usage(),
            "shutdown": inside.shutdown(),
            "freeze": inside.freeze(1),
        }.items():
            with pytest.raises(Unsupported, match=f"{verb} needs Lamella's agent or qemu-guest-agent") as caught:
                await asked
            assert "cloud-init" in caught.value.hint
        with pytest.raises(
            Unsupported, match="exec as asked needs Lamella's agent in the guest, and it did not answer"
        ):
            await inside.exec(ExecSpec(command=["sh"], terminal=True))
        assert inside.agents == Agents()


async def test_a_young_guest_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BOOT_PATIENCE", 1.5)
    async with silent_machine(tmp_path) as (inside, _):
        inside.started = datetime.now(UTC)
        begun = asyncio.get_running_loop().time()
        with pytest.raises(Unsupported, match=r"neither answered in \d+ s"):
            await inside.stat("/")
        assert asyncio.get_running_loop().time() - begun >= 1.4
        monkeypatch.setattr(module, "BOOT_PATIENCE", 600.0)
        async with asyncio.timeout(90):  # but nobody waits to learn its figures
            with pytest.raises(Unsupported):
                await inside.usage()


async def test_waiting_for_nobody_costs_one_connection_a_port(tmp_path: Path) -> None:
    async with silent_machine(tmp_path) as (inside, listeners):
        await asyncio.sleep(2.5)
        for listener in listeners:
            listener.settimeout(90)
            first, _ = listener.accept()
            listener.setblocking(False)
            with first, pytest.raises(BlockingIOError):
                listener.accept()
        assert inside.agents == Agents()


async def test_without_a_machine_it_looks_again_once_a_second(tmp_path: Path) -> None:
    inside = Inside(tmp_path / "none", tmp_path / "too")
    inside.open()
    await asyncio.sleep(0.2)
    tasks = [task for task in asyncio.all_tasks() if task.get_name().startswith("port ")]
    assert len(tasks) == 2
    await inside.close()
    assert all(task.done() for task in tasks)
    await inside.close()
