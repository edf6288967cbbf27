"""What a unikernel is told when it starts: one line of text. Pure."""

from collections.abc import Sequence
from ipaddress import IPv4Interface

from lamella.host.compute.driver import Machine
from lamella.host.network.driver import Attachment
from lamella.model.errors import Invalid

LONGEST = 65536


def command_line(machine: Machine) -> str:
    """``board.command_line``, then the words of the command, one space between them.

    A word with white space in it is put in double quotes, as Linux and the unikernel libraries read it. ``{address}``, ``{prefix}``,
    ``{netmask}``, ``{gateway}``, ``{mac}``, ``{nameserver}`` and ``{hostname}`` become what the instance was given; an ``{address}`` that
    it does not have is empty. Every other brace stays as it is.

    :raise Invalid: when a word cannot be written in a line: it has both white space and a double quote, or a line end.
    """
    line = " ".join(part for part in (machine.board.command_line, *map(_word, machine.command)) if part)
    for name, value in _values(machine).items():
        line = line.replace(f"{{{name}}}", value)
    if len(line.encode()) > LONGEST:
        raise Invalid(
            f"the command line is longer than {LONGEST} bytes",
            hint="put long text into an initrd",
            field="spec.command",
        )
    return line


def _word(word: str) -> str:
    if "\n" in word or ('"' in word and any(letter.isspace() for letter in word)):
        raise Invalid(
            f"{word!r} cannot be one word of a kernel's command line",
            hint="leave out the line end or the double quote, or write the whole line with --cmdline",
            field="spec.command",
        )
    if not word or any(letter.isspace() for letter in word):
        return f'"{word}"'
    return word


def _values(machine: Machine) -> dict[str, str]:
    return {
        **_address(machine.nic),
        "nameserver": _first(machine.nameservers),
        "hostname": machine.hostname,
    }


def _address(nic: Attachment | None) -> dict[str, str]:
    if nic is None:
        return dict.fromkeys(("address", "prefix", "netmask", "gateway", "mac"), "")
    interface = IPv4Interface(nic.address)
    return {
        "address": str(interface.ip),
        "prefix": str(interface.network.prefixlen),
        "netmask": str(interface.netmask),
        "gateway": nic.gateway,
        "mac": nic.mac,
    }


def _first(items: Sequence[str]) -> str:
    return items[0] if items else ""
