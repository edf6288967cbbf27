"""What an instance is told of itself, computed from values alone.

In the forms of EC2 (with tokens or without; "Use instance metadata" in its user guide) below ``/latest`` and dated versions, and of NoCloud
(cloud-init's documentation) below ``/nocloud``. Whatever ends with a slash is a list of names.
"""

import re
from collections.abc import Mapping
from ipaddress import IPv4Interface

import msgspec

from lamella.host.network.driver import DesiredNetwork, Resident
from lamella.host.network.services import tokens
from lamella.host.network.services.plan import DOMAIN, label

_TTL = "x-aws-ec2-metadata-token-ttl-seconds"
_TOKEN = "x-aws-ec2-metadata-token"
_VERSIONS = ("1.0", "2009-04-04", "2016-09-02", "2018-09-24", "2021-03-23", "latest")

Tree = dict[str, "Tree | str"]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Names of *headers* are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str] = {}


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    status: int = 200
    body: str = ""
    headers: Mapping[str, str] = {}


def answer(request: Request, network: DesiredNetwork, resident: Resident, key: bytes, now: int) -> Answer:
    """What *resident* of *network* gets. *key* signs tokens, *now* is seconds since 1970."""
    path = "/" + re.sub(r"/+", "/", request.path.partition("?")[0]).lstrip("/")
    if path == "/latest/api/token":
        return _token(request, resident, key, now)
    if request.method not in ("GET", "HEAD"):
        return Answer(status=405, headers={"Allow": "GET, HEAD"})
    token = request.headers.get(_TOKEN)
    if token is not None and not tokens.good(key, resident.port.id, now, token):
        return Answer(status=401)
    return _find(tree(network, resident), path)


def _token(request: Request, resident: Resident, key: bytes, now: int) -> Answer:
    if request.method != "PUT":
        return Answer(status=405, headers={"Allow": "PUT"})
    if "x-forwarded-for" in request.headers:
        # A proxy inside that lets strangers in does not pass the token on to them.
        return Answer(status=403)
    asked = request.headers.get(_TTL, "")
    if re.fullmatch(r"[0-9]{1,5}", asked) is None or not 1 <= int(asked) <= tokens.LONGEST:
        return Answer(status=400)
    return Answer(body=tokens.issue(key, resident.port.id, now, int(asked)), headers={_TTL: asked})


def _find(tree: Tree, path: str) -> Answer:
    found: Tree | str = tree
    for name in path.strip("/").split("/"):
        if not name:
            continue
        if isinstance(found, str) or name not in found:
            return Answer(status=404)
        found = found[name]
    if isinstance(found, str):
        return Answer(body=found)
    return Answer(body="\n".join(_listed(found)))


def _listed(tree: Tree) -> list[str]:
    return [name if isinstance(below, str) else _titled(name, below) for name, below in tree.items()]


def _titled(name: str, below: Tree) -> str:
    """A key is listed as ``0=its name``, everything else as a directory."""
    return f"{name}=key-{name}" if "openssh-key" in below else f"{name}/"


def tree(network: DesiredNetwork, resident: Resident) -> Tree:
    """Everything that *resident* is told."""
    ec2: Tree = {
        "dynamic": {"instance-identity": {"document": _document(resident)}},
        "meta-data": _meta_data(network, resident),
    }
    if resident.user_data:
        ec2["user-data"] = resident.user_data
    nocloud: Tree = {
        "meta-data": _json(
            {
                "instance-id": resident.instance,
                "local-hostname": resident.hostname,
                "public-keys": list(resident.ssh_keys),
            }
        ),
        "user-data": resident.user_data,
        "vendor-data": "",
        "network-config": _network_config(network, resident),
    }
    return {**dict.fromkeys(_VERSIONS, ec2), "nocloud": nocloud}


def _meta_data(network: DesiredNetwork, resident: Resident) -> Tree:
    address = str(IPv4Interface(resident.port.address).ip)
    mac = resident.port.mac.lower()
    name = f"{'.'.join(label(part) for part in resident.name)}.{label(network.name)}.{DOMAIN}"
    found: Tree = {
        "ami-id": resident.image,
        "hostname": resident.hostname,
        "instance-id": resident.instance,
        "instance-type": resident.isolation,
        "local-hostname": resident.hostname,
        "local-ipv4": address,
        "mac": mac,
        "network": {
            "interfaces": {
                "macs": {
                    mac: {
                        "device-number": "0",
                        "interface-id": resident.port.id,
                        "local-hostname": name,
                        "local-ipv4s": address,
                        "mac": mac,
                        "subnet-id": network.id,
                        "subnet-ipv4-cidr-block": network.subnet,
                    }
                }
            }
        },
        "tags": {"instance": {"Name": resident.name[0], "Project": resident.project}},
    }
    if resident.ssh_keys:
        found["public-keys"] = {str(number): {"openssh-key": key} for number, key in enumerate(resident.ssh_keys)}
    return dict(sorted(found.items()))


def _document(resident: Resident) -> str:
    return _json(
        {
            "accountId": resident.project,
            "imageId": resident.image,
            "instanceId": resident.instance,
            "instanceType": resident.isolation,
            "privateIp": str(IPv4Interface(resident.port.address).ip),
            "version": "2017-09-30",
        }
    )


def _network_config(network: DesiredNetwork, resident: Resident) -> str:
    nic = {
        "match": {"macaddress": resident.port.mac.lower()},
        "set-name": "eth0",
        "dhcp4": False,
        "addresses": [resident.port.address],
        "gateway4": network.gateway,
        "mtu": network.mtu,
        "nameservers": {"addresses": [network.gateway]},
    }
    return _json({"version": 2, "ethernets": {"eth0": nic}})


def _json(content: dict[str, object]) -> str:
    """Every text of JSON is one of YAML."""
    return msgspec.json.encode(content).decode()
