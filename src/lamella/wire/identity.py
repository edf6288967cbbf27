"""Who is at the other end of a connection: what the kernel or a verified certificate says, never what the caller says.

A certificate of the layer carries one URI in its subjectAltName, ``urn:lamella:<role>:<name>``; a role is ``host`` or
``control``.
"""

import re
from typing import Any

import msgspec

from lamella.model.errors import Forbidden
from lamella.model.requests import Principal

ROLES = ("host", "control")
_URN = re.compile(r"urn:lamella:(host|control):([a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?)")


class Peer(msgspec.Struct, kw_only=True, frozen=True):
    """What a transport proved: a Unix socket's credentials (``uid``, ``gid``), or a certificate's role and name."""

    uid: int | None = None
    gid: int | None = None
    role: str = ""
    name: str = ""


def urn(role: str, name: str) -> str:
    """The URI that a certificate of *role* and *name* carries."""
    return f"urn:lamella:{role}:{name}"


def peer_of_certificate(certificate: dict[str, Any] | None) -> Peer | None:
    """Who a verified certificate (``SSLObject.getpeercert()``) names; ``None`` when it is not one of ours."""
    names: tuple[tuple[str, str], ...] = (certificate or {}).get("subjectAltName", ())
    found = [match for kind, value in names if kind == "URI" and (match := _URN.fullmatch(value)) is not None]
    return Peer(role=found[0][1], name=found[0][2]) if len(found) == 1 else None


def require(peer: Peer | None, role: str) -> str:
    """The name of *peer*, when its certificate is for *role*.

    :raise Forbidden: otherwise.
    """
    if peer is None or peer.role != role:
        raise Forbidden(
            f"only a {role} of this layer may ask this", hint=f"use a certificate that was issued for a {role}"
        )
    return peer.name


def principal_of(peer: Peer) -> Principal:
    """A certificate's owner as one who asks."""
    return Principal(name=f"{peer.role}:{peer.name}", kind=peer.role)
