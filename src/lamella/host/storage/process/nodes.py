"""Names and options of block nodes: pure functions from a driver's node to what ``blockdev-add`` gets.

A node's name says whose it is and what it is (``fmt-<volume>-<layer>``, at most 31 characters, as QEMU wants), and depends on nothing
but the volume's id and the layer's file: after any crash the same layer has the same name.
"""

import hashlib
import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from lamella.host.storage.driver import Layer, Node

# How files are opened, the best first; a filesystem that refuses one is asked for the next.
CACHES: list[Node] = [
    {"aio": "io_uring", "cache": {"direct": True, "no-flush": False}},
    {"aio": "threads", "cache": {"direct": True, "no-flush": False}},
    {},
]
_FILES = ("file", "host_device")


def digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def tag(id: str) -> str:
    """What is in the name of every node of the volume *id*."""
    return digest(id, 8)


def key_of(node: Node) -> str:
    """What tells a layer from the others of its volume: its file, or all its options."""
    file: Any = node.get("file")
    while isinstance(file, dict) and "filename" not in file:
        # A filter, and what it filters.
        file = cast("Node", file).get("image", cast("Node", file).get("file"))
    name = cast("Node", file or {}).get("filename") or node.get("filename")
    plain = {key: value for key, value in node.items() if key != "backing"}
    return str(name) if name else json.dumps(plain, sort_keys=True)


def layer_name(id: str, key: str) -> str:
    """The name of the format node of *id*'s layer; *key* is its path, or what :func:`key_of` says."""
    return f"fmt-{tag(id)}-{digest(key, 12)}"


def named(id: str, node: Node, cache: Node, *, read_only: bool) -> Node:
    """*node* with a name at every level; only the uppermost layer is writable, and discards reach its file."""
    made = _plain(node, cache)
    made |= {"node-name": layer_name(id, key_of(node)), "read-only": read_only, "auto-read-only": False}
    if not read_only:
        made["discard"] = "unmap"
    for key, value in node.items():
        if key == "backing" and isinstance(value, dict):
            made[key] = named(id, cast("Node", value), cache, read_only=True)
        elif key == "children":
            # Of a quorum: the volume's own node, and what else is written with it.
            own, *others = cast("list[Node]", value)
            parts = [_part(id, f"child {n}", other, key_of(node), cache) for n, other in enumerate(others)]
            made[key] = [named(id, own, cache, read_only=read_only), *parts]
        elif isinstance(value, dict) and "driver" in value:
            made[key] = _part(id, key, cast("Node", value), key_of(node), cache)
            if node["driver"] == "raw" and made[key]["driver"] in _FILES and not read_only:
                made[key] = _alone(f"own-{tag(id)}-{digest(key + key_of(node), 12)}", made[key])
    return made


def _alone(name: str, file: Node) -> Node:
    """The lock that a raw file is opened with lets others write, for no node of ours minds; this one does (qcow2 does by itself)."""
    return {
        "driver": "blkdebug",
        "node-name": name,
        "image": file,
        "unshare-child-perms": ["write"],
        "discard": "unmap",
    }


def _part(id: str, path: str, node: Node, layer: str, cache: Node) -> Node:
    """What a layer stands on: a file, or a filter over one."""
    made = _plain(node, cache)
    made |= {"node-name": f"prt-{tag(id)}-{digest(path + layer, 12)}", "discard": "unmap"}
    for key, value in node.items():
        if isinstance(value, dict) and "driver" in value:
            made[key] = _part(id, f"{path}.{key}", cast("Node", value), layer, cache)
    return made


def _plain(node: Node, cache: Node) -> Node:
    """Without what is a layer's to say: a file is read-only as its format is, which a job may change for a while."""
    made: Node = {key: value for key, value in node.items() if not (isinstance(value, dict) and "driver" in value)}
    for key in ("read-only", "auto-read-only"):
        made.pop(key, None)
    for key in _secret_keys(node):
        made[key] = _secret_name(str(node[key]))
    return made | (cache if node["driver"] in _FILES else {})


def secret(id: str, key: bytes) -> dict[str, object]:
    """The object that holds *key*. A LUKS passphrase has to be text (UTF-8) for QEMU: it is the key in base 64."""
    return {"qom-type": "secret", "id": id, "format": "raw", "data": b64encode(key).decode()}


def secret_files(node: Node) -> Iterator[dict[str, object]]:
    """The objects that hold what a driver's node names by files (:data:`Node`)."""
    for key in _secret_keys(node):
        path = str(node[key])
        yield {"qom-type": "secret", "id": _secret_name(path), "format": "raw", "file": path}
    for value in node.values():
        for part in cast("list[Any]", value) if isinstance(value, list) else [value]:
            if isinstance(part, dict):
                yield from secret_files(cast("Node", part))


def _secret_keys(node: Node) -> list[str]:
    return [key for key in node if key.endswith("-secret")]


def _secret_name(path: str) -> str:
    return f"sec-{digest(path, 12)}"


def names(id: str, node: Node) -> set[str]:
    """Names of the layers of *node*."""
    return {layer_name(id, key_of(layer)) for layer in chain(node)}


def chain(node: Node) -> list[Node]:
    """The layers of *node*, the one that is written first."""
    found: list[Node] = []
    below: Any = node
    while isinstance(below, dict):
        found.append(cast("Node", below))
        # What of a quorum is the volume's own comes first.
        below = cast("Node", below).get("backing", next(iter(cast("Node", below).get("children", [])), None))
    return found


def paths(node: Node) -> list[str]:
    """Files of the layers, the one that is written first."""
    return [key_of(layer) for layer in chain(node)]


def layer_node(layer: Layer, backing: Node | None) -> Node:
    """The node of a layer over *backing*."""
    node: Node = {"driver": layer.format, "file": {"driver": "file", "filename": str(layer.path), "locking": "auto"}}
    return node | {"backing": backing} if layer.format == "qcow2" else node


def over(node: Node, layer: Layer) -> Node:
    """*node* with the new *layer* on top."""
    return layer_node(layer, node)


def without(node: Node, gone: Path) -> Node:
    """*node* after the layer in the file *gone* was merged into the one below it."""
    above = [layer for layer in chain(node) if key_of(layer) != str(gone)]
    made: Node | None = None
    for layer in reversed(above):
        plain = {key: value for key, value in layer.items() if key != "backing"}
        made = plain | {"backing": made} if "backing" in layer else plain
    assert made is not None, "a chain has a layer"
    return made


def files(node: Node) -> Iterator[Path]:
    """Files of this host that the node stands on."""
    for key, value in node.items():
        if key == "filename" and node.get("driver") in _FILES:
            yield Path(str(value))
        else:
            for part in cast("list[Any]", value) if isinstance(value, list) else [value]:
                if isinstance(part, dict):
                    yield from files(cast("Node", part))


def stays_raw(node: Node) -> bool:
    """Whether what lies below is raw, and will be while it is open: over a file a snapshot may put a layer at any moment."""
    while node["driver"] in ("raw", "blkdebug"):
        below = node.get("file", node.get("image"))
        if not isinstance(below, dict):
            return False
        node = cast("Node", below)
    # A quorum says that it let go of something, and does nothing.
    return node["driver"] not in ("file", "qcow2", "quorum")
