"""What a person writes in Python turned into specs: ``memory="512MiB"``, ``cpu=1.5``, ``publish=["8080:80"]``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import msgspec

from lamella.client import machine
from lamella.model import bit_rate, memory_range
from lamella.model.errors import Invalid
from lamella.model.instance import Nic, Power, Publish, RestartMode, RestartPolicy
from lamella.model.quantity import parse_cpu, parse_duration, parse_size
from lamella.model.requests import InstanceCreate

Size = int | str
Cores = float | str


class Wishes(TypedDict, total=False):
    """What may be said of an instance beside its image.

    ``cpu`` is cores (1.5, ``"250m"``), as is ``cpu_guarantee``, ``memory`` and ``disk`` bytes or ``"512MiB"``, memory also floor and
    ceiling (``"1GiB..4GiB"``), ``stop_timeout`` seconds or ``"10s"``, ``priority`` ``"low"``, ``"normal"`` or ``"high"``,
    ``network`` a network's name or ``"none"``, ``address`` the one to have there, ``publish`` as ``docker run -p`` has it,
    ``rate_in`` and ``rate_out`` ceilings in bits a second or ``"100Mbit"``,
    ``restart`` as ``--restart``.

    Of a full machine: ``disks`` are sizes by name, or sizes alone (``disk1``, ``disk2`` …); ``networks`` those of further NICs;
    ``cdroms`` names of images; ``certificates`` PEM texts; ``ssh_keys`` public keys; ``seed`` false gives cloud-init nothing.
    Of a WebAssembly module: ``directories`` as ``"/HOST:/TARGET[:ro]"``, ``fuel`` in instructions, ``deadline`` seconds or ``"10s"``.
    Of a unikernel: ``command_line``.

    ``volumes`` are those with a life of their own: ``{"data": "/var/lib/x"}`` (``":ro"`` at the end: read only; ``""``: a bare disk), or
    as ``--volume`` has them.

    ``template`` is the name of one that it begins as a copy of: then the image may be ``""``. With ``cold`` it boots, whatever there is to
    begin from.
    """

    command: Sequence[str]
    entrypoint: Sequence[str]
    isolation: str
    name: str
    environment: Mapping[str, str]
    working_directory: str
    user: str
    hostname: str
    cpu: Cores
    cpu_guarantee: Cores
    cpu_pin: bool
    memory: Size
    priority: str
    huge_pages: Size
    pids: int
    disk: Size
    network: str
    address: str
    publish: Sequence[str]
    rate_in: int | str
    rate_out: int | str
    restart: str
    stop_signal: str
    stop_timeout: float | str
    labels: Mapping[str, str]
    stdin: bool
    terminal: bool
    remove_on_exit: bool
    disks: Mapping[str, Size] | Sequence[Size]
    networks: Sequence[str]
    cdroms: Sequence[str]
    usb: Sequence[str]
    firmware: str
    secure_boot: bool
    certificates: Sequence[str]
    tpm: bool
    hardware: str
    graphics: str
    spice: bool
    watchdog: str
    on_crash: str
    boot: Sequence[str]
    confidential: str
    command_line: str
    user_data: str
    ssh_keys: Sequence[str]
    seed: bool
    directories: Sequence[str]
    fuel: int
    deadline: float | str
    volumes: Mapping[str, str] | Sequence[str]
    template: str
    cold: bool


# What goes to the board as it is.
_BOARD = (
    *("firmware", "secure_boot", "tpm", "hardware", "graphics", "spice", "watchdog", "on_crash"),
    *("confidential", "command_line"),
)


def cores(value: Cores, *, field: str = "cpu") -> int:
    """Milli-cores. :raise Invalid: when *value* is no number of cores."""
    return parse_cpu(value if isinstance(value, str) else f"{value:f}", field=field)


def size(value: Size, *, field: str) -> int:
    """Bytes. :raise Invalid: when *value* is no size."""
    return value if isinstance(value, int) else parse_size(value, field=field)


def memory(value: Size) -> dict[str, int | None]:
    """The fields of a spec that *value* says. :raise Invalid: when it is no size, and no floor and ceiling."""
    return {"memory": value} if isinstance(value, int) else memory_range.parse(value)


def instance(image: str, wishes: Wishes, *, power: Power = Power.RUNNING) -> InstanceCreate:
    """The request that *wishes* are.

    :raise Invalid: when one of them is not understood; names the field.
    """
    spec: dict[str, Any] = {"image": image, "power": power}
    given: dict[str, Any] = {**wishes}
    for name in (
        "isolation",
        "working_directory",
        "user",
        "hostname",
        "pids",
        "cpu_pin",
        "priority",
        "stop_signal",
        "stdin",
        "terminal",
        "remove_on_exit",
        "fuel",
        "template",
        "cold",
    ):
        if name in given:
            spec[name] = given[name]
    for name in ("command", "entrypoint"):
        if name in given:
            if isinstance(given[name], str):
                raise Invalid(f"{name} is one string", hint='give a list of words: ["uname", "-r"]', field=name)
            spec[name] = list(given[name])
    if "environment" in given:
        spec["environment"] = dict(given["environment"])
    for name in ("cpu", "cpu_guarantee"):
        if name in given:
            spec[name] = cores(given[name], field=name)
    if "memory" in given:
        spec |= memory(given["memory"])
    for name in ("disk", "huge_pages"):
        if name in given:
            spec[name] = size(given[name], field=name)
    for name in ("stop_timeout", "deadline"):
        if name in given:
            spec[name] = seconds(given[name], field=name)
    if "restart" in given:
        spec["restart"] = restart(given["restart"])
    spec |= _machine(wishes)
    network = wishes.get("network", "default")
    spec["nics"] = (
        []
        if network == "none"
        else [
            Nic(
                network=network,
                address=wishes.get("address", ""),
                publish=[publish(text) for text in wishes.get("publish", ())],
                rate_in=rate(wishes.get("rate_in"), field="rate_in"),
                rate_out=rate(wishes.get("rate_out"), field="rate_out"),
            )
        ]
    )
    spec["nics"] += [Nic(network=further) for further in wishes.get("networks", ())]
    body = {"name": wishes.get("name"), "labels": dict(wishes.get("labels", {})), "spec": spec}
    try:
        # Through the same rules as on the other side, so that a wrong type is found where it was written.
        return msgspec.convert(msgspec.to_builtins(body), InstanceCreate)
    except msgspec.ValidationError as error:
        raise Invalid(f"the instance cannot be asked for: {error}") from error


def _machine(wishes: Wishes) -> dict[str, Any]:
    """What *wishes* say of a machine's hardware, its seed, and a module's surroundings."""
    given: dict[str, Any] = {**wishes}
    made: dict[str, Any] = {
        "cdroms": machine.numbered("cdrom", "image", wishes.get("cdroms", ())),
        "usb": machine.numbered("usb", "device", [machine.usb(text) for text in wishes.get("usb", ())]),
        "directories": [machine.directory(text, str(Path.cwd())) for text in wishes.get("directories", ())],
        "disks": _disks(wishes.get("disks", ())),
        "volumes": _volumes(wishes.get("volumes", ())),
    }
    board: dict[str, Any] = {name: given[name] for name in _BOARD if name in given}
    board |= {"certificates": [machine.certificate(text, "a text") for text in wishes.get("certificates", ())]}
    board["boot"] = list(wishes.get("boot", ()))
    board["secure_boot"] = bool(board["certificates"]) or board.get("secure_boot", False)
    made["board"] = machine.secured({name: value for name, value in board.items() if value not in ([], False)})
    keys = [key for text in wishes.get("ssh_keys", ()) for key in machine.public_keys(text, "a key")]
    seed = {"user_data": wishes.get("user_data", ""), "ssh_keys": keys}
    made["seed"] = {name: value for name, value in seed.items() if value}
    if not wishes.get("seed", True):
        if made["seed"]:
            raise Invalid("there is something for cloud-init, and no seed to tell it with", hint="leave out seed=False")
        made["seed"] = {"enabled": False}
    return {name: value for name, value in made.items() if value}


def _disks(wanted: Mapping[str, Size] | Sequence[Size]) -> list[dict[str, object]]:
    pairs = wanted.items() if isinstance(wanted, Mapping) else [(f"disk{n}", of) for n, of in enumerate(wanted, 1)]
    return [{"name": name, "size": size(measure, field="disks")} for name, measure in pairs]


def _volumes(wanted: Mapping[str, str] | Sequence[str]) -> list[dict[str, object]]:
    texts = (
        [f"{name}:{place}" if place else name for name, place in wanted.items()]
        if isinstance(wanted, Mapping)
        else wanted
    )
    return [machine.volume(text) for text in texts]


def restart(text: str) -> RestartPolicy:
    """``no``, ``always``, ``unless-stopped``, ``on-failure`` or ``on-failure:N``. :raise Invalid: when *text* is none."""
    mode, _, count = text.partition(":")
    if mode not in list(RestartMode) or (count and (mode != RestartMode.ON_FAILURE or not count.isdecimal())):
        raise Invalid(
            f"{text!r} is not a restart policy", hint="one of no, always, unless-stopped, on-failure:N", field="restart"
        )
    return RestartPolicy(mode=RestartMode(mode), retries=int(count or 0))


def publish(text: str) -> Publish:
    """``[IP:]HOST:PORT[/udp]``, or ``PORT``. :raise Invalid: when *text* is none."""
    from lamella.client.ports import parse

    address, host_port, port, protocol = parse(text)
    made = Publish(port=port, host_port=host_port, protocol=protocol)
    if address:
        made.host_address = address
    return made


def rate(value: int | str | None, *, field: str) -> int | None:
    """Bits a second. :raise Invalid: when *value* is no rate."""
    return bit_rate.parse(value, field=field) if isinstance(value, str) else value


def seconds(value: float | str, *, field: str) -> float:
    """Seconds. :raise Invalid: when *value* is no duration."""
    return parse_duration(value, field=field) if isinstance(value, str) else float(value)
