"""All commands: where each lives and what it does, in one line. Nothing here imports them."""

_SECTIONS: dict[str, list[tuple[str, str, str]]] = {
    "Instances": [
        ("run", "run", "make an instance from an image and run a command in it"),
        ("create", "run", "make an instance and do not start it"),
        ("ps", "ps", "list instances"),
        ("show", "ps", "show all that is known of an instance"),
        ("exec", "exec", "run a command in a running instance"),
        ("shell", "exec", "open a shell in a running instance"),
        ("logs", "logs", "show what an instance has printed"),
        ("cp", "copy", "copy files between here and an instance"),
        ("top", "top", "watch what instances use"),
        ("set", "set", "change an instance's size, restart policy or labels"),
        ("start", "lifecycle", "start instances"),
        ("stop", "lifecycle", "stop instances: a signal first, force after the timeout"),
        ("restart", "lifecycle", "stop and start instances"),
        ("kill", "lifecycle", "send a signal to instances"),
        ("pause", "lifecycle", "freeze instances where they are"),
        ("suspend", "lifecycle", "write instances' memory down and end them, to go on later"),
        ("resume", "lifecycle", "let paused and suspended instances go on"),
        ("fork", "fork", "make copies of a running instance that go on where it is"),
        ("rm", "lifecycle", "remove instances"),
    ],
    "Templates": [
        ("template ls", "template", "list templates, and how many copies of each wait"),
        ("template show", "template", "show a template, and what stands in its way"),
        (
            "template create",
            "template",
            "boot an image once, warm it up and freeze it, for instances to begin as copies",
        ),
        ("template set", "template", "change how many copies wait, or what it is made of"),
        ("template rebuild", "template", "make templates anew"),
        ("template rm", "template", "remove templates; copies that run live on"),
    ],
    "Machines": [
        ("console", "screen", "sit at a machine's serial console"),
        ("desktop", "desktop", "show a machine's screen in a viewer"),
        ("screenshot", "screen", "take a picture of a machine's screen"),
        ("type", "screen", "type at a machine, press its keys, click on its screen"),
        ("reset", "lifecycle", "press machines' reset buttons"),
        ("dump", "screen", "write a machine's memory to a file"),
        ("device ls", "device", "list what is plugged into an instance"),
        ("device attach", "device", "plug a disk, a NIC, a CD or a USB device in"),
        ("device detach", "device", "take a device out"),
    ],
    "What is promised, and why": [
        ("contract", "contract", "what isolates an instance, or (--compare) what each level promises"),
        ("explain", "contract", "how an instance came to be as it is, or (--why-not) what a level lacks"),
        ("events", "events", "what happened"),
        ("doctor", "doctor", "what this layer can do here, and what stands in its way"),
    ],
    "Images": [
        ("image ls", "image", "list images"),
        ("image show", "image", "show an image"),
        ("image build", "image", "build an image of a distribution from its packages"),
        ("image pull", "image", "fetch an image from a registry"),
        ("image import", "image", "import a disk, a CD, a WebAssembly module, a kernel, an OCI layout or a tar"),
        ("image export", "image", "write an image's disk to a file"),
        ("image rm", "image", "forget an image's name"),
        ("image gc", "image", "free what no image and no instance uses"),
    ],
    "Storage": [
        ("volume ls", "volume", "list volumes"),
        ("volume show", "volume", "show a volume"),
        ("volume create", "volume", "make a volume, empty or as a clone"),
        ("volume set", "volume", "change what bounds a volume, at once, or its labels"),
        ("volume resize", "volume", "grow a volume, or shrink it where nothing is lost"),
        ("volume attach", "volume", "give a volume to an instance"),
        ("volume detach", "volume", "take a volume out of an instance"),
        ("volume rename", "volume", "call a volume something else"),
        ("volume unlock", "volume", "open an encrypted volume with its passphrase"),
        ("volume rekey", "volume", "give an encrypted volume another key"),
        ("volume import", "transfer", "make a volume of a disk in a file"),
        ("volume export", "transfer", "write a volume, or a snapshot of one, to a file"),
        ("volume move", "transfer", "move a volume to another pool while it is used"),
        ("volume tier", "transfer", "move a volume by how it is used"),
        ("volume rm", "volume", "remove volumes"),
        ("snapshot ls", "snapshot", "list snapshots"),
        ("snapshot show", "snapshot", "show a snapshot"),
        ("snapshot create", "snapshot", "keep what a volume, or all of an instance with its memory, is now"),
        ("snapshot restore", "snapshot", "make volumes, or an instance with its memory, what they were"),
        ("snapshot rm", "snapshot", "merge snapshots away"),
        ("pool ls", "pool", "list pools"),
        ("pool show", "pool", "show a pool"),
        ("pool create", "pool", "make a pool for volumes to lie in"),
        ("pool set", "pool", "change when a pool warns"),
        ("pool scrub", "pool", "read all of a pool and compare"),
        ("pool rm", "pool", "forget pools; what lies there stays"),
        ("backup ls", "backup", "list backups"),
        ("backup show", "backup", "show a backup"),
        ("backup create", "backup", "back up a volume, an instance's volumes or the layer itself"),
        ("backup verify", "backup", "check a repository, restore samples and compare"),
        ("backup restore", "backup", "make a volume from a backup"),
        ("backup mount", "backup", "show a backup's files in a directory of the host"),
        ("backup unmount", "backup", "end that"),
        ("backup rm", "backup", "forget backups"),
        ("backup prune", "backup", "forget what no policy keeps, and give back the room"),
        ("backup policy ls", "backup", "list what is backed up by itself"),
        ("backup policy show", "backup", "show a policy"),
        ("backup policy set", "backup", "back a volume up by itself"),
        ("backup policy rm", "backup", "do so no more"),
        ("backup repository ls", "backup", "list repositories"),
        ("backup repository show", "backup", "show a repository"),
        ("backup repository create", "backup", "make a place for backups, or open one with its recovery key"),
        ("backup repository rm", "backup", "forget a repository; what lies there stays"),
        ("recover", "backup", "bring a layer back on a bare machine, from a repository alone"),
        ("replication ls", "replication", "list what is kept a second time"),
        ("replication show", "replication", "show how far a replica is"),
        ("replication create", "replication", "keep a volume in a second pool, too"),
        ("replication pause", "replication", "let a replica fall behind"),
        ("replication resume", "replication", "let a replica catch up, and keep it so"),
        ("replication promote", "replication", "have a replica take its source's place"),
        ("replication rm", "replication", "end replications"),
        ("fsck", "pool", "check volumes against what is known of them"),
    ],
    "Networks": [
        ("network ls", "network", "list networks"),
        ("network show", "network", "show a network, and who is on it"),
        ("network create", "network", "make a network for instances to be on"),
        ("network set", "network", "let a network's instances out, or keep them in"),
        ("network rm", "network", "remove networks"),
        ("network trace", "network", "say what becomes of a packet, and why"),
        ("network capture", "network", "write what passes an instance's NIC to a file"),
        ("network mirror", "network", "send a copy of what passes an instance's NIC to another"),
        ("balancer ls", "balancer", "list balancers"),
        ("balancer show", "balancer", "show where a balancer listens, and how its backends are"),
        ("balancer create", "balancer", "make one address stand for many instances"),
        ("balancer set", "balancer", "change whom a balancer leads to, and let backends drain"),
        ("balancer rm", "balancer", "remove balancers"),
        ("router ls", "router", "list routers"),
        ("router show", "router", "show what a router joins, and where it leads"),
        ("router create", "router", "join networks, and lead out of them"),
        ("router set", "router", "change a router's networks, uplink and routes, at once"),
        ("router rm", "router", "remove routers"),
        ("address ls", "address", "list floating addresses, and whom they lead to"),
        ("address show", "address", "show one of them"),
        ("address create", "address", "take an address from outside for an instance"),
        ("address attach", "address", "have an address lead to an instance"),
        ("address detach", "address", "have addresses lead to nobody"),
        ("address rm", "address", "give addresses back"),
        ("firewall ls", "firewall", "list firewalls"),
        ("firewall show", "firewall", "show what a firewall lets pass, and whom it guards"),
        ("firewall create", "firewall", "say what may come in to instances, and go out of them"),
        ("firewall set", "firewall", "change a firewall's rules, at once"),
        ("firewall attach", "firewall", "guard an instance"),
        ("firewall detach", "firewall", "guard it no more"),
        ("firewall default", "firewall", "say what guards new instances that name no firewall"),
        ("firewall rm", "firewall", "remove firewalls"),
        ("port ls", "network", "list the places that instances have on networks"),
        ("port show", "network", "show one of them"),
    ],
    "Other nouns": [
        *(
            (f"{noun} {verb}", "nouns", summary)
            for noun, plural in (
                ("host", "hosts"),
                ("operation", "long changes"),
                ("project", "projects"),
            )
            for verb, summary in (("ls", f"list {plural}"), ("show", f"show one of the {plural}"))
        ),
        ("host set", "policy", "say how far a host is promised, and what its instances share"),
        ("host topology", "host", "show a host's sockets, NUMA nodes, caches, cores and huge pages"),
    ],
    "This command": [
        ("version", "doctor", "versions of this command and of the daemon"),
        ("completion", "completion", "print a completion script for bash, zsh or fish"),
    ],
}

MODULES = {name: module for section in _SECTIONS.values() for name, module, _ in section}
SUMMARIES = {name: summary for section in _SECTIONS.values() for name, _, summary in section}
NOUNS = tuple(dict.fromkeys(name.partition(" ")[0] for name in MODULES if " " in name))


def overview(noun: str = "") -> str:
    """The help of ``lamella``, or of one noun."""
    lines = ["usage: lamella [--host URL] [--project NAME] COMMAND ...", ""]
    for title, section in _SECTIONS.items():
        shown = [(name, summary) for name, _, summary in section if not noun or name.startswith(f"{noun} ")]
        if not noun and title == "Other nouns":
            nouns = dict.fromkeys(name.partition(" ")[0] for name, _ in shown)
            rest = [(key, summary) for key, summary in shown if key.partition(" ")[2] not in ("ls", "show")]
            shown = [(f"{name} ls|show", summary) for name in nouns for key, summary in shown if key == f"{name} ls"]
            shown += rest
        if shown:
            lines += [f"{title}:", *(f"  {name:<24} {summary}" for name, summary in shown), ""]
    lines += ["`lamella COMMAND --help` says what a command takes.", ""]
    return "\n".join(lines)


def nearest(name: str) -> str:
    """The command that *name* was perhaps meant to be; empty when none is near."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(name, MODULES, n=1, cutoff=0.6)), "")
