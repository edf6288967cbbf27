"""From what a person types to the spec of an instance: ports, variables, labels, restart policies, sizes."""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from lamella.cli.parser import Options, Parser
    from lamella.model.errors import Invalid

    Json = dict[str, object]

RESTART = ("no", "always", "unless-stopped", "on-failure")


def _invalid(message: str, hint: str, field: str) -> "Invalid":
    from lamella.model.errors import Invalid

    return Invalid(message, hint=hint, field=field)


def publish(text: str) -> "Json":
    """A published port: ``[IP:]HOST:PORT[/udp]``; ``PORT`` alone lets the layer choose the host's.

    :raise Invalid: when *text* is none.
    """
    from lamella.client.ports import parse

    address, outside, inside, protocol = parse(text)
    made: Json = {"port": inside, "host_port": outside, "protocol": protocol}
    return {**made, "host_address": address} if address else made


def variables(texts: "list[str]", files: "list[str]", here: "Mapping[str, str] | None" = None) -> dict[str, str]:
    """The environment of *files* with *texts* over it: ``KEY=VALUE``, or ``KEY`` to take it from *here* when it is set there.

    :raise Invalid: when one has no name.
    :raise OSError: when a file cannot be read.
    """
    outer = os.environ if here is None else here
    found: dict[str, str] = {}
    lines: list[str] = []
    for name in files:
        with open(name, encoding="utf-8") as file:  # noqa: PTH123 - pathlib is slow to import
            lines += [line.strip() for line in file]
    for text in [*(line for line in lines if line and not line.startswith("#")), *texts]:
        key, equals, value = text.partition("=")
        if not key or "\0" in text:
            raise _invalid(f"{text!r} is not a variable", "write it like KEY=VALUE, or KEY to pass yours on", "env")
        if equals:
            found[key] = value
        elif key in outer:
            found[key] = outer[key]
    return found


def labels(texts: "list[str]") -> dict[str, str]:
    """Labels from ``KEY=VALUE``; ``KEY`` alone has an empty value.

    :raise Invalid: when one has no key.
    """
    found: dict[str, str] = {}
    for text in texts:
        key, _, value = text.partition("=")
        if not key:
            raise _invalid(f"{text!r} is not a label", "write it like KEY=VALUE", "label")
        found[key] = value
    return found


def label_changes(texts: "list[str]") -> "dict[str, str | None]":
    """Labels to set, from ``KEY=VALUE``, and to take away (``None``), from ``KEY-``.

    :raise Invalid: when one has no key.
    """
    gone = [text for text in texts if text.endswith("-") and "=" not in text]
    return {**labels([text for text in texts if text not in gone]), **{text[:-1]: None for text in gone}}


def restart(text: str) -> "Json":
    """A restart policy: ``no``, ``always``, ``unless-stopped``, ``on-failure`` or ``on-failure:N``.

    :raise Invalid: when *text* is none.
    """
    mode, colon, count = text.partition(":")
    counted = count.isascii() and count.isdigit() and len(count) <= 7 and mode == "on-failure"
    if mode not in RESTART or (colon and not counted):
        raise _invalid(
            f"{text!r} is not a restart policy",
            "one of no, always, unless-stopped, on-failure, on-failure:N",
            "restart",
        )
    return {"mode": mode, "retries": int(count or 0)}


def sizes(options: "Options") -> "Json":
    """What ``--cpu``, ``--memory``, ``--pids`` and the options of guarantees ask for; ``none`` takes one away.

    :raise Invalid: when one is no quantity.
    """
    made: Json = {}
    cores = (("cpu", options.cpu, "cpu"), ("cpu_guarantee", options.cpu_guarantee, "cpu-guarantee"))
    for name, text, option in cores:
        if text is not None:
            from lamella.model.quantity import parse_cpu

            made[name] = None if text == "none" else parse_cpu(text, field=option)
    if options.memory is not None:
        from lamella.model import memory_range

        made |= memory_range.parse(options.memory)
    if options.cpu_pin or options.no_cpu_pin:
        if options.cpu_pin and options.no_cpu_pin:
            raise _invalid("--cpu-pin and --no-cpu-pin contradict each other", "leave one of them out", "cpu-pin")
        made["cpu_pin"] = options.cpu_pin
    if options.priority is not None:
        made["priority"] = options.priority
    if options.pids is not None:
        made["pids"] = options.pids
    return made


def size_options(parser: "Parser") -> None:
    """Add the options of :func:`sizes`."""
    parser.option("--cpu", metavar="CORES", help="ceiling in cores: 2, 1.5 or 250m")
    parser.option("--cpu-guarantee", metavar="CORES", help="what it gets whatever others do (none)")
    parser.option("--cpu-pin", action="store_true", help="its --cpu are whole cores that nobody else has")
    parser.option("--no-cpu-pin", action="store_true", help="give them back")
    parser.option("-m", "--memory", metavar="SIZE", help="ceiling: 512MiB; or floor and ceiling: 1GiB..4GiB, ..4GiB")
    parser.option(
        "--priority",
        choices=("low", "normal", "high"),
        metavar="LEVEL",
        help="low gives way first, then normal, then high",
    )
    parser.option("--pids", type=int, metavar="N", help="most processes at once (4096)")


SCRATCH = "scratch"  # the image of nothing, as docker calls it


def check_image(options: "Options") -> None:
    """Fill in image and isolation where they may be left out: of a machine that boots from a CD, of a copy of a template, whose words are
    all its command's.

    :raise Invalid: when there is nothing to run, or what a copy has of its template is asked for.
    """
    if options.template is not None:
        if options.no_template:
            raise _invalid("--template and --no-template contradict each other", "leave one of them out", "template")
        if options.isolation is not None and options.isolation == "container":
            raise _invalid(
                "no template is a container", "leave --isolation out: a copy has its template's", "isolation"
            )
        if options.image is not None:
            options.rest = [options.image, *options.rest]
            options.image = None
        return
    options.isolation = options.isolation or "container"
    if options.image is None and options.iso:
        options.image = SCRATCH
    if options.image is None:
        raise _invalid(
            "there is no image to run", "name one: lamella run debian:12; or a CD: --iso installer.iso", "image"
        )


def instance(options: "Options") -> "Json":
    """The spec that the options of ``run`` and ``create`` ask for, less ``power``.

    :raise Invalid: when one of them is not understood, or two contradict each other.
    """
    from lamella.cli import machine, rates

    check_image(options)
    spec: Json = {**_origin(options), **sizes(options)}
    command: list[str] = options.rest
    entrypoint: str | None = options.entrypoint
    if entrypoint is not None:
        spec["entrypoint"] = [entrypoint] if entrypoint else []
    if command or entrypoint is not None:
        # Another entrypoint drops the image's command, as docker has it.
        spec["command"] = command
    environment = variables(options.env, options.env_file)
    if options.tty and "TERM" not in environment:
        environment["TERM"] = os.environ.get("TERM") or "xterm"
    policy = restart(options.restart)
    if options.rm and policy["mode"] != "no":
        raise _invalid("--rm and --restart contradict each other", "leave one of them out", "restart")
    published = [publish(text) for text in options.publish]
    if options.network == "none" and published:
        raise _invalid("a port cannot be published without a network", "leave out --network none, or -p", "publish")
    held = rates.asked(options)
    for option, given in (
        ("address", options.address),
        ("address6", options.address6),
        ("firewall", options.firewall),
        ("rate-in", options.rate_in),
        ("rate-out", options.rate_out),
    ):
        if options.network == "none" and given:
            raise _invalid(
                f"there is no {option} without a network", f"leave out --network none, or --{option}", option
            )
    if options.network == "none" and options.nic:
        raise _invalid("--network none and --nic contradict each other", "leave one of them out", "nic")
    spec |= {
        "environment": environment,
        "nics": []
        if options.network == "none"
        else [
            {
                "network": options.network,
                "address": options.address,
                **({"address6": options.address6} if options.address6 else {}),
                "publish": published,
                "firewalls": options.firewall,
                **held,
            },
            *({"network": network} for network in options.nic),
        ],
        "restart": policy,
        "terminal": options.tty,
        "stdin": options.interactive,
        "remove_on_exit": options.rm,
    }
    named: Json = {
        "working_directory": options.workdir,
        "user": options.user,
        "hostname": options.hostname,
        "stop_signal": _signal(options.stop_signal),
    }
    spec |= {name: value for name, value in named.items() if value is not None}
    if options.stop_timeout is not None:
        from lamella.model.quantity import parse_duration

        spec["stop_timeout"] = parse_duration(options.stop_timeout, field="stop-timeout")
    return spec | machine.spec(options)


def _origin(options: "Options") -> "Json":
    if options.template is None:
        return {
            "image": options.image,
            "isolation": options.isolation,
            **({"cold": True} if options.no_template else {}),
        }
    return {"template": options.template, **({"isolation": options.isolation} if options.isolation else {})}


def _signal(text: "str | None") -> "str | None":
    return None if text is None else text.upper()
