"""Plans are carried out on a tiny QEMU from every state, and come to rest where they were asked to."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.host.compute.vm.devices import Part, Wanted
from lamella.host.compute.vm.wiring import (
    Clear,
    Device,
    Eject,
    Insert,
    Medium,
    Order,
    Plug,
    Plugged,
    Step,
    Unplug,
    plan,
)
from lamella.model.errors import Unsupported

NAMES = ["a", "b", "c", "d", "e"]
OWN = {"root": 7, "nic": 8}


class Qemu:
    """What QEMU would have after each step; it refuses what QEMU refuses."""

    def __init__(self, start: Plugged, wanted: list[Wanted]) -> None:
        self.devices = dict(start.devices)
        self.drives = dict(start.drives)
        self.ports = start.ports
        self.backends = set(start.leftovers) | set(start.names)
        self.boot = dict(start.boot)
        self.wanted = {item.name: item for item in wanted}

    def do(self, step: Step) -> None:
        match step:
            case Unplug(name=name, part=part):
                assert self.devices.pop(name).part is part
                self.boot.pop(f"dev-{name}", None)
            case Eject(name=name, drive=drive):
                medium = self.drives[drive]
                assert medium is not None and medium.name == name
                self.drives[drive] = None
            case Clear(name=name):
                assert name not in self.devices
                self.backends.discard(name)
            case Plug(name=name, part=part, port=port):
                assert name not in self.backends and name not in self.devices
                assert (part is Part.USB) == (port == "")
                if port:
                    assert port in self.ports and port not in {device.port for device in self.devices.values()}
                self.devices[name] = Device(part=part, port=port, identity=self.wanted[name].identity)
                self.backends.add(name)
                if part is not Part.USB:
                    self.boot[f"dev-{name}"] = -1
            case Insert(name=name, drive=drive):
                assert self.drives[drive] is None and name not in self.backends
                self.drives[drive] = Medium(name=name, identity=self.wanted[name].identity)
                self.backends.add(name)
            case Order(device=device, index=index):
                assert index == -1 or index not in [other for id, other in self.boot.items() if id != device]
                assert device in self.boot
                self.boot[device] = index

    def seen(self) -> Plugged:
        here = Plugged(devices=self.devices, drives=self.drives).names
        return Plugged(
            devices=self.devices,
            drives=self.drives,
            ports=self.ports,
            leftovers=frozenset(self.backends - set(here)),
            boot=self.boot,
        )


@st.composite
def machines(draw: st.DrawFn) -> list[Wanted]:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True))
    return [
        Wanted(name=name, part=draw(st.sampled_from(list(Part))), identity=draw(st.sampled_from("12")))
        for name in names
    ]


@st.composite
def states(draw: st.DrawFn) -> Plugged:
    ports = [f"port-{number}" for number in range(6)]
    devices: dict[str, Device] = {}
    free = list(ports)
    names = draw(st.lists(st.sampled_from(NAMES), unique=True))
    drives: dict[str, Medium | None] = {f"drive-{number}": None for number in range(5)}
    empty = list(drives)
    boot = {"root": 1, "nic": -1} | dict.fromkeys(drives, -1)
    index = 2
    leftovers: set[str] = set()
    for name in names:
        part = draw(st.sampled_from([*Part, None]))
        identity = draw(st.sampled_from(["1", "2", ""]))
        if part is None:
            leftovers.add(name)
        elif part is Part.CDROM:
            drives[empty.pop(0)] = Medium(name=name, identity=identity)
        else:
            devices[name] = Device(part=part, port="" if part is Part.USB else free.pop(), identity=identity)
            if part is not Part.USB:
                boot[f"dev-{name}"] = draw(st.sampled_from([-1, index]))
                index += 1
    return Plugged(devices=devices, drives=drives, ports=ports, leftovers=frozenset(leftovers), boot=boot)


@given(states(), machines(), st.permutations([*NAMES, *OWN]))
def test_every_plan_comes_to_rest_where_it_was_asked_to(start: Plugged, wanted: list[Wanted], order: list[str]) -> None:
    boot = {name: index for index, name in enumerate(order, start=1) if name in OWN or name in {w.name for w in wanted}}
    qemu = Qemu(start, wanted)
    for step in plan(start, wanted, boot):
        qemu.do(step)
    end = qemu.seen()
    assert end.names == sorted(item.name for item in wanted)
    assert not end.leftovers
    for item in wanted:
        if item.part is Part.CDROM:
            assert any(medium is not None and medium.name == item.name for medium in end.drives.values())
        else:
            assert end.devices[item.name].part is item.part
    ids = {item.name: f"dev-{item.name}" for item in wanted if item.part in (Part.DISK, Part.NIC)}
    ids |= {medium.name: drive for drive, medium in end.drives.items() if medium is not None} | {
        own: own for own in OWN
    }
    assert all(end.boot[id] == boot[name] for name, id in ids.items())
    assert plan(end, wanted, boot) == []


@given(states(), machines())
def test_what_fits_is_not_touched(start: Plugged, wanted: list[Wanted]) -> None:
    touched = {step.name for step in plan(start, wanted, {}) if not isinstance(step, Order)}
    for item in wanted:
        device = start.devices.get(item.name)
        if device is not None and device.part is item.part and device.identity == item.identity:
            assert item.name not in touched


@given(states(), machines(), st.integers(0, 30))
def test_a_plan_that_is_cut_off_is_taken_up_by_the_next(start: Plugged, wanted: list[Wanted], after: int) -> None:
    qemu = Qemu(start, wanted)
    for step in plan(start, wanted, {})[:after]:
        qemu.do(step)
    for step in plan(qemu.seen(), wanted, {}):
        qemu.do(step)
    assert qemu.seen().names == sorted(item.name for item in wanted)
    assert not qemu.seen().leftovers


def test_a_port_that_becomes_free_is_given_away_last() -> None:
    start = Plugged(devices={"a": Device(part=Part.DISK, port="port-0", identity="1")}, ports=["port-0", "port-1"])
    steps = plan(start, [Wanted(name="b", part=Part.DISK, identity="1")], {})
    assert steps[-1] == Plug(name="b", part=Part.DISK, port="port-1")


def test_a_machine_that_is_full_says_so() -> None:
    full = Plugged(devices={"a": Device(part=Part.DISK, port="port-0", identity="1")}, ports=["port-0"])
    a, b = (Wanted(name=name, part=Part.DISK, identity="1") for name in "ab")
    with pytest.raises(Unsupported, match="no place left for b: this machine started with 1"):
        plan(full, [a, b], {})
    with pytest.raises(Unsupported, match="no CD drive left for b"):
        plan(full, [a, msgspec.structs.replace(b, part=Part.CDROM)], {})
