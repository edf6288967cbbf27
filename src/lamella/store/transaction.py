"""What a change or a look does inside its transaction, in terms of resources and claims."""

import msgspec

from lamella.model.errors import Conflict, Internal, NotFound, StaleRevision
from lamella.model.kinds import AnyResource
from lamella.model.resource import now
from lamella.store.rows import Draft, Row, moment, resource_of, text
from lamella.store.session import Session
from lamella.store.statements import Statements
from lamella.store.store import Audit


class DatabaseTransaction:
    """:class:`Transaction` over one :class:`Session`. ``head`` is the store's newest revision, this transaction's own included.

    ``session`` is for what the store does beside resources: leases, usage, pruning.
    The writer has the log to itself until the commit, so revisions are counted here and rows read before stay true.
    """

    def __init__(self, session: Session, statements: Statements, head: int, *, writable: bool) -> None:
        self.session = session
        self._sql = statements
        self._writable = writable
        self._seen: dict[str, Row] = {}
        self.head = head

    def get(self, kind: str, project: str, name: str) -> AnyResource | None:
        row = self.session.one(self._sql.by_name, {"kind": kind, "project": project, "name": name})
        return None if row is None else resource_of(self._remember(row))

    def by_id(self, id: str) -> AnyResource | None:
        row = self._row(id)
        return None if row is None else resource_of(row)

    def list(self, kind: str, *, project: str | None = None) -> list[AnyResource]:
        sql = self._sql.page(project is not None, 0, False)
        parameters = {"kind": kind} if project is None else {"kind": kind, "project": project}
        return [resource_of(row) for row in self.session.all(sql, parameters)]

    def insert(self, resource: AnyResource) -> AnyResource:
        self._check_writable()
        draft = Draft(msgspec.structs.replace(resource, revision=self.head + 1))
        if self.session.run(self._sql.insert_resource, draft.parameters()) == 0:
            raise self._taken(resource)
        self._log("created", draft.resource)
        return draft.resource

    def _taken(self, resource: AnyResource) -> Conflict:
        if self.get(resource.kind, resource.project, resource.name) is None:
            return Conflict(f"the id {resource.id} is taken", hint="make a new one", field="id")
        return Conflict(
            f"{resource.kind} {resource.name!r} exists already in project {resource.project!r}",
            hint="choose another name, or change the one that is there",
            field="name",
        )

    def update(self, resource: AnyResource, *, expected: int | None = None) -> AnyResource:
        self._check_writable()
        row = self._row(resource.id)
        if row is None:
            raise _gone(f"{resource.kind} {resource.name!r}")
        before = resource_of(row)
        if expected is not None and expected != before.revision:
            raise StaleRevision(
                f"{before.kind} {before.name!r} is at revision {before.revision}, not {expected}",
                hint="read it again and decide anew",
            )
        asked = msgspec.structs.replace(
            before,
            labels=resource.labels,
            spec=resource.spec,
            status=resource.status,
            deleted_at=resource.deleted_at,
            revision=self.head + 1,
        )
        draft = Draft(asked)
        after = draft.resource
        # Equal text is the quick answer; text written by another version may differ where the meaning does not.
        same_spec = draft.spec == row[9] or after.spec == before.spec
        same_status = draft.status == row[10] or after.status == before.status
        if same_spec and same_status and after.labels == before.labels and draft.deleted_at == row[8]:
            return before
        if not same_spec:
            after.generation += 1
        parameters = draft.parameters()
        parameters["key"] = after.id
        self.session.run(self._sql.update_resource, _only(parameters))
        del self._seen[after.id]
        self._log("updated", after)
        return after

    def rename(self, id: str, name: str) -> AnyResource:
        self._check_writable()
        row = self._row(id)
        if row is None:
            raise _gone(id)
        before = resource_of(row)
        if before.name == name:
            return before
        after = msgspec.structs.replace(before, name=name, revision=self.head + 1)
        if self.get(before.kind, before.project, name) is not None:
            raise self._taken(after)
        self.session.run(self._sql.rename_resource, {"key": id, "name": name, "revision": after.revision})
        del self._seen[id]
        self._log("updated", after)
        return after

    def delete(self, id: str) -> None:
        self._check_writable()
        row = self._row(id)
        if row is None:
            raise _gone(id)
        self.session.run(self._sql.release_claims, {"owner": id})
        self.session.run(self._sql.delete_resource, {"id": id})
        del self._seen[id]
        self._log("deleted", resource_of(row))

    def claim(self, space: str, key: str, owner: str) -> None:
        self._check_writable()
        if self.session.run(self._sql.claim, {"space": space, "key": key, "owner": owner}):
            return
        row = self.session.one(self._sql.holder, {"space": space, "key": key})
        if row is not None and row[0] != owner:
            raise Conflict(f"{space} {key!r} is taken by {row[0]}", hint="choose another, or free that one first")

    def claims(self, space: str) -> dict[str, str]:
        return {row[0]: row[1] for row in self.session.all(self._sql.claims, {"space": space})}

    def release(self, space: str, key: str, owner: str) -> None:
        self._check_writable()
        self.session.run(self._sql.release_claim, {"space": space, "key": key, "owner": owner})

    def audit(self, entry: Audit) -> None:
        self._check_writable()
        self.session.run(self._sql.audit, {"at": moment(now()), **msgspec.structs.asdict(entry)})

    def _row(self, id: str) -> Row | None:
        known = self._seen.get(id)
        if known is not None:
            return known
        row = self.session.one(self._sql.by_id, {"id": id})
        return None if row is None else self._remember(row)

    def _remember(self, row: Row) -> Row:
        self._seen[row[1]] = row
        return row

    def _log(self, action: str, resource: AnyResource) -> None:
        self.head += 1
        line = {
            "revision": self.head,
            "at": moment(now()),
            "action": action,
            "kind": resource.kind,
            "id": resource.id,
            "project": resource.project,
            "name": resource.name,
            "resource": text(resource),
        }
        self.session.run(self._sql.insert_change, line)

    def _check_writable(self) -> None:
        if not self._writable:
            raise Internal("a look at the store tried to write", hint="use Store.write")


def _only(parameters: dict[str, object]) -> dict[str, object]:
    columns = ("key", "labels", "generation", "revision", "deleted_at", "spec", "status")
    return {column: parameters[column] for column in columns}


def _gone(what: str) -> NotFound:
    return NotFound(f"{what} is gone", hint="somebody removed it meanwhile")
