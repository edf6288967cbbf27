"""Levels side by side, and the reasons why one cannot be had."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.control.comparison import compare, why_not
from lamella.control.contract import contract_of
from lamella.control.levels import LEVELS
from lamella.model.contract import LIMIT, Mechanism
from lamella.model.host import Capability, Host, HostSpec, HostStatus
from lamella.model.instance import Instance, InstanceSpec, InstanceStatus, Isolation, Phase
from lamella.model.resource import Condition, new_resource, now

TCG = Capability(
    name="accelerator", available=True, value="tcg", reason="/dev/kvm does not open; QEMU translates instead"
)
KVM = Capability(name="accelerator", available=True, value="kvm", reason="a probe guest reached 64-bit mode under KVM")


def host(name: str, *capabilities: Capability, phase: str = "ready", conditions: list[Condition] | None = None) -> Host:
    status = HostStatus(phase=phase, capabilities=list(capabilities), conditions=conditions or [])
    return new_resource("host", name, HostSpec(), status)


def can(level: str, reason: str = "it is there") -> Capability:
    return Capability(name=f"compute.{level}", available=True, reason=reason)


def cannot(level: str, reason: str) -> Capability:
    return Capability(name=f"compute.{level}", available=False, reason=reason)


def test_every_level_has_its_words() -> None:
    assert set(LEVELS) == set(Isolation)
    for level in LEVELS.values():
        for text in (level.what, level.isolated_by, level.shared, level.runs, level.kernel, level.cpu, level.memory):
            assert text.strip()
        assert level.not_promised


def test_every_row_answers_for_every_level() -> None:
    found = compare([host("a", can("container"), can("microvm"), TCG)])
    names = [item.level for item in found.levels]
    assert names == [level.value for level in LEVELS]
    for row in found.rows:
        assert list(row.values) == names
        assert all(row.values.values()), row.subject
    assert {row.subject for row in found.rows} >= {"isolated by", "shared with the host", "speed", "verbs it lacks"}


def test_availability_is_the_hosts_word() -> None:
    found = compare([host("a", can("container"), cannot("microvm", "qemu is not there")), host("b", can("microvm"))])
    levels = {item.level: item for item in found.levels}
    assert levels["container"].available and "a: it is there" in levels["container"].reason
    assert levels["microvm"].available and levels["microvm"].reason == "b: it is there"
    assert not levels["vm"].available
    assert levels["vm"].reason == "a: this host has no driver for it; b: this host has no driver for it"


def test_emulation_is_said_plainly_and_only_where_it_is() -> None:
    speed = {row.subject: row for row in compare([host("a", TCG)]).rows}["speed"].values
    for level in ("microvm", "unikernel", "vm"):
        assert "emulated (TCG)" in speed[level] and "/dev/kvm does not open" in speed[level]
    assert "emulated" not in speed["container"] and "emulated (TCG)" not in speed["confidential"]
    speed = {row.subject: row for row in compare([host("a", KVM)]).rows}["speed"].values
    assert speed["vm"] == "hardware virtualization (KVM)"
    speed = {row.subject: row for row in compare([host("a", KVM), host("b", TCG)]).rows}["speed"].values
    assert "a: hardware virtualization (KVM)" in speed["vm"] and "b: emulated (TCG)" in speed["vm"]


def test_why_not_lists_each_missing_thing_first() -> None:
    parts = [
        cannot("confidential", "neither SEV-SNP nor TDX can be used here"),
        Capability(
            name="compute.confidential.sev-snp.cpu", available=False, reason="the processor has no sev_snp flag"
        ),
        Capability(
            name="compute.confidential.sev-snp.qemu", available=True, reason="QEMU has the object sev-snp-guest"
        ),
    ]
    found = why_not(Isolation.CONFIDENTIAL, [host("a", can("container"), *parts)])
    assert not found.available
    assert [reason.available for reason in found.reasons] == [False, False, True]
    assert "the processor has no sev_snp flag" in [reason.reason for reason in found.reasons]
    assert all(reason.need.startswith("compute.confidential") for reason in found.reasons)


def test_why_not_of_what_can_be_had() -> None:
    found = why_not(Isolation.MICROVM, [host("a", can("microvm"), TCG, TCG)])
    assert found.available
    assert [reason.need for reason in found.reasons] == ["compute.microvm", "accelerator"]


def test_why_not_names_hosts_that_are_away_and_the_lack_of_hosts() -> None:
    told = Condition(type="Ready", status=False, reason="Away", message="it did not answer for 30 s")
    found = why_not(Isolation.VM, [host("a", can("vm"), phase="away", conditions=[told])])
    assert not found.available and found.reasons[0].reason == "the host is away: it did not answer for 30 s"
    found = why_not(Isolation.VM, [])
    assert not found.available and found.reasons[0].need == "host"


capabilities = st.lists(
    st.builds(
        Capability,
        name=st.sampled_from(["accelerator", *(f"compute.{level}" for level in Isolation), "compute.confidential.tdx"]),
        available=st.booleans(),
        value=st.sampled_from(["", "tcg", "kvm"]),
        reason=st.text(max_size=20),
    ),
    max_size=8,
)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["ready", "away", "pending"]), capabilities), max_size=3))
def test_both_agree_whatever_hosts_say(told: list[tuple[str, list[Capability]]]) -> None:
    hosts = [host(f"h{number}", *found, phase=phase) for number, (phase, found) in enumerate(told)]
    compared = {item.level: item for item in compare(hosts).levels}
    for level in Isolation:
        reasons = why_not(level, hosts)
        assert reasons.available == compared[level.value].available
        assert reasons.reasons, "there is always something to say"
        if not reasons.available:
            assert not reasons.reasons[0].available


def test_a_contract_of_each_level() -> None:
    for level in Isolation:
        instance: Instance = new_resource(
            "instance",
            "i",
            InstanceSpec(image="x", isolation=level),
            InstanceStatus(
                phase=Phase.RUNNING, accelerator="tcg", accelerator_reason="there is no /dev/kvm", started_at=now()
            ),
        )
        read = [Mechanism(name=f"{LIMIT}memory", value="64 MiB", evidence="QMP query-balloon")]
        contract = contract_of(instance, read)
        assert contract.level.startswith(f"{level}: ") and contract.observed
        assert contract.lacks == LEVELS[level].lacks
        emulated = level in (Isolation.MICROVM, Isolation.UNIKERNEL, Isolation.VM)
        assert any("emulated (TCG)" in line for line in contract.not_promised) == emulated
        assert next(line for line in contract.limits if line.subject == "memory").value == "64 MiB"
