"""Which level can have which volume how, and what a new volume may ask for. Pure."""

from lamella.model.errors import Invalid, NoRoom, Unsupported
from lamella.model.instance import InstanceSpec, Isolation
from lamella.model.quantity import format_size
from lamella.model.storage import Feature, KeyWrap, Pool, Volume, VolumeForm, VolumeMount, VolumeSpec

# Levels whose volumes are directories of the host, mounted there; they can share one.
DIRECTORIES = frozenset({Isolation.CONTAINER, Isolation.WASM})
SMALLEST = 1 << 20
_GRAIN = 4096


def check_mounts(spec: InstanceSpec) -> None:
    """What the mounts of *spec* say of themselves fits together, and the level.

    :raise Invalid: when two mounts are of one volume or at one place, or a target is no absolute path.
    :raise Unsupported: when the level cannot have one so.
    """
    names: set[str] = set()
    targets: set[str] = set()
    for mount in spec.volumes:
        if mount.volume in names:
            raise Invalid(f"volume {mount.volume} is there twice", hint="mount it once", field="spec.volumes")
        names.add(mount.volume)
        if mount.target:
            place = _place(mount.target)
            if place in targets:
                raise Invalid(
                    f"two volumes are mounted at {place}", hint="give each a place of its own", field="spec.volumes"
                )
            targets.add(place)
        if spec.isolation in DIRECTORIES and not mount.target:
            raise Unsupported(
                f"a {spec.isolation} has no bare disks: volume {mount.volume} needs a place where it is mounted",
                hint=f"--volume {mount.volume}:/PATH",
                field="spec.volumes",
            )
        if spec.isolation is Isolation.UNIKERNEL and mount.target:
            raise Unsupported(
                "a unikernel mounts nothing: it has bare disks",
                hint=f"--volume {mount.volume}",
                field="spec.volumes",
            )


def _place(target: str) -> str:
    """*target* without what says nothing.

    :raise Invalid: when it is the root, or leaves the directory that it is in.
    """
    parts = [part for part in target.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Invalid(f"target {target} has .. in it", hint="write the path as it is", field="spec.volumes")
    if not parts:
        raise Invalid("a volume cannot be mounted over the root", hint="choose a directory", field="spec.volumes")
    return "/" + "/".join(parts)


def check_form(spec: InstanceSpec, mount: VolumeMount, volume: Volume) -> None:
    """That *volume* is something that this level can have as *mount* says.

    :raise Unsupported: when it is not.
    """
    if volume.spec.form is VolumeForm.FILESYSTEM and spec.isolation not in DIRECTORIES:
        raise Unsupported(
            f"volume {volume.name} is a directory tree, which a {spec.isolation} cannot have yet",
            hint=f"make a block volume: lamella volume create {volume.name}-disk --size SIZE",
            field="spec.volumes",
        )
    if volume.spec.form is VolumeForm.BLOCK and mount.target and not volume.spec.filesystem:
        raise Unsupported(
            f"volume {volume.name} is raw: there is no filesystem in it to mount",
            hint=f"attach it as a bare disk: --volume {volume.name}"
            if spec.isolation not in DIRECTORIES
            else "make one without --raw, or use a level that has disks",
            field="spec.volumes",
        )


def settled_spec(spec: VolumeSpec) -> VolumeSpec:
    """*spec* with what follows from it: whole blocks, no filesystem in a directory tree.

    :raise Invalid: when its fields contradict each other.
    """
    if spec.owner is not None or spec.source is not None:
        raise Invalid(
            "an owner and a source are not set by hand",
            hint='a clone is asked for with "source" beside the spec',
            field="spec",
        )
    check_limits(spec)
    if spec.form is VolumeForm.FILESYSTEM:
        if spec.filesystem:
            raise Invalid("a directory tree is not formatted", hint="leave one of them out", field="spec.filesystem")
        if spec.encryption is not None:
            raise Invalid("a directory tree is not encrypted", hint="ask for a block volume", field="spec.encryption")
        if spec.limits.limited or spec.limits.group:
            raise Invalid(
                "a directory tree has no limits of its own", hint="ask for a block volume", field="spec.limits"
            )
    elif spec.size < SMALLEST:
        raise Invalid(
            "a block volume needs a size" if not spec.size else f"{spec.size} bytes are too few for a volume",
            hint=f"--size 20GiB; at least {format_size(SMALLEST)}",
            field="spec.size",
        )
    spec.size = whole(spec.size)
    return spec


def whole(size: int) -> int:
    """*size* up to a whole number of blocks."""
    return -(-size // _GRAIN) * _GRAIN


def check_limits(spec: VolumeSpec) -> None:
    """:raise Invalid: when a burst is smaller than the rate, or has none."""
    for name in ("iops", "bandwidth"):
        rate, burst = getattr(spec.limits, name), getattr(spec.limits, f"{name}_burst")
        if burst is not None and (rate is None or burst < rate):
            raise Invalid(
                f"a burst of {name} is more than its rate" if rate is not None else f"a burst of {name} needs a rate",
                hint=f"give {name}, and a burst above it",
                field=f"spec.limits.{name}_burst",
            )


def check_passphrase(encryption: KeyWrap | None, passphrase: str, *, field: str = "passphrase") -> None:
    """:raise Invalid: when a passphrase is missing where it wraps the key, or given where it does not."""
    if encryption is KeyWrap.PASSPHRASE and not passphrase:
        raise Invalid("there is no passphrase", hint="--passphrase-file FILE", field=field)
    if encryption is not KeyWrap.PASSPHRASE and passphrase:
        raise Invalid(
            "a passphrase is given, and it does not wrap the key",
            hint="leave it out, or say encryption passphrase",
            field=field,
        )


def check_pool(pool: Pool, spec: VolumeSpec) -> str:
    """Why *pool* may run out of room with a volume like *spec*; empty when it cannot.

    :raise Unsupported: when its driver has no such volumes. :raise NoRoom: when all of it would be taken at once.
    """
    features = pool.status.features
    form = Feature.BLOCK if spec.form is VolumeForm.BLOCK else Feature.FILESYSTEM
    if features and form not in features:
        raise Unsupported(
            f"pool {pool.name} ({pool.spec.driver}) has no {spec.form} volumes",
            hint="lamella pool ls",
            field="spec.pool",
        )
    if not pool.status.capacity or spec.size <= pool.status.free:
        return ""
    sentence = f"{format_size(spec.size)} are promised, and pool {pool.name} has {format_size(pool.status.free)} free"
    if features and Feature.THIN not in features:
        raise NoRoom(sentence, hint="ask for less, or use another pool: lamella pool ls", field="spec.size")
    return sentence
