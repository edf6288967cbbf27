"""A host that is older than control: what it cannot be asked is left out, and nothing else."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.storage_host import StorageHost

from lamella.control.layer import Layer
from lamella.model.errors import Internal, LamellaError, NotFound
from lamella.model.instance import InstanceSpec, Phase
from lamella.model.requests import InstanceCreate, Principal
from lamella.model.resource import now
from lamella.model.usage import Usage

WHO = Principal(name="unix:root", admin=True)


class OlderHost(StorageHost):
    """*fails* is what it answers to the verb that it does not know, as the wire hands it on."""

    fails: LamellaError = NotFound("there is no verb 'judgements'")

    async def usage(self, ids: list[str]) -> dict[str, Usage]:
        return {id: Usage(at=now(), cpu_seconds=7.0) for id in ids}

    async def judgements(self, ids: list[str]) -> dict[str, list[Any]]:
        raise self.fails


@pytest.fixture
def host() -> StorageHost:
    return OlderHost()


@pytest.fixture
async def running(layer: Layer) -> AsyncIterator[Layer]:
    body = InstanceCreate(name="box", spec=InstanceSpec(image="box"))
    made = await layer.create_instance(WHO, "default", body, wait=30, idempotency_key=None)
    assert made.status.phase is Phase.RUNNING
    yield layer


async def test_a_contract_of_an_older_host_has_no_verdicts(running: Layer) -> None:
    contract = await running.contract(WHO, "default", "box")
    assert contract.instance == "box"
    assert not [line for line in (*contract.guarantees, *contract.limits) if line.windows]


async def test_metrics_of_an_older_host_are_what_it_has(running: Layer) -> None:
    assert "lamella_instance_cpu_seconds_total{" in await running.metrics(WHO)


async def test_a_host_that_fails_does_not_fail_the_metrics_of_all(running: Layer, host: OlderHost) -> None:
    host.fails = Internal("something is wrong")
    assert "lamella_instance_phase{" in await running.metrics(WHO)
