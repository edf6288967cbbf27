"""Finding what a request names, or saying how to get it."""

from typing import Any

from lamella.control.naming import new_name
from lamella.model.errors import NotFound
from lamella.model.image import SCRATCH, SCRATCH_NAME, Image, ImageSpec, ImageStatus
from lamella.model.instance import Instance
from lamella.model.operation import Project
from lamella.model.resource import new_resource
from lamella.store.store import Transaction


def find_instance(tx: Transaction, project: str, name: str) -> Instance:
    """By name or id.

    :raise NotFound: with the way to see what there is.
    """
    return _find(tx, "instance", project, name)


def unused_name(tx: Transaction, project: str) -> str:
    """A name that no instance of *project* has."""
    while True:
        name = new_name()
        if tx.get("instance", project, name) is None:
            return name


def _find(tx: Transaction, kind: str, project: str, name: str) -> Any:
    found = tx.get(kind, project, name)
    if found is None:
        by_id = tx.by_id(name)
        found = by_id if by_id is not None and by_id.kind == kind and by_id.project == project else None
    if found is None:
        raise NotFound(f"no {kind} is called {name!r} in project {project}", hint="lamella ps -a lists the instances")
    return found


def find_image(tx: Transaction, project: str, reference: str) -> Image:
    """The image called so in *project*, else in ``default``; also by id or digest, and by the address that it was pulled from.

    ``scratch`` is the image of nothing.

    :raise NotFound: with the command that would make it.
    """
    if reference == SCRATCH_NAME and tx.get("image", project, reference) is None:
        return new_resource("image", SCRATCH_NAME, ImageSpec(source=SCRATCH_NAME), ImageStatus(digest=SCRATCH))
    for where in dict.fromkeys((project, "default")):
        found = tx.get("image", where, reference)
        if found is not None and found.status.digest:
            return found
    if reference.startswith(("img_", "sha256:")):
        for image in tx.list("image"):
            if reference in (image.id, image.status.digest) and image.project in (project, "default"):
                return image
    if "/" in reference:
        address = reference if "://" in reference else f"docker://{reference}"
        pulled = [
            image
            for image in tx.list("image")
            if image.spec.source == address and image.project in (project, "default") and image.status.digest
        ]
        if pulled:
            return max(pulled, key=lambda image: (image.project == project, image.revision))
    raise NotFound(f"there is no image {reference!r} here", hint=how_to_get(reference), field="spec.image")


def how_to_get(reference: str) -> str:
    """The command that would bring an image of this name."""
    if reference.startswith("debian:"):
        return f"build it: lamella image build {reference}"
    if reference.startswith("docker://"):
        return f"pull it: lamella image pull {reference}"
    if "/" in reference:
        return f"pull it: lamella image pull docker://{reference}"
    return f"bring it in: lamella image pull docker://HOST/{reference}, or lamella image import FILE --name {reference}"


def need_project(tx: Transaction, project: str) -> Project:
    """:raise NotFound: when there is no such project."""
    found: Project | None = tx.get("project", "default", project)
    if found is None:
        raise NotFound(f"there is no project {project!r}", hint="lamella project ls lists them", field="project")
    return found
