"""Keys of templates: what changes the memory changes the key, and nothing else does; and who can become what when taken."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.control.templates.recipe import CHOSEN, agrees, check_recipe, key_of, shape, waiting_spec
from lamella.model.errors import Invalid, LamellaError, Unsupported
from lamella.model.host import Capability, Host, HostSpec, HostStatus
from lamella.model.instance import InstanceSpec, Isolation, Nic, Power
from lamella.model.resource import new_resource
from lamella.model.template import TemplateSpec

DIGEST = "sha256:" + "a" * 64


def host(qemu: str = "QEMU 7.2, kernel 6.1", accelerator: str = "tcg", **more: str) -> Host:
    said = {"compute.microvm": qemu, "accelerator": accelerator, **more}
    capabilities = [Capability(name=name, available=True, value=value) for name, value in said.items()]
    return new_resource("host", "alpha", HostSpec(), HostStatus(capabilities=capabilities))


HOST = host()
SPEC = TemplateSpec(image="debian:12", warmup=["sh", "-c", "true"], environment={"A": "1", "B": "2"}, memory=1 << 30)


@pytest.mark.parametrize(
    "change",
    [
        {"cpu": 2000},
        {"memory": 2 << 30},
        {"disk": 1 << 30},
        {"pids": 99},
        {"environment": {"A": "1"}},
        {"warmup": ["sh", "-c", "false"]},
        {"network": "none"},
        {"isolation": Isolation.VM},
        {"epoch": 1},
    ],
)
def test_another_recipe_is_another_key(change: dict[str, object]) -> None:
    assert key_of(msgspec.structs.replace(SPEC, **change), DIGEST, HOST) != key_of(SPEC, DIGEST, HOST)


@pytest.mark.parametrize("change", [{"warm": 9}, {"by_rate": True}, {"idle": 60.0}, {"image": "debian:latest"}])
def test_what_is_not_in_the_memory_is_not_in_the_key(change: dict[str, object]) -> None:
    assert key_of(msgspec.structs.replace(SPEC, **change), DIGEST, HOST) == key_of(SPEC, DIGEST, HOST)


def test_the_image_and_what_the_host_has_are_in_the_key() -> None:
    keys = {key_of(SPEC, DIGEST, HOST), key_of(SPEC, DIGEST.replace("a", "b"), HOST)}
    for other in (host(qemu="QEMU 8"), host(accelerator="kvm")):
        keys.add(key_of(SPEC, DIGEST, msgspec.structs.replace(other, id=HOST.id)))
    assert len(keys) == 4
    more = msgspec.structs.replace(host(**{"compute.vm": "QEMU 9"}), id=HOST.id)
    assert key_of(SPEC, DIGEST, more) == key_of(SPEC, DIGEST, HOST)


@given(st.permutations(["A", "B", "C"]))
def test_the_order_of_variables_is_nobody_s_business(order: list[str]) -> None:
    spec = TemplateSpec(image="x", environment=dict.fromkeys(order, "1"))
    same = TemplateSpec(image="x", environment={"A": "1", "B": "1", "C": "1"})
    assert key_of(spec, DIGEST, HOST) == key_of(same, DIGEST, HOST)


def asked(**fields: object) -> InstanceSpec:
    spec = InstanceSpec(**{"template": "py", "nics": [Nic()], **fields})  # type: ignore[arg-type]
    shape(spec, "py", SPEC)
    return spec


def test_what_waits_becomes_whatever_can_be_chosen() -> None:
    member = waiting_spec("py", SPEC)
    shape(member, "py", SPEC)
    wanted = asked(command=["job"], hostname="h", environment={"X": "1"}, user="app", remove_on_exit=True)
    assert agrees(member, wanted) and member.power is Power.READY
    assert not agrees(member, asked(nics=[Nic(rate_in=1_000_000)]))
    assert not agrees(member, asked(memory_guarantee=1 << 20))
    assert not agrees(member, asked(cpu_guarantee=500))
    assert {"command", "environment", "hostname"} <= set(CHOSEN)


def test_what_is_not_said_is_the_template_s() -> None:
    spec = asked(environment={"B": "3", "C": "4"})
    assert (spec.image, spec.isolation, spec.memory) == ("debian:12", Isolation.MICROVM, 1 << 30)
    assert spec.environment == {"A": "1", "B": "3", "C": "4"}


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        (TemplateSpec(image="x", isolation=Isolation.CONTAINER), Unsupported),
        (TemplateSpec(image="x", warmup=[""]), Invalid),
        (TemplateSpec(image="x", by_rate=True), Invalid),
    ],
)
def test_what_cannot_be_a_template_is_refused(spec: TemplateSpec, error: type[LamellaError]) -> None:
    with pytest.raises(error):
        check_recipe(spec)
