"""A network as a picture: the way out at the top, whoever is on it below."""

from lamella.cli.output import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lamella.cli.document import Document


def picture(network: "Document", around: "Mapping[str, Sequence[Document]]") -> "list[str]":
    """Lines. *around* is what there is of ``port``, ``instance``, ``firewall``, ``router``, ``balancer`` and ``address``, each may be
    absent."""
    id = network.text("id")
    by_id = {item.text("id"): item for kind in ("instance", "firewall") for item in around.get(kind, ())}
    floating = {item.text("spec", "port"): item.text("spec", "address") for item in around.get("address", ())}
    leaves = [
        *(
            _balancer(item)
            for item in sorted(around.get("balancer", ()), key=lambda item: item.text("name"))
            if item.text("spec", "network") == id
        ),
        *(
            _port(item, by_id, floating.get(item.text("id"), ""))
            for item in sorted(around.get("port", ()), key=lambda item: _order(item.text("spec", "address")))
            if item.text("spec", "network") == id
        ),
    ]
    routers = [
        item
        for item in sorted(around.get("router", ()), key=lambda item: item.text("name"))
        if any(each.string == id for each in item.each("spec", "networks"))
    ]
    head = (
        f"network {clean(network.text('name'))}  {clean(network.text('spec', 'subnet'))}  gateway "
        f"{clean(network.text('status', 'gateway'))}  MTU {network.integer('status', 'mtu') or network.integer('spec', 'mtu') or ''}"
    )
    lines = ["outside", *_way_out(network, routers), f"└─ {head}"]
    for number, leaf in enumerate(leaves or ["nobody is on it"], 1):
        lines.append(f"   {'└─' if number >= len(leaves) else '├─'} {leaf}")
    return lines


def _way_out(network: "Document", routers: "Sequence[Document]") -> "list[str]":
    if routers:
        return [
            f"│  by router {clean(item.text('name'))}"
            + (
                ", which translates source addresses"
                if item.flag("spec", "uplink")
                else ", to its other networks alone"
            )
            for item in routers
        ]
    if network.flag("spec", "isolated"):
        return ["×  isolated: nothing goes out"]
    return ["│  by the uplink, which translates source addresses"]


def _balancer(item: "Document") -> str:
    listeners = ", ".join(f"{each.text('protocol')}:{each.integer('port')}" for each in item.each("spec", "listeners"))
    return f"balancer {clean(item.text('name'))}  {clean(item.text('spec', 'address'))}  {clean(listeners)}"


def _port(item: "Document", by_id: "Mapping[str, Document]", floating: str) -> str:
    owner, address = item.text("spec", "owner"), item.text("spec", "address").partition("/")[0]
    instance = by_id.get(owner)
    words = [owner if instance is None else instance.text("name"), address]
    if instance is not None:
        words.append(f"{instance.text('spec', 'isolation')}, {instance.text('status', 'phase')}")
    guards = [
        by_id[each.string].text("name") if each.string in by_id else each.string
        for each in item.each("spec", "firewalls")
    ]
    if guards:
        words.append("firewall " + ", ".join(guards))
    published = [
        f"{each.integer('host_port') or 'any'}:{each.integer('port')}/{each.text('protocol')}"
        for each in item.each("spec", "publish")
    ]
    if published:
        words.append("published " + ", ".join(published))
    if floating:
        words.append(f"floating {floating}")
    return "  ".join(clean(word) for word in words)


def _order(address: str) -> "tuple[int, ...]":
    return tuple(int(part) for part in address.partition("/")[0].split(".") if part.isdigit())
