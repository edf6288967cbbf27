"""The routes of repositories, backups and policies as functions to a :class:`Request`. Bodies are JSON already, as bytes."""

from lamella.client.request import Request
from lamella.client.routes import target

_JSON = {"Content-Type": "application/json"}
# Seconds that a repository may take to be made, and a backup to be shown.
MAKING = 300.0


def create_repository(project: str, body: bytes) -> Request:
    """Make one (``RepositoryCreate``); the answer (``RepositoryCreated``) alone has its recovery key."""
    return _post(target("projects", project, "repositories"), body, wait=MAKING)


def repository_verb(project: str, name: str, verb: str, body: "bytes | None" = None) -> Request:
    """``verify`` or ``prune``; the answer is an operation."""
    return _post(target("projects", project, "repositories", name, verb), body)


def create(project: str, body: bytes) -> Request:
    """Back up (``BackupCreate``); the answer is an operation."""
    return _post(target("projects", project, "backups"), body)


def verb(project: str, name: str, verb: str, body: "bytes | None" = None) -> Request:
    """``restore`` (an operation), ``mount`` (``BackupMounted``) or ``unmount``."""
    return _post(target("projects", project, "backups", name, verb), body, wait=MAKING)


def put_policy(project: str, body: bytes) -> Request:
    """Set one (``PolicyPut``)."""
    return _post(target("projects", project, "policies"), body)


def _post(path: str, body: "bytes | None", *, wait: float = 60.0) -> Request:
    return Request("POST", path, body=body, headers=_JSON if body is not None else None, wait=wait)
