"""May they: one function that every request passes, HTTP and WebSocket alike, after identity and before anything is looked up."""

from enum import StrEnum

from lamella.model.errors import Forbidden
from lamella.model.kinds import plural
from lamella.model.requests import Principal


class Action(StrEnum):
    """What a request does to what it names, coarse enough to be granted by a role."""

    ABOUT = "about"
    READ = "read"
    WRITE = "write"
    OPERATE = "operate"
    ENTER = "enter"
    ADMINISTER = "administer"


def decide(who: Principal, action: Action, project: str | None, kind: str | None) -> None:
    """Let *who* pass, or not. *project* and *kind* are ``None`` for what belongs to the whole layer.

    Administrators may do everything; everybody with an identity may ask which layer this is. A host is no person: what it may
    ask goes over the wire between hosts, not through this door.

    :raise Forbidden: when *who* may not.
    """
    if who.admin or action is Action.ABOUT:
        return
    subject = plural(kind) if kind else "the layer"
    place = f" in project {project}" if project else ""
    raise Forbidden(
        f"{who.name} may not {action.value} {subject}{place}",
        hint="root and members of the group lamella may" if who.kind == "user" else "hosts have no business here",
    )
