"""What a warm pool of the library asks: one box an item, each used once."""

import secrets
from collections.abc import Sequence

from lamella.client import calls, wish
from lamella.client.call import Call
from lamella.client.template_calls import shell
from lamella.model.errors import Invalid
from lamella.model.instance import Instance, Power
from lamella.model.template import Template

# What a box does while a function works with it.
IDLE = ["sleep", "infinity"]
# After so many seconds without a box a pool that its maker has forgotten goes by itself.
FORGOTTEN = "1h"
PLACE = "{}"

Words = str | Sequence[str]


def is_command(job: object) -> bool:
    """Whether *job* is a command, and no function."""
    return isinstance(job, str | Sequence)


def filled(command: Words, item: Words) -> list[str]:
    """*command* with *item* (a word, or several) where a word of it is ``{}``, or at its end.

    :raise Invalid: when there is no command.
    """
    words = shell(command)
    if not words:
        raise Invalid("there is no command", hint='say which: ["python3", "job.py"]', field="command")
    given = [item] if isinstance(item, str) else list(item)
    if PLACE not in words:
        return [*words, *given]
    found: list[str] = []
    for word in words:
        found += given if word == PLACE else [word]
    return found


def name_of_box(template: str) -> str:
    """A name of its own for a box: it can be removed by it though nobody was told that it was made."""
    return f"{template[:44]}-{secrets.token_hex(8)}"


def begin(project: str, template: Template, name: str, command: list[str], *, attached: bool) -> Call[Instance]:
    """One box; with *attached* its command begins when somebody has attached."""
    wishes: wish.Wishes = {
        "name": name,
        "template": template.name,
        "command": command,
        "network": template.spec.network,
    }
    body = wish.instance("", wishes, power=Power.RUNNING)
    body.spec.attach_epoch = int(attached)
    return calls.create_instance(project, body, wait=None if attached else calls.SETTLE)
