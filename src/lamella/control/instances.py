"""The verbs on instances: each writes intent in one transaction; the host makes it so, and whoever asked may wait for that."""

from collections.abc import Callable

import msgspec

from lamella.control import huge_pages
from lamella.control.admission import check_spec
from lamella.control.bulletin import Bulletin
from lamella.control.changing import (
    change_devices,
    check_volumes_at_rest,
    check_volumes_idle,
    undo,
)
from lamella.control.creating import check_asked, insert_new
from lamella.control.events import record
from lamella.control.fitting import FIXED_SIZE, PLUGGABLE, normalise
from lamella.control.handing_out import check_room, held
from lamella.control.intent import CONDITIONS, PowerVerb, apply_power, refusal
from lamella.control.lookup import find_instance, need_project
from lamella.control.merging import merge_labels, merge_patch
from lamella.control.network.rates import rates_of, without
from lamella.control.pinning import settle_pins
from lamella.control.shares import check_shares
from lamella.control.storage.attaching import attach, resolve
from lamella.control.storage.holding import outlive
from lamella.control.templates.taking import begin_of_template
from lamella.model import bit_rate
from lamella.model.errors import (
    Conflict,
    DeadlineExceeded,
    Forbidden,
    Invalid,
    NotFound,
    Unavailable,
    Unsupported,
    error_for,
)
from lamella.model.ids import check_name
from lamella.model.instance import Decision, Instance, InstanceSpec, Phase, Power
from lamella.model.quantity import format_cpu, format_size
from lamella.model.requests import InstanceCreate, Principal, ResourcePatch, ResourcePut
from lamella.model.resource import now
from lamella.model.storage import Volume, VolumeMount
from lamella.model.validation import invalid
from lamella.store.store import Audit, Change, Store, Transaction

# What cannot change after an instance was made, and what to do instead.
FIXED = ("image", "isolation", "disk", "remove_on_exit", "stdin", "terminal", "template")
# Devices: what may come and go with levels that can be plugged into.
DEVICES = ("nics", "disks", "cdroms", "usb")
# What changes only while it does not run.
LIMITS = ("cpu", "memory", "pids")
AT_REST = ("board", "seed", "directories", "fuel", "deadline", "huge_pages")
KEPT = ("epoch", "attach_epoch", "grace", "power")


class Instances:
    """Intent for instances. ``seed`` tells two layers on one machine apart (see ``addressing.free_id_range``); ``away`` says why
    a host cannot do now what is asked, when it cannot.
    """

    def __init__(
        self, store: Store, bulletin: Bulletin, *, seed: str, away: Callable[[str], str] = lambda _: ""
    ) -> None:
        self._store = store
        self._away = away
        self._bulletin = bulletin
        self._seed = seed

    async def create(
        self, who: Principal, project: str, body: InstanceCreate, *, wait: float, idempotency_key: str | None
    ) -> Instance:
        if body.name is not None:
            check_name(body.name)
        check_asked(body.spec)
        _check_directories(who, body.spec)

        def write(tx: Transaction) -> tuple[Instance, bool]:
            space = f"idempotency:{project}"
            if idempotency_key is not None:
                before = tx.by_id(tx.claims(space).get(idempotency_key, ""))
                if before is not None:
                    return before, False
            need_project(tx, project)
            instance = _begin(tx, project, body, self._seed)
            if idempotency_key is not None:
                tx.claim(space, idempotency_key, instance.id)
            begun = (
                f"as a copy of template {body.spec.template}" if body.spec.template else f"from {instance.spec.image}"
            )
            record(tx, instance, "instance.created", f"{who.name} created {instance.name} {begun}")
            tx.audit(Audit(principal=who.name, verb="create", subject=f"instance/{project}/{instance.name}"))
            return instance, True

        instance, _ = await self._store.write(write)
        return await self._after(instance, wait)

    async def put(
        self, who: Principal, project: str, name: str, body: ResourcePut, *, expected: int | None, wait: float
    ) -> Instance:
        try:
            await self._store.get("instance", project, name)
        except NotFound:
            if expected is not None:
                raise
            create = InstanceCreate(name=name, labels=body.labels, spec=body.spec)
            return await self.create(who, project, create, wait=wait, idempotency_key=None)

        def change(tx: Transaction, instance: Instance) -> None:
            wanted = msgspec.structs.replace(body.spec, **{field: getattr(instance.spec, field) for field in KEPT})
            if wanted.stop_timeout is None:
                wanted.stop_timeout = instance.spec.stop_timeout
            if wanted.template is not None:
                _fill(wanted, instance.spec)
            before.append(msgspec.convert(msgspec.to_builtins(instance), Instance))
            self._replace_spec(tx, who, instance, wanted)
            instance.labels = dict(body.labels)

        before: list[Instance] = []
        changed = await self._change(who, project, name, "put", change, expected=expected, wait=wait)
        return await self._taken_back(changed, before[-1], wait)

    async def patch(
        self, who: Principal, project: str, name: str, body: ResourcePatch, *, expected: int | None, wait: float
    ) -> Instance:
        def change(tx: Transaction, instance: Instance) -> None:
            if not isinstance(body.labels, msgspec.UnsetType):
                merge_labels(instance.labels, body.labels)
            if not isinstance(body.spec, msgspec.UnsetType):
                kept = sorted(set(body.spec) & set(KEPT))
                if kept:
                    raise Invalid(
                        f"spec.{kept[0]} is not set by hand",
                        hint="use start, stop, restart, pause, suspend or resume",
                        field="spec",
                    )
                merged = merge_patch(msgspec.to_builtins(instance.spec), body.spec)
                try:
                    wanted = msgspec.convert(merged, InstanceSpec)
                except msgspec.ValidationError as error:
                    raise invalid(str(error), "the change", "spec") from None
                before.append(msgspec.convert(msgspec.to_builtins(instance), Instance))
                self._replace_spec(tx, who, instance, wanted)

        before: list[Instance] = []
        changed = await self._change(who, project, name, "patch", change, expected=expected, wait=wait)
        return await self._taken_back(changed, before[-1], wait) if before else changed

    async def mount(self, who: Principal, project: str, name: str, mount: VolumeMount, *, wait: float) -> Instance:
        """Attach the volume of *mount*, or attach it anew when it is there already in another way."""

        def change(tx: Transaction, instance: Instance) -> list[VolumeMount]:
            return [*(item for item in instance.spec.volumes if item.volume != mount.volume), mount]

        return await self._remount(who, project, name, "attach", change, wait=wait)

    async def unmount(self, who: Principal, project: str, name: str, volume: Volume, *, wait: float) -> Instance:
        """Take *volume* out.

        :raise NotFound: when it is not attached.
        """

        def change(tx: Transaction, instance: Instance) -> list[VolumeMount]:
            kept = [item for item in instance.spec.volumes if instance.status.volumes.get(item.volume) != volume.id]
            if len(kept) == len(instance.spec.volumes):
                names = ", ".join(instance.status.volumes)
                raise NotFound(
                    f"volume {volume.name} is not attached to {instance.name}",
                    hint=f"it has {names}" if names else "it has none",
                    field="instance",
                )
            return kept

        instance = await self._remount(who, project, name, "detach", change, wait=wait)
        if wait > 0:
            await self._released(instance, volume.id, wait)
        return instance

    async def _released(self, instance: Instance, volume: str, wait: float) -> None:
        """Wait until the host has let go of *volume*, which *instance* was asked to give back."""

        async def first() -> bool:
            try:
                return volume not in (await self._store.by_id(instance.id)).status.retired
            except NotFound:
                return True

        def check(change: Change) -> bool:
            return change.action == "deleted" or volume not in change.resource.status.retired

        await self._bulletin.until({instance.id}, first, check, timeout=wait, after=instance.revision)

    async def _remount(
        self,
        who: Principal,
        project: str,
        name: str,
        verb: str,
        mounts: Callable[[Transaction, Instance], list[VolumeMount]],
        *,
        wait: float,
    ) -> Instance:
        before: list[Instance] = []

        def change(tx: Transaction, instance: Instance) -> None:
            before.append(msgspec.convert(msgspec.to_builtins(instance), Instance))
            wanted = msgspec.convert(msgspec.to_builtins(instance.spec), InstanceSpec)
            wanted.volumes = mounts(tx, instance)
            self._replace_spec(tx, who, instance, wanted)

        changed = await self._change(who, project, name, verb, change, expected=None, wait=wait)
        return await self._taken_back(changed, before[-1], wait)

    async def _taken_back(self, changed: Instance, before: Instance, wait: float) -> Instance:
        """*changed*, unless its host refused: then it is *before* again, and the refusal is raised."""
        if wait > 0 and (why := refusal(changed)) is not None:
            await self._store.write(lambda tx: undo(tx, changed, before))
            raise error_for(why.reason)(why.message, hint=why.hint)
        return changed

    def _replace_spec(self, tx: Transaction, who: Principal, instance: Instance, wanted: InstanceSpec) -> None:
        normalise(wanted)
        level = instance.spec.isolation
        plugged, unchanged = (
            msgspec.structs.replace(spec, nics=without(spec.nics)) for spec in (wanted, instance.spec)
        )
        for field in DEVICES if level not in PLUGGABLE else ():
            if getattr(plugged, field) != getattr(unchanged, field):
                raise Unsupported(
                    f"a {level} keeps the devices that it was made with: spec.{field} cannot be changed",
                    hint="--isolation vm takes devices and gives them back while it runs",
                    field=f"spec.{field}",
                )
        for field in FIXED:
            if getattr(wanted, field) != getattr(instance.spec, field):
                raise Unsupported(
                    f"spec.{field} of an instance cannot be changed",
                    hint="remove it and run it anew",
                    field=f"spec.{field}",
                )
        if plugged.nics[:1] != unchanged.nics[:1]:
            raise Unsupported(
                "the first NIC of an instance stays as it is, but for its rates",
                hint="plug in another one",
                field="spec.nics",
            )
        for field in AT_REST:
            changed = getattr(wanted, field) != getattr(instance.spec, field)
            if changed and instance.status.phase not in (Phase.STOPPED, Phase.FAILED, Phase.PENDING):
                raise Conflict(
                    f"spec.{field} of {instance.name} cannot be changed while it is {instance.status.phase}",
                    hint=f"lamella stop {instance.name}, change it, and start it again",
                    field=f"spec.{field}",
                )
        if Phase.SUSPENDED is instance.status.phase or instance.spec.power is Power.SUSPENDED:
            _check_suspended(instance, wanted)
        check_spec(wanted)
        check_shares(wanted)
        _check_directories(who, wanted)
        self._refuse_growth(instance, wanted)
        for field in ("cpu", "memory", "pids", "cpu_guarantee", "memory_guarantee"):
            before, after = getattr(instance.spec, field), getattr(wanted, field)
            if before != after:
                instance.status.decisions.append(
                    Decision(
                        at=now(),
                        what=f"limit {field}" if field in LIMITS else field.replace("_", " "),
                        chosen=_limit(field, after),
                        because=f"set by hand; was {_limit(field, before)}",
                    )
                )
        before, after = rates_of(instance.spec), rates_of(wanted)
        for subject in sorted(before.keys() | after.keys()):
            was, is_now = (bit_rate.format(rates[subject]) if subject in rates else "none" for rates in (before, after))
            if was != is_now:
                because = f"set by hand; was {was}"
                instance.status.decisions.append(
                    Decision(at=now(), what=f"limit {subject}", chosen=is_now, because=because)
                )
        change_devices(tx, instance, wanted)
        if wanted.volumes != instance.spec.volumes:
            check_volumes_at_rest(instance)
            attach(tx, instance, resolve(tx, instance.project, wanted))
        instance.spec = wanted

    def _refuse_growth(self, instance: Instance, wanted: InstanceSpec) -> None:
        """A machine cannot be made larger than its host said; said now, before anything is written."""
        grows = instance.spec.isolation not in FIXED_SIZE
        if grows or instance.status.phase not in (Phase.RUNNING, Phase.PAUSED):
            return
        for field, launched in (("memory", instance.status.launched_memory), ("cpu", instance.status.launched_cpu)):
            asked = getattr(wanted, field)
            if launched is not None and asked != getattr(instance.spec, field) and (asked or 0) > launched:
                raise Unsupported(
                    f"{instance.name} can have {field} {_limit(field, launched)} at most while it runs: it booted as a"
                    f" {instance.spec.isolation} with room for no more",
                    hint=f"lamella stop {instance.name}, set it, and start it again: a restart is needed",
                    field=f"spec.{field}",
                )

    async def power(
        self, who: Principal, project: str, name: str, verb: PowerVerb, *, timeout: float | None, wait: float
    ) -> Instance:
        def change(tx: Transaction, instance: Instance) -> None:
            was.append((instance.spec.power, instance.spec.epoch))
            if verb in ("start", "restart") or (verb == "resume" and instance.spec.power is Power.SUSPENDED):
                check_volumes_idle(tx, instance)
                huge_pages.check_start(tx, instance)
            if verb == "suspend":
                check_volumes_idle(tx, instance)
            apply_power(instance, verb)
            instance.spec.grace = timeout

        was: list[tuple[Power, int]] = []
        changed = await self._change(who, project, name, verb, change, expected=None, wait=wait)
        before, epoch = was[-1]
        goes_on = before is Power.SUSPENDED and verb in ("start", "resume") and changed.spec.epoch == epoch
        return await self._as_before(changed, before) if (verb == "suspend" or goes_on) and wait > 0 else changed

    async def _as_before(self, changed: Instance, was: Power) -> Instance:
        """*changed*, which was to be suspended or to go on from that. When its host refused, it is as it *was*; the refusal is raised."""
        why = refusal(changed)
        if why is None and was is Power.SUSPENDED and changed.status.phase is Phase.FAILED:
            why = next((item for item in changed.status.conditions if not item.status), None)
        if why is None:
            return changed

        def write(tx: Transaction) -> None:
            current: Instance | None = tx.by_id(changed.id)
            if current is not None and current.generation == changed.generation and current.deleted_at is None:
                current.spec.power = was
                settle_pins(tx, current)
                tx.update(current)

        await self._store.write(write)
        hint = why.hint or (f"lamella restart {changed.name} boots it anew" if was is Power.SUSPENDED else "")
        raise error_for(why.reason)(why.message, hint=hint)

    async def begin_attached(self, who: Principal, project: str, name: str) -> Instance:
        """Ask for a run that waits until somebody is attached."""

        def change(tx: Transaction, instance: Instance) -> None:
            if instance.spec.power is Power.RUNNING and instance.spec.attach_epoch == instance.spec.epoch:
                return
            check_volumes_idle(tx, instance)
            huge_pages.check_start(tx, instance)
            apply_power(instance, "start")
            instance.spec.attach_epoch = instance.spec.epoch

        return await self._change(who, project, name, "start", change, expected=None, wait=0)

    async def delete(
        self, who: Principal, project: str, name: str, *, force: bool, expected: int | None, wait: float
    ) -> None:
        def change(tx: Transaction, instance: Instance) -> None:
            busy = instance.status.phase in (Phase.RUNNING, Phase.PAUSED, Phase.STARTING, Phase.STOPPING)
            if busy and not force and instance.deleted_at is None:
                raise Conflict(
                    f"{instance.name} is {instance.status.phase}",
                    hint=f"stop it first, or: lamella rm --force {instance.name}",
                )
            if instance.deleted_at is None:
                instance.deleted_at = now()
                outlive(tx, instance)

        instance = await self._change(who, project, name, "delete", change, expected=expected, wait=0)
        if wait > 0:
            await self.wait_for(instance, "removed", timeout=wait)

    async def _change(
        self,
        who: Principal,
        project: str,
        name: str,
        verb: str,
        change: Callable[[Transaction, Instance], None],
        *,
        expected: int | None,
        wait: float,
    ) -> Instance:
        def write(tx: Transaction) -> Instance:
            instance = find_instance(tx, project, name)
            if instance.deleted_at is not None and verb != "delete":
                raise Conflict(f"{instance.name} is being removed")
            if instance.spec.power is Power.READY and verb != "delete":
                raise Conflict(
                    f"{instance.name} is a template's, and waits for a command",
                    hint="lamella run --template NAME takes one that waits",
                )
            had = held(instance)
            change(tx, instance)
            settle_pins(tx, instance)
            check_room(tx, instance, had)
            tx.audit(Audit(principal=who.name, verb=verb, subject=f"instance/{project}/{instance.name}"))
            return tx.update(instance, expected=expected)

        return await self._after(await self._store.write(write), wait)

    async def _after(self, instance: Instance, wait: float) -> Instance:
        return await self.wait_for(instance, "settled", timeout=wait) if wait > 0 else instance

    async def wait_for(self, instance: Instance, condition: str, *, timeout: float) -> Instance:
        """The instance when *condition* holds: ``settled`` (the host has done what was asked), ``running``, ``stopped``, ``removed``.

        :raise DeadlineExceeded: when it did not within *timeout* seconds.
        :raise Invalid: when there is no such condition.
        :raise Unavailable: when its host is away, or goes away meanwhile; an end (``stopped``) is waited for all the same.
        """
        if condition not in CONDITIONS:
            raise Invalid(f"{condition!r} cannot be waited for", hint=f"one of: {', '.join(CONDITIONS)}", field="for")
        holds = CONDITIONS[condition]
        latest = instance
        host = instance.status.host or "" if condition != "stopped" else ""
        left = heard = False

        async def first() -> bool:
            nonlocal latest, left
            try:
                found = await self._store.by_id(instance.id)
            except NotFound:
                return True
            # What was told while it was read stays the answer: somebody may have asked for more since.
            if heard:
                return True
            latest = found
            left = bool(self._away(host)) and not holds(latest)
            return left or holds(latest)

        def check(change: Change) -> bool:
            nonlocal latest, left, heard
            if change.id == host:
                left = bool(self._away(host))
                return left
            latest = change.resource
            heard = change.action == "deleted" or holds(latest)
            return heard

        try:
            await self._bulletin.until({instance.id, host}, first, check, timeout=timeout, after=instance.revision)
        except DeadlineExceeded as error:
            raise DeadlineExceeded(
                f"{instance.name} was not {condition} within {timeout:g} s: it is {latest.status.phase}",
                hint=f"lamella explain {instance.name}",
            ) from error
        if left:
            raise Unavailable(
                f"the host of {instance.name} is away: {self._away(host)}",
                hint="what was asked is written down, and happens when it is back",
            )
        return latest


def _begin(tx: Transaction, project: str, body: InstanceCreate, seed: str) -> Instance:
    if body.spec.template is not None:
        return begin_of_template(tx, project, body.name, body.labels, body.spec, seed=seed)
    return insert_new(tx, project, body.name, body.labels, body.spec, seed=seed)


def _fill(wanted: InstanceSpec, has: InstanceSpec) -> None:
    """What is not said of a copy is as its template has it, and as it has it."""
    unsaid = InstanceSpec()
    for field in ("image", "isolation", "cpu", "memory", "disk", "pids"):
        if getattr(wanted, field) == getattr(unsaid, field):
            setattr(wanted, field, getattr(has, field))


def _check_directories(who: Principal, spec: InstanceSpec) -> None:
    """:raise Forbidden: when somebody who may not do all wants a directory of the host."""
    if spec.directories and not who.admin:
        raise Forbidden(
            "directories of the host are for administrators of the layer",
            hint="put the files into the image",
            field="spec.directories",
        )


def _check_suspended(instance: Instance, wanted: InstanceSpec) -> None:
    """:raise Conflict: when *wanted* has other limits, which a memory that is kept does not know of."""
    for field in (*LIMITS, "cpu_guarantee", "memory_guarantee"):
        if getattr(wanted, field) != getattr(instance.spec, field):
            raise Conflict(
                f"spec.{field} of {instance.name} cannot be changed while it is suspended",
                hint=f"lamella resume {instance.name}, and set it then",
                field=f"spec.{field}",
            )


def _limit(field: str, value: int | None) -> str:
    if value is None:
        return "none"
    return {"memory": format_size, "cpu": format_cpu}.get(field.removesuffix("_guarantee"), str)(value)
