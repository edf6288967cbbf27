"""A new instance written with all that it owns, in one transaction."""

from collections.abc import Sequence

from lamella.control.admission import Admitted
from lamella.control.changing import insert_port
from lamella.control.handing_out import check_room
from lamella.control.pinning import settle_pins
from lamella.control.shares import NOTHING, Share
from lamella.control.storage.attaching import Named, attach
from lamella.model.instance import Instance
from lamella.store.store import Transaction


def insert_admitted(
    tx: Transaction, admitted: Admitted, *, had: Share = NOTHING, named: Sequence[Named] = ()
) -> Instance:
    """Store what was *admitted* with the claims on all that it holds; *had* is what of its host it was chosen for, *named* the volumes
    that it has attached.

    :raise NoRoom: when the host has none for it. :raise Conflict: when the name, or something that it asks for, is taken.
    """
    settle_pins(tx, admitted.instance)
    check_room(tx, admitted.instance, had)
    instance: Instance = tx.insert(admitted.instance)
    if named:
        attach(tx, instance, named)
        instance = tx.update(instance)
    tx.claim(f"ids:{instance.status.host}", str(instance.status.id_base), instance.id)
    for volume in (admitted.volume, *admitted.disks.values()):
        if volume is not None:
            tx.insert(volume)
    for port in (admitted.port, *admitted.ports.values()):
        if port is not None:
            insert_port(tx, port)
    return instance
