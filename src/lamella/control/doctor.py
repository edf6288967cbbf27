"""The doctor: what an operator should know about this layer, from what hosts and the store say. Pure."""

from lamella.model.host import Host
from lamella.model.image import Image
from lamella.model.instance import Instance, Phase
from lamella.model.requests import Finding
from lamella.model.storage import Pool


def diagnose(*, hosts: list[Host], pools: list[Pool], images: list[Image], instances: list[Instance]) -> list[Finding]:
    """Every finding, problems first."""
    findings: list[Finding] = []
    if not hosts:
        findings.append(
            Finding(
                level="problem", subject="hosts", message="no host has registered", hint="start lamellad --role host"
            )
        )
    for host in hosts:
        findings += _host(host)
    for pool in pools:
        findings += _pool(pool)
    for instance in instances:
        if instance.status.phase is Phase.FAILED:
            said = next((c for c in instance.status.conditions if not c.status), None)
            findings.append(
                Finding(
                    level="warning",
                    subject=f"instance {instance.name}",
                    message=said.message if said else "it failed",
                    hint=(said.hint if said and said.hint else f"lamella explain {instance.name}"),
                )
            )
    if not images:
        findings.append(
            Finding(
                level="note", subject="images", message="there is no image yet", hint="lamella image build debian:12"
            )
        )
    order = {"problem": 0, "warning": 1, "note": 2, "ok": 3}
    return sorted(findings, key=lambda finding: order[finding.level])


def _host(host: Host) -> list[Finding]:
    if host.status.phase == "away":
        said = next((c for c in host.status.conditions if not c.status), None)
        seen = f", last seen at {host.status.seen_at:%Y-%m-%d %H:%M:%S} UTC" if host.status.seen_at else ""
        return [
            Finding(
                level="problem",
                subject=f"host {host.name}",
                message=f"away{seen}: {said.message if said else 'it does not answer'}",
                hint=said.hint if said else "",
            )
        ]
    findings = [
        Finding(
            level="ok",
            subject=f"host {host.name}",
            message=f"{host.status.cpu // 1000} cores, {host.status.memory >> 20} MiB, {host.status.architecture},"
            f" Linux {host.status.kernel}",
        )
    ]
    for capability in host.status.capabilities:
        said = " ".join(
            part for part in (capability.value, f"({capability.reason})" if capability.reason else "") if part
        )
        # Few machines can keep a guest from their own administrator: that one cannot is no fault of it.
        expected = capability.name.startswith(("compute.", "network.", "limit."))
        missing = "warning" if expected and not capability.name.startswith("compute.confidential") else "note"
        findings.append(
            Finding(
                level="ok" if capability.available else missing,
                subject=f"{host.name}: {capability.name}",
                message=said or ("available" if capability.available else "not available"),
            )
        )
    return findings


def _pool(pool: Pool) -> list[Finding]:
    capacity, free = pool.status.capacity, pool.status.free
    if not capacity:
        return []
    low = free < capacity // 20
    return [
        Finding(
            level="warning" if low else "ok",
            subject=f"pool {pool.name}",
            message=f"{free >> 30} of {capacity >> 30} GiB free",
            hint="remove volumes or images (lamella image gc), or enlarge it" if low else "",
        )
    ]
