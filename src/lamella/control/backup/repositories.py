"""Repositories: made with their key told once, checked, pruned, and forgotten."""

from lamella.control.backup.lookup import backups_in, find_backup, find_repository, newest
from lamella.control.backup.retention import kept
from lamella.control.events import record
from lamella.control.lookup import need_project
from lamella.control.storage.asking import Hosts, ask
from lamella.control.storage.conditions import drop, put
from lamella.control.storage.operations import Job, Operations
from lamella.model.backup import Backup, BackupSource, Repository, RepositorySpec, RepositoryStatus
from lamella.model.backup_bodies import RepositoryCreate, RepositoryCreated, RepositoryVerify
from lamella.model.backup_requests import ForgetBackups, OpenRepository, RepositoryMade, Verified, VerifyBackups
from lamella.model.errors import Conflict, NotFound, Unavailable
from lamella.model.ids import check_name
from lamella.model.operation import Operation
from lamella.model.requests import Principal
from lamella.model.resource import Condition, new_resource, now
from lamella.model.storage import StoragePhase
from lamella.store.store import Audit, Store, Transaction

SOUND = "Sound"
PATIENCE = 60.0
# How many of the layer's own state are kept of those that nobody asked for by name.
LAYERS = 10


class Repositories:
    """Intent for repositories."""

    def __init__(self, store: Store, operations: Operations, hosts: Hosts) -> None:
        self._store, self._operations, self._hosts = store, operations, hosts
        operations.add("verify", self._verify, again=True)
        operations.add("prune", self._prune, again=True)

    async def create(self, who: Principal, project: str, body: RepositoryCreate) -> RepositoryCreated:
        """The answer is the only one that has the recovery key, so this is no operation.

        :raise Conflict: when the name is taken, or there is a repository and no key was given. :raise LamellaError: what the host says.
        """
        check_name(body.name)
        spec = RepositorySpec(url=body.url, host=body.host)
        repository: Repository = new_resource(
            "repository", body.name, spec, RepositoryStatus(), project=project, labels=body.labels
        )

        def look(tx: Transaction) -> None:
            need_project(tx, project)
            if tx.get("repository", project, body.name) is not None:
                raise Conflict(f"repository {body.name} is there already", hint="lamella backup repository ls")
            repository.status.host = self._host(tx, body.host)

        await self._store.read(look)
        agent = self._hosts.agent(repository.status.host)
        request = OpenRepository(repository=repository, credentials=body.credentials, recovery_key=body.recovery_key)
        made: RepositoryMade = await ask(agent, request, RepositoryMade)
        status = repository.status
        status.phase, status.key, status.credentials = StoragePhase.READY, made.key, made.credentials
        status.engine_id = made.engine_id

        def write(tx: Transaction) -> Repository:
            written = tx.insert(repository)
            record(
                tx, written, "repository.created", f"{who.name} made repository {written.name} at {written.spec.url}"
            )
            tx.audit(Audit(principal=who.name, verb="create", subject=f"repository/{project}/{body.name}"))
            return written

        return RepositoryCreated(repository=await self._store.write(write), recovery_key=made.recovery_key)

    def _host(self, tx: Transaction, name: str) -> str:
        if name:
            host = tx.get("host", "default", name)
            if host is None:
                raise NotFound(f"no host is called {name!r}", hint="lamella host ls lists them", field="host")
            return host.id
        present = self._hosts.present
        if not present:
            raise Unavailable("no host is there to go to a repository", hint="lamella host ls tells why")
        return sorted(present)[0]

    async def delete(self, who: Principal, project: str, name: str, *, force: bool) -> None:
        """The layer forgets it, and the rows of its backups; what lies in it stays, and opens with its recovery key.

        :raise Conflict: when it has backups, unless *force*.
        """

        def write(tx: Transaction) -> None:
            repository = find_repository(tx, project, name)
            backups = [item for item in tx.list("backup") if item.spec.repository == repository.id]
            policies = [item for item in tx.list("policy") if item.spec.repository == repository.id]
            if (backups or policies) and not force:
                raise Conflict(
                    f"repository {name} has {len(backups)} backups and {len(policies)} policies",
                    hint="with --force the layer forgets them; what lies in the repository stays",
                )
            for item in (*backups, *policies):
                tx.delete(item.id)
            record(tx, repository, "repository.forgotten", f"{who.name} had repository {name} forgotten")
            tx.audit(Audit(principal=who.name, verb="delete", subject=f"repository/{project}/{name}"))
            tx.delete(repository.id)

        await self._store.write(write)

    async def verify(
        self, who: Principal, project: str, name: str, body: RepositoryVerify, *, wait: float
    ) -> Operation:
        """Check it, and restore samples."""

        def write(tx: Transaction) -> Operation:
            repository = find_repository(tx, project, name)
            chosen = [find_backup(tx, project, item).id for item in body.backups]
            tx.audit(Audit(principal=who.name, verb="verify", subject=f"repository/{project}/{name}"))
            arguments = {"repository": repository.id, "share": str(body.share), "backups": " ".join(chosen)}
            return self._operations.intend(tx, who, project, "verify", f"repository/{name}", arguments)

        operation = await self._store.write(write)
        self._operations.start(operation)
        return await self._operations.finish(operation, wait)

    async def _verify(self, job: Job) -> str:
        repository: Repository = await self._store.by_id(job.arguments["repository"])
        every, chosen = await self._store.read(lambda tx: _to_verify(tx, repository, job.arguments["backups"].split()))
        agent = await self._hosts.reach(repository.status.host, patience=PATIENCE)
        request = VerifyBackups(repository=repository, backups=chosen, all=every, share=int(job.arguments["share"]))
        seen: Verified = await ask(agent, request, Verified, job.tell)
        job.report = seen.report
        await self._store.write(lambda tx: _verified(tx, repository, chosen, seen))
        return repository.name

    async def prune(self, who: Principal, project: str, name: str, *, wait: float) -> Operation:
        """Forget what no policy keeps, and give back the room of what nothing needs."""

        def write(tx: Transaction) -> Operation:
            repository = find_repository(tx, project, name)
            tx.audit(Audit(principal=who.name, verb="prune", subject=f"repository/{project}/{name}"))
            return self._operations.intend(
                tx, who, project, "prune", f"repository/{name}", {"repository": repository.id, "space": "yes"}
            )

        operation = await self._store.write(write)
        self._operations.start(operation)
        return await self._operations.finish(operation, wait)

    async def _prune(self, job: Job) -> str:
        repository: Repository = await self._store.by_id(job.arguments["repository"])
        await self.forget_old(repository, prune=bool(job.arguments.get("space")), job=job)
        return repository.name

    async def forget_old(self, repository: Repository, *, prune: bool, job: Job | None = None) -> int:
        """How many were forgotten."""
        old = await self._store.read(lambda tx: superfluous(tx, repository))
        if not old and not prune:
            return 0
        await self.forget(repository, old, prune=prune, job=job)
        return len(old)

    async def forget(
        self, repository: Repository, backups: list[Backup], *, prune: bool = False, job: Job | None = None
    ) -> None:
        """Their rows go when the repository has let go of them."""
        agent = await self._hosts.reach(repository.status.host, patience=PATIENCE)
        request = ForgetBackups(repository=repository, backups=backups, prune=prune)
        await (ask(agent, request, None, job.tell) if job is not None else ask(agent, request, None))

        def write(tx: Transaction) -> None:
            for backup in backups:
                if tx.by_id(backup.id) is not None:
                    tx.delete(backup.id)
            current = tx.by_id(repository.id)
            if current is not None and prune:
                current.status.pruned_at = now()
                tx.update(current)

        await self._store.write(write)


def superfluous(tx: Transaction, repository: Repository) -> list[Backup]:
    """Those that policies made, and keep no longer; the newest of each volume always stays."""
    found: list[Backup] = []
    by_subject: dict[tuple[BackupSource, str], list[Backup]] = {}
    for backup in backups_in(tx, repository):
        by_subject.setdefault(subject_of(backup), []).append(backup)
    policies = {item.id: item for item in tx.list("policy")}
    for (of, _), backups in by_subject.items():
        latest = newest(backups).id
        for policy_id in {item.spec.policy for item in backups if item.spec.policy}:
            policy = policies.get(policy_id)
            if policy is None or policy.spec.repository != repository.id:
                continue
            made = [item for item in backups if item.spec.policy == policy_id]
            keep = kept([(item.id, item.status.taken_at or item.created_at) for item in made], policy.spec.keep)
            found += [item for item in made if item.id not in keep and item.id != latest]
        if of is BackupSource.LAYER:
            unasked = [item for item in backups if item.spec.policy == LAYER_BESIDE]
            found += sorted(unasked, key=lambda item: item.id)[:-LAYERS]
    return found


# What ``BackupSpec.policy`` says of a backup of the layer that was made beside another one.
LAYER_BESIDE = "beside"


def _to_verify(tx: Transaction, repository: Repository, ids: list[str]) -> tuple[list[Backup], list[Backup]]:
    every = backups_in(tx, repository)
    if ids:
        return every, [item for item in every if item.id in ids]
    latest = {subject_of(item): item for item in sorted(every, key=lambda item: item.id)}
    return every, list(latest.values())


def _verified(tx: Transaction, repository: Repository, chosen: list[Backup], seen: Verified) -> None:
    damaged = set(seen.damaged)
    for item in backups_in(tx, repository):
        hit = item.status.engine_id in damaged
        if hit or item.id in {one.id for one in chosen}:
            item.status.verified, item.status.verified_at = not hit, now()
            if hit:
                record(tx, item, "backup.damaged", f"backup {item.name} cannot be restored whole")
            tx.update(item)
    current: Repository | None = tx.by_id(repository.id)
    if current is None:
        return
    status = current.status
    status.checked_at = now()
    status.conditions = drop(status.conditions, SOUND)
    if seen.report.findings:
        found = seen.report.findings[0]
        status.conditions = put(
            status.conditions,
            Condition(
                type=SOUND,
                status=False,
                reason="corrupt",
                message=f"{len(seen.report.findings)} findings: {found.problem}",
                hint="make new backups, and see to where the repository is kept",
            ),
        )
        record(tx, current, "repository.damaged", f"repository {current.name} is damaged: {found.problem}")
    tx.update(current)


def subject_of(backup: Backup) -> tuple[BackupSource, str]:
    """What it is of: the same for all backups of one volume, of one instance, of the layer."""
    spec = backup.spec
    return spec.of, spec.instance if spec.of is BackupSource.INSTANCE else spec.volume
