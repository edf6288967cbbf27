"""A host without dnsmasq: instances have the host's resolvers, and doctor says what is missing."""

from pathlib import Path

import pytest

from lamella.host.compute.driver import Home
from lamella.host.network.bridge import BridgeDriver
from lamella.host.network.driver import DesiredNetwork
from lamella.host.network.fabric import Fabric
from lamella.host.network.services import process
from lamella.host.network.services.plan import Site
from lamella.host.network.services.services import Services
from lamella.model.ids import new_id

NETWORK = DesiredNetwork(id=new_id("network"), name="front", subnet="10.9.0.0/24", gateway="10.9.0.1", mtu=1500)


def nothing() -> None:
    return None


async def test_without_dnsmasq_the_hosts_resolvers_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.53\n")
    home = Home(path=tmp_path, mark="lamella-00000000")
    driver = BridgeDriver(home, None, (tmp_path / "resolv.conf",))
    # Before anything is served, and where nothing can be.
    assert await driver.nameservers(NETWORK.id) == ["192.0.2.53"]
    services = Services(
        home,
        Fabric(home, None),
        lambda: [NETWORK],
        lambda network: Site(interface="lamexample", gateway=network.gateway),
        (tmp_path / "resolv.conf",),
    )
    monkeypatch.setattr(process, "program", nothing)
    services.use([])
    try:
        assert services.nameservers(NETWORK.id) == ["192.0.2.53"]
        found = services.finding()
        assert not found.available and "apt install dnsmasq-base" in found.reason
    finally:
        await services.close()
