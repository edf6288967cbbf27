"""A service that is told to read its files again lives on, however young it is."""

import os
import subprocess

from lamella.host.network.services import process

LISTENS = "trap 'echo heard; exit 0' HUP; echo up; while :; do sleep 0.05; done"


def test_whoever_does_not_catch_the_signal_yet_is_not_ended_by_it() -> None:
    with subprocess.Popen(["sleep", "1000"]) as young:
        pidfd = os.pidfd_open(young.pid)
        process.reads_again(young.pid, pidfd)
        process.finish(pidfd)
        assert young.wait(90) == -9


def test_whoever_catches_it_gets_it() -> None:
    with subprocess.Popen(["sh", "-c", LISTENS], stdout=subprocess.PIPE) as grown:
        assert grown.stdout is not None and grown.stdout.readline() == b"up\n"
        pidfd = os.pidfd_open(grown.pid)
        process.reads_again(grown.pid, pidfd)
        assert grown.stdout.read() == b"heard\n" and grown.wait(90) == 0
        os.close(pidfd)
