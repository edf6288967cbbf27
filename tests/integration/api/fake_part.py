"""What the parts of the layer in memory have in common: their rows are the layer's."""

from typing import Any

import msgspec

from lamella.model.errors import Conflict
from lamella.model.operation import OperationPhase, OperationSpec, OperationStatus
from lamella.model.resource import new_resource
from lamella.model.storage_report import Report


class Part:
    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def new(self, kind: str, name: str, spec: Any, status: Any, project: str, labels: dict[str, str]) -> Any:
        if any((row.project, row.kind, row.name) == (project, kind, name) for row in self.layer.rows.values()):
            raise Conflict(f"there is a {kind} {name!r} already", hint="choose another name", field="name")
        return self.layer._put(new_resource(kind, name, spec, status, project=project, labels=labels))

    def operation(self, who: Any, project: str, verb: str, subject: str, report: Report | None = None) -> Any:
        spec = OperationSpec(verb=verb, subject=subject, principal=who.name)
        status = OperationStatus(phase=OperationPhase.DONE, report=report)
        return self.layer._put(new_resource("operation", f"op-{self.layer.revision}", spec, status, project=project))

    def changed(self, row: Any, **changes: Any) -> Any:
        return self.layer._put(msgspec.structs.replace(row, **changes), "updated")
