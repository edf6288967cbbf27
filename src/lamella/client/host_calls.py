"""What the library asks about hosts, as calls."""

from collections.abc import Mapping

import msgspec

from lamella.client import routes
from lamella.client.calls import Call, answer
from lamella.model.errors import Invalid
from lamella.model.host import Host
from lamella.model.quantity import parse_size
from lamella.model.requests import ResourcePatch

_encode = msgspec.json.encode


def change(
    project: str,
    name: str,
    *,
    overcommit_cpu: float | None,
    overcommit_memory: float | None,
    reserve_cpu: float | None,
    reserve_memory: str | int | None,
    ksm: str | None,
    copies: str | None,
    huge_pages: Mapping[str, int] | None,
) -> Call[Host]:
    """Cores and sizes as people write them; ``ksm="unset"`` and no pages at all (``{}``) leave the host as it was.

    :raise Invalid: when nothing is to be changed, or a size is none.
    """
    spec: dict[str, object] = {}
    overcommit = {"cpu": overcommit_cpu, "memory": overcommit_memory}
    if any(ratio is not None for ratio in overcommit.values()):
        spec["overcommit"] = {key: ratio for key, ratio in overcommit.items() if ratio is not None}
    reserve: dict[str, int] = {}
    if reserve_cpu is not None:
        reserve["cpu"] = round(reserve_cpu * 1000)
    if reserve_memory is not None:
        text = isinstance(reserve_memory, str)
        reserve["memory"] = parse_size(reserve_memory, field="reserve_memory") if text else int(reserve_memory)
    if reserve:
        spec["reserve"] = reserve
    if ksm is not None:
        spec["ksm"] = None if ksm == "unset" else ksm
    if copies is not None:
        spec["copies"] = copies
    if huge_pages is not None:
        spec["huge_pages"] = dict(huge_pages) or None
    if not spec:
        raise Invalid(
            "there is nothing to change", hint="say what: overcommit_cpu, reserve_memory, ksm, copies, huge_pages"
        )
    return Call(routes.patch(project, "host", name, _encode(ResourcePatch(spec=spec))), answer(Host))
