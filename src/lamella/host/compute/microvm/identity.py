"""What a guest is told of itself. Pure, but for the time and fresh randomness."""

import os
from datetime import UTC, datetime

from lamella.host.compute.driver import Machine
from lamella.host.compute.guest.setup import GuestNetwork, GuestSetup
from lamella.host.compute.microvm import arguments


def network_of(machine: Machine) -> GuestNetwork | None:
    nic = machine.nic
    if nic is None:
        return None
    return GuestNetwork(
        mac=nic.mac,
        address=nic.address,
        gateway=nic.gateway,
        mtu=nic.mtu,
        interface=nic.interface,
        address6=nic.address6,
        gateway6=nic.gateway6,
    )


def setup_of(machine: Machine) -> GuestSetup:
    return GuestSetup(
        hostname=machine.hostname,
        root_serial=arguments.ROOT_SERIAL,
        data_serial=arguments.DATA_SERIAL,
        network=network_of(machine),
        nameservers=machine.nameservers,
        pids=machine.limits.pids,
        entropy=os.urandom(64),
        time=datetime.now(UTC),
    )
