"""Where the driver keeps what it has of one instance. ``run`` holds what dies with a boot, ``state`` the log."""

from lamella.host.compute.driver import Home

LOG_BOUND = 8 << 20


class Places:
    """Folders of all containers of one layer."""

    def __init__(self, home: Home) -> None:
        self.instances = home.run / "oci"
        self.exits = home.run / "oci-exits"
        self.runtime = home.run / "oci-runtime"
        self.logs = home.state / "oci-logs"

    def make(self) -> None:
        for place in (self.instances, self.exits, self.runtime, self.logs):
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Bundles may be stepped into, if LAMELLA_HOME lets anybody come so far; what is secret in them is closed by itself.
        self.instances.chmod(0o711)

    def ids(self) -> set[str]:
        """Every instance of which anything is left, known by the shape of its name."""
        found: set[str] = set()
        for place in (self.instances, self.exits, self.runtime, self.logs):
            if place.is_dir():
                found.update(entry.name for entry in place.iterdir() if entry.name.startswith("inst_"))
        # conmon writes NAME.XXXXXX and renames it; a half-written exit file names the instance all the same.
        return {name.partition(".")[0] for name in found}

    def of(self, id: str) -> "Place":
        return Place(self, id)


class Place:
    """Paths of one instance."""

    def __init__(self, places: Places, id: str) -> None:
        self.id = id
        self.bundle = places.instances / id
        self.config = self.bundle / "config.json"
        self.machine = self.bundle / "machine.json"
        self.rootfs = self.bundle / "rootfs"
        self.lowers = self.bundle / "lowers"
        self.etc = self.bundle / "etc"
        self.volumes = self.bundle / "volumes"
        self.user_namespace = self.bundle / "ns-user"
        self.net_namespace = self.bundle / "ns-net"
        self.shim_pid = self.bundle / "conmon.pid"
        self.pid = self.bundle / "container.pid"
        self.started = self.bundle / "started"
        self.execs = self.bundle / "exec"
        self.control = self.bundle / "ctl"
        self.exit = places.exits / id
        self.runtime = places.runtime / id
        self.start_fifo = self.runtime / "exec.fifo"
        self.log = places.logs / id
