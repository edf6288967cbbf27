"""A project's default firewall as a person has it, by the command and by the library; what the contract and the picture say of it."""

import json
import time
from collections.abc import Callable

import pytest
from tests.house import LayerUnderTest

import lamella

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

SERVER = "while :; do echo served | nc -l -p 80; done & while :; do echo other | nc -l -p 81; done"


def reaches(layer: LayerUnderTest, name: str, address: str, port: int) -> bool:
    command = f"nc -w 3 {address} {port} </dev/null"
    return bool(layer.lamella("exec", name, "--", "sh", "-c", command, check=False).stdout.strip())


def until(check: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline


def test_whoever_names_no_firewall_has_the_default_one(layer: LayerUnderTest) -> None:
    run = ("run", "-d", "--network", "guarded")
    layer.lamella("network", "create", "guarded")
    layer.lamella("firewall", "create", "base", "--allow", "tcp:80", "--allow", "icmp")
    assert layer.out("firewall", "default").strip() == "none"
    layer.lamella("firewall", "default", "base")
    try:
        assert layer.out("firewall", "default").strip() == "base"
        layer.lamella(*run, "--name", "kept", "busybox", "--", "sh", "-c", SERVER)
        layer.lamella(*run, "--name", "open", "--firewall", "none", "busybox", "--", "sh", "-c", SERVER)
        address = {name: layer.show(name)["status"]["address"] for name in ("kept", "open")}
        until(lambda: reaches(layer, "open", address["kept"], 80))
        until(lambda: reaches(layer, "kept", address["open"], 81))
        assert not reaches(layer, "open", address["kept"], 81)
        # It says what is so.
        said = json.loads(layer.out("contract", "kept", "-o", "json"))["guarantees"]
        (guarded,) = [one for one in said if one["subject"] == f"firewall of {address['kept']}"]
        assert guarded["value"] == "base: tcp:80, icmp may come in" and guarded["enforced_by"]
        said = json.loads(layer.out("contract", "open", "-o", "json"))["guarantees"]
        (free,) = [one for one in said if one["subject"] == f"firewall of {address['open']}"]
        assert free["value"] == "none: whatever is on network guarded may come in" and not free["enforced_by"]
        picture = layer.out("network", "show", "guarded", "--topology")
        assert f"kept  {address['kept']}  container, running  firewall base" in picture
        assert f"open  {address['open']}  container, running" in picture

        done = layer.lamella("firewall", "rm", "base", check=False)
        assert done.returncode == 1 and b"guards kept" in done.stderr
        layer.lamella("rm", "--force", "kept", "open")
        done = layer.lamella("firewall", "rm", "base", check=False)
        assert done.returncode == 1 and b"by default" in done.stderr
    finally:
        layer.lamella("rm", "--force", "kept", "open", check=False)
        layer.lamella("firewall", "default", "--none")
    layer.lamella("firewall", "rm", "base")
    layer.lamella("network", "rm", "guarded")


async def test_the_library_makes_changes_and_attaches_firewalls(layer: LayerUnderTest) -> None:
    async with lamella.connect(f"unix://{layer.home}/run/lamellad.sock") as found:
        made = await found.firewalls.create("lib", allow=["tcp:80"], allow_out=[])
        assert [rule.protocol for rule in made.spec.inbound] == ["tcp"] and made.spec.outbound == []
        async with found.run("busybox", command=["sh", "-c", SERVER], name="served") as served:
            async with found.run("busybox", command=["sleep", "1000"], name="asks") as asks:
                address = served.instance.status.address

                async def reached(port: int) -> bool:
                    return bool((await asks.exec("sh", "-c", f"nc -w 3 {address} {port} </dev/null")).stdout.strip())

                async def becomes(port: int, wanted: bool) -> None:
                    deadline = time.monotonic() + 90
                    while await reached(port) != wanted:
                        assert time.monotonic() < deadline

                await becomes(81, True)
                await found.firewalls.attach("lib", "served")
                await becomes(81, False)
                await becomes(80, True)
                changed = await found.firewalls.change("lib", allow=["tcp:81"], all_out=True)
                assert changed.spec.outbound is None
                await becomes(81, True)
                await becomes(80, False)
                await found.firewalls.detach("lib", "served")
                await becomes(80, True)
        assert [one.name for one in await found.firewalls.list()] == ["lib"]
        await found.firewalls.default("lib")
        await found.firewalls.default(None)
        await found.firewalls.remove("lib")
