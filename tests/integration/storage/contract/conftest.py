"""One run of the contract for each ``lab_<driver>.py`` of this folder."""

import importlib
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from contract_lab import Lab

from lamella.host.storage.driver import StorageDriver
from lamella.model.storage import Feature

HERE = Path(__file__).parent
LABS = sorted(path.stem.removeprefix("lab_") for path in HERE.glob("lab_*.py"))


@pytest.fixture(scope="session", params=LABS)
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with ExitStack() as stack:
        module = importlib.import_module(f"lab_{request.param}")
        # What takes long to start is a fixture that other tests have too.
        servers = [request.getfixturevalue(name) for name in getattr(module, "STANDS_ON", ())]
        yield stack.enter_context(module.lab(tmp_path_factory.mktemp(request.param), *servers))


@pytest.fixture
async def pool(lab: Lab) -> AsyncIterator[StorageDriver]:
    """The opened pool, empty; what the test leaves is deleted, clones before what they stand on."""
    driver = lab.make()
    await driver.open()
    yield driver
    await empty(driver)
    await driver.close()


@pytest.fixture
async def leaves_nothing(lab: Lab, request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """For a test that opens the pool itself: what it left when it failed is deleted."""
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed > failed:
        driver = lab.make()
        await driver.open()
        await empty(driver)
        await driver.close()


@pytest.fixture
def needs(lab: Lab) -> object:
    """``needs(Feature.X, …)`` skips where the driver does not have one of them."""

    def check(*wanted: Feature) -> None:
        missing = sorted(set(wanted) - set(lab.make().features))
        if missing:
            pytest.skip(f"the {lab.name} driver has no {', '.join(missing)}")

    return check


async def empty(driver: StorageDriver) -> None:
    from lamella.model.errors import Conflict

    left = await driver.inventory()
    while left:
        before = len(left)
        for id in sorted(left, reverse=True):
            try:
                await driver.delete(id)
            except Conflict:
                continue
        left = await driver.inventory()
        assert len(left) < before, f"cannot be deleted: {left}"
