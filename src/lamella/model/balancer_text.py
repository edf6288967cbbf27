"""Balancers as people write them: ``tcp:80``, ``label:role=web:8080``, ``w1:8080``, ``http:/healthz``."""

import msgspec

from lamella.model.balancer import Check, Listener, Target
from lamella.model.errors import Invalid

_TO = "write it like label:role=web:8080, label:role=web,tier=a, w1 or w1:8080"
_LISTEN = "write it like tcp:80, udp:53, http:80 or https:443"


def listener(text: str) -> Listener:
    """:raise Invalid: when *text* is none."""
    protocol, _, port = text.partition(":")
    if protocol not in ("tcp", "udp", "http", "https"):
        raise Invalid(f"{text!r} is nothing to listen to", hint=_LISTEN, field="listen")
    return Listener(protocol=protocol, port=_port(port, text, _LISTEN, "listen"))


def target(text: str) -> Target:
    """:raise Invalid: when *text* is none."""
    if text.startswith("label:"):
        words, _, port = text.removeprefix("label:").partition(":")
        labels: dict[str, str] = {}
        for word in words.split(","):
            key, equals, value = word.partition("=")
            if not key or not equals:
                raise Invalid(f"{word!r} in {text!r} is no label", hint=_TO, field="to")
            labels[key] = value
        return Target(labels=labels, port=_port(port, text, _TO, "to") if port else 0)
    name, colon, port = text.partition(":")
    if not name or (colon and not port):
        raise Invalid(f"{text!r} is nobody to lead to", hint=_TO, field="to")
    return Target(instance=name, port=_port(port, text, _TO, "to") if port else 0)


def route(text: str) -> Target:
    """A target of some requests: ``/api=label:role=api:8080``, ``www.example=w1``, ``www.example/api=w1:8080``.

    :raise Invalid: when *text* is none.
    """
    hint = "write it like /api=label:role=api:8080 or www.example/api=w1"
    where, equals, whom = text.partition("=")
    if not where or not equals:
        raise Invalid(f"{text!r} leads no requests anywhere", hint=hint, field="route")
    host, slash, path = where.partition("/")
    found = target(whom)
    try:
        return msgspec.convert({**msgspec.to_builtins(found), "host": host, "path": slash + path}, Target)
    except msgspec.ValidationError:
        raise Invalid(f"{where!r} in {text!r} is no host and no path", hint=hint, field="route") from None


def check(text: str) -> Check:
    """:raise Invalid: when *text* is none."""
    hint = "write it like tcp, http:/healthz or none"
    if text in ("tcp", "none"):
        return Check(kind=text)
    if text == "http" or text.startswith("http:/"):
        path = text.removeprefix("http").removeprefix(":") or "/"
        if not all("!" <= letter <= "~" for letter in path):
            raise Invalid(f"{path!r} is no path", hint=hint, field="check")
        return Check(kind="http", path=path)
    raise Invalid(f"{text!r} is no check", hint=hint, field="check")


def format_target(found: Target) -> str:
    """As :func:`target` reads it, or :func:`route`."""
    labels = ",".join(f"{key}={value}" for key, value in sorted(found.labels.items()))
    where = f"{found.host}{found.path}="
    return f"{where if where != '=' else ''}{f'label:{labels}' if labels else found.instance}{f':{found.port}' if found.port else ''}"


def format_check(found: Check) -> str:
    """As :func:`check` reads it."""
    return f"http:{found.path}" if found.kind == "http" else found.kind


def _port(text: str, whole: str, hint: str, field: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= 65535):
        raise Invalid(f"{text!r} in {whole!r} is no port", hint=hint, field=field)
    return int(text)
