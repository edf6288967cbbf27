"""What Prometheus is given, and what the dashboard asks of it."""

import json
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lamella.control.metrics import USES, Measured, exposition
from lamella.model.instance import Instance, InstanceSpec, InstanceStatus, Phase
from lamella.model.judgement import Judgement, Span, Verdict
from lamella.model.resource import new_resource, now
from lamella.model.usage import Usage

DASHBOARD = Path(__file__).parents[3] / "dashboards" / "lamella.json"
SAMPLE = re.compile(r'^([a-z_]+)\{((?:[a-z]+="(?:[^"\\\n]|\\.)*",?)+)\} (\S+)$')


def instance(name: str, project: str) -> Instance:
    made: Instance = new_resource(
        "instance", name, InstanceSpec(image="busybox"), InstanceStatus(phase=Phase.RUNNING), project=project
    )
    return made


def measured(name: str = "web", project: str = "default", **usage: float) -> Measured:
    kept = Span(window="1m", verdict=Verdict.KEPT, measured=60.0, evidence="")
    broken = Judgement(subject="cpu", guarantee=True, verdict=Verdict.BROKEN, windows=[kept])
    found = {field: 1 for field in Usage.__struct_fields__ if field != "at"} | usage
    return Measured(instance=instance(name, project), host="h1", usage=Usage(at=now(), **found), judgements=[broken])


def samples(text: str) -> list[tuple[str, str, float]]:
    found: list[tuple[str, str, float]] = []
    for line in text.split("\n"):
        if line and not line.startswith("#"):
            match = SAMPLE.match(line)
            assert match is not None, line
            found.append((match[1], match[2], float(match[3])))
    return found


@given(st.lists(st.tuples(st.text(), st.text()), max_size=5, unique=True), st.floats(0, allow_nan=False))
def test_every_line_is_one_that_prometheus_takes(names: list[tuple[str, str]], used: float) -> None:
    text = exposition([measured(name, project, cpu_seconds=used) for name, project in names])
    found = samples(text)
    assert len({(name, labels) for name, labels, _ in found}) == len(found), "no series twice"
    helped = re.findall(r"^# TYPE (\S+) (counter|gauge)$", text, re.MULTILINE)
    assert {name for name, _, _ in found} <= {name for name, _ in helped}
    assert all(name.endswith("_total") == (kind == "counter") for name, kind in helped)


def test_what_cannot_be_told_has_no_series() -> None:
    found = samples(exposition([Measured(instance=instance("web", "default"))]))
    assert {name for name, _, _ in found} == {"lamella_instance_phase"}


def test_one_verdict_of_a_window_is_one() -> None:
    found = [labels for name, labels, value in samples(exposition([measured()])) if "verdict" in name and value == 1]
    assert [re.findall(r'(?:window|verdict)="([^"]*)"', labels) for labels in found] == [
        ["now", "broken"],
        ["1m", "kept"],
    ]


def test_the_dashboard_asks_for_what_there_is() -> None:
    known = {"lamella_instance_phase", "lamella_contract_verdict", *(f"lamella_instance_{name}" for name, *_ in USES)}
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = {name for panel in panels for each in panel["targets"] for name in re.findall(r"lamella_\w+", each["expr"])}
    assert asked <= known
    assert len(asked) >= 10
    places = [tuple(panel["gridPos"].values()) for panel in panels]
    assert len(set(places)) == len(places)
