"""The configuration of haproxy for listeners of HTTP, computed from values alone (haproxy 2.6, configuration.txt)."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from lamella.host.network.balance.desired import Backend, DesiredBalancer, Rule
from lamella.model.balancer import Listener

# Its user and group while it serves. No instance has this id: their ranges begin above it (control/addressing.py).
USER = 0x6FFF_FF02
# No listener takes more of all connections than one in so many.
_SHARES = 4
# Who asked is what haproxy saw, not what a client says.
_FORGED = ("X-Forwarded-For", "Forwarded")


class Place(msgspec.Struct, kw_only=True, frozen=True):
    """Where haproxy lives on this host: *room* is an empty directory that it cannot leave; how many connections it may have at once."""

    room: Path
    pidfile: Path
    connections: int


def speaks_http(listener: Listener) -> bool:
    return listener.protocol in ("http", "https")


def configuration(
    balancers: Iterable[DesiredBalancer],
    up: Callable[[str, Backend], bool],
    certificates: Mapping[str, Path],
    place: Place,
) -> str:
    """All of it; empty when nobody wants HTTP. A listener of HTTPS whose certificate (by the balancer's id) is not there is left out."""
    balancers = sorted(balancers, key=lambda balancer: balancer.id)
    parts: list[str] = []
    for balancer in balancers:
        for number, listener in enumerate(balancer.listeners):
            if not speaks_http(listener) or (listener.protocol == "https" and balancer.id not in certificates):
                continue
            takers = [
                backend
                for backend in balancer.backends
                if backend.listener == number and not backend.draining and up(balancer.id, backend)
            ]
            parts.append(_listener(balancer, listener, f"{balancer.id}_{listener.port}", takers, certificates))
    if not parts:
        return ""
    patience = max(int(balancer.drain * 1000) for balancer in balancers)
    return _frame(place, patience) + "".join(parts)


def _frame(place: Place, patience: int) -> str:
    return f"""global
    chroot {place.room}
    uid {USER}
    gid {USER}
    pidfile {place.pidfile}
    maxconn {place.connections}
    hard-stop-after {max(patience, 1)}ms
    ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
    mode http
    maxconn {max(place.connections // _SHARES, 1)}
    option forwardfor
    option redispatch
    retries 2
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    timeout http-request 10s
    timeout queue 5s
"""


def _listener(
    balancer: DesiredBalancer,
    listener: Listener,
    name: str,
    takers: list[Backend],
    certificates: Mapping[str, Path],
) -> str:
    secure = f" ssl crt {certificates[balancer.id]} alpn h2,http/1.1" if listener.protocol == "https" else ""
    lines = [f"frontend {name}", f"    bind {balancer.address}:{listener.port}{secure}"]
    lines += [f"    http-request del-header {name}" for name in _FORGED]
    lines.append(f"    http-request set-header X-Forwarded-Proto {listener.protocol}")
    rules = sorted({backend.rule for backend in balancer.backends}, key=_first)
    names = {rule: f"{name}_{number}" for number, rule in enumerate(rules)}
    for rule in rules:
        condition = _condition(rule)
        lines.append(
            f"    use_backend {names[rule]} if {condition}" if condition else f"    default_backend {names[rule]}"
        )
    for rule in rules:
        lines += [f"backend {names[rule]}", f"    balance {'source' if balancer.source else 'roundrobin'}"]
        servers = sorted({(one.address, one.port) for one in takers if one.rule == rule})
        lines += [f"    server {address}:{port} {address}:{port}" for address, port in servers]
    return "".join(f"{line}\n" for line in lines)


def _first(rule: Rule) -> tuple[bool, int, str, str]:
    """The most particular one decides: a host before any host, then the longest path."""
    return not rule.host, -len(rule.path), rule.host, rule.path


def _condition(rule: Rule) -> str:
    """All that it says has to be; a path is one and all below it."""
    words: list[str] = []
    if rule.host:
        words.append(f"{{ hdr(host),host_only -i -- {rule.host} }}")
    if not rule.path:
        return " ".join(words)
    return " or ".join(" ".join([*words, f"{{ path{kind} }}"]) for kind in (f" {rule.path}", f"_beg {rule.path}/"))
