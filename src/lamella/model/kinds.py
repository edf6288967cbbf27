"""The registry of kinds: which type a stored row of each kind has. Adding a kind is a line here, and no migration."""

from typing import Any

import msgspec

from lamella.model.backup import Backup, BackupPolicy, Repository
from lamella.model.balancer import Balancer
from lamella.model.firewall import Firewall
from lamella.model.host import Host
from lamella.model.image import Image
from lamella.model.instance import Instance
from lamella.model.network import Network, Port
from lamella.model.operation import Event, Operation, Project
from lamella.model.replication import Replication
from lamella.model.resource import Resource
from lamella.model.router import FloatingAddress, Router
from lamella.model.storage import Pool, Snapshot, Volume
from lamella.model.template import Template

AnyResource = Resource[Any, Any]

KINDS: dict[str, Any] = {
    "project": Project,
    "image": Image,
    "instance": Instance,
    "pool": Pool,
    "volume": Volume,
    "snapshot": Snapshot,
    "repository": Repository,
    "backup": Backup,
    "policy": BackupPolicy,
    "replication": Replication,
    "network": Network,
    "port": Port,
    "firewall": Firewall,
    "router": Router,
    "address": FloatingAddress,
    "balancer": Balancer,
    "template": Template,
    "host": Host,
    "operation": Operation,
    "event": Event,
}

# Kinds that belong to the layer, not to a tenant: they live in the project "default".
SHARED = frozenset({"project", "host", "pool"})


def plural(kind: str) -> str:
    """What many of them are called, in paths and sentences."""
    if kind.endswith("y"):
        return f"{kind[:-1]}ies"
    return f"{kind}es" if kind.endswith("s") else f"{kind}s"


def decode(kind: str, data: bytes) -> AnyResource:
    """The resource in JSON *data*, checked against its kind's types.

    :raise KeyError: when no kind is called so.
    :raise msgspec.ValidationError: when the data is not of that kind.
    """
    return _decoder(kind).decode(data)


_decoders: dict[str, msgspec.json.Decoder[Any]] = {}


def _decoder(kind: str) -> msgspec.json.Decoder[Any]:
    if kind not in _decoders:
        _decoders[kind] = msgspec.json.Decoder(KINDS[kind])
    return _decoders[kind]
