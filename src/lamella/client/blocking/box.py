"""One instance, as a person holds it."""

import builtins
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Unpack

from lamella.client import calls, network_calls, routes, storage_calls
from lamella.client.blocking.machine import TRIES, Machine
from lamella.client.blocking.streams import Stream, communicate
from lamella.client.blocking.talk import Progress
from lamella.client.changes import Changes, of_a_nic, patch, to_instance
from lamella.client.lines import LineReader
from lamella.client.result import Result
from lamella.model.contract import Contract
from lamella.model.errors import Unavailable
from lamella.model.files import FileInfo
from lamella.model.instance import Instance, Phase
from lamella.model.network import Port
from lamella.model.requests import Explanation
from lamella.model.storage import Snapshot
from lamella.model.stream import ExecSpec
from lamella.model.usage import LogEntry, Usage

DAY = 86400.0


class Box(Machine):
    """An instance. ``instance`` is how it was when it was last looked at; :meth:`refresh` looks again.

    Every method may raise what the daemon says was wrong: ``NotFound``, ``Conflict``, ``Unsupported``, ``Unavailable`` …
    """

    @property
    def name(self) -> str:
        return self.instance.name

    @property
    def phase(self) -> Phase:
        return self.instance.status.phase

    def __repr__(self) -> str:
        return f"<Box {self.name} {self.phase}>"

    def refresh(self) -> Instance:
        """Look again."""
        self.instance = self._talk.ask(calls.get(self._project, "instance", self.id))
        return self.instance

    def exec(
        self,
        *command: str,
        input: bytes | None = None,
        environment: Mapping[str, str] | None = None,
        working_directory: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
        check: bool = False,
    ) -> Result:
        """Run *command* beside the instance's own, to its end. *timeout* is seconds, after which it exits 124.

        :raise CommandFailed: when *check* is set and it exits with another code than 0.
        """
        spec = ExecSpec(
            command=list(command),
            environment=dict(environment or {}),
            working_directory=working_directory,
            user=user,
            timeout=timeout,
            stdin=input is not None,
        )
        with self.stream(spec) as stream:
            result = communicate(stream, command, input)
        return result.check() if check else result

    @contextmanager
    def stream(self, spec: ExecSpec | Sequence[str]) -> Generator[Stream]:
        """A process and its streams; it is killed when the block is left before it has ended."""
        wanted = spec if isinstance(spec, ExecSpec) else ExecSpec(command=list(spec), stdin=True)
        channel = self._talk.wire.channel(routes.exec_stream(self._project, self.id))
        with Stream(channel) as stream:
            channel.send(calls.pack_spec(wanted))
            yield stream

    @contextmanager
    def attach(self, *, start: bool = False) -> Generator[Stream]:
        """The instance's own streams; with *start* its command begins when they are in place."""
        channel = self._talk.wire.channel(routes.attach_stream(self._project, self.id, start=start))
        with Stream(channel) as stream:
            yield stream

    def wait(self, *, timeout: float = DAY) -> int:
        """The exit code of the instance's own command, when it has ended.

        :raise DeadlineExceeded: when it has not after *timeout* seconds.
        :raise Unavailable: when it failed without one.
        """
        self.instance = self._talk.ask(calls.wait_for(self._project, self.id, "stopped", timeout))
        code = self.instance.status.exit_code
        if code is None:
            raise (
                calls.failure(self.instance)
                if self.phase is Phase.FAILED
                else Unavailable(f"{self.name} ended, and nobody knows how", hint=f"lamella explain {self.name}")
            )
        return code

    def wait_for(self, condition: calls.Condition, *, timeout: float = 60.0) -> Instance:
        """:raise DeadlineExceeded: when it does not come to be within *timeout* seconds."""
        self.instance = self._talk.ask(calls.wait_for(self._project, self.id, condition, timeout))
        return self.instance

    def start(self) -> None:
        self._power("start")

    def stop(self, *, timeout: float | None = None) -> None:
        """Ask it to end, and force it after *timeout* seconds (left out: its own ``stop_timeout``)."""
        self._power("stop", timeout)

    def restart(self, *, timeout: float | None = None) -> None:
        self._power("restart", timeout)

    def pause(self) -> None:
        self._power("pause")

    def resume(self) -> None:
        """Let it go on, paused or suspended."""
        self._power("resume")

    def suspend(self) -> None:
        """Write its memory down and end it; resumed, it goes on where it was. Its host's room is others' meanwhile.

        :raise Unsupported: when its level keeps no memory. :raise Conflict: when it does not run.
        """
        self._power("suspend")

    def fork(
        self,
        count: int = 1,
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> "builtins.list[Box]":
        """*count* copies that go on where it is, as ``NAME-1`` and so on (*name* instead of its own), each with addresses, keys and
        randomness of its own. All of them, or none.

        :raise Unsupported: when it cannot be copied. :raise Conflict: when it does not run. :raise NoRoom: when its host has none.
        """
        asked = self._talk.ask(calls.fork(self._project, self.id, count, name, labels))
        done = storage_calls.ended(self._talk.follow(asked, progress))
        made: builtins.list[Instance] = []
        for copy in done.status.made:
            made.append(self._talk.ask(calls.get(self._project, "instance", copy)))
        return [Box(self._talk, instance) for instance in made]

    def snapshot(self, name: str, *, memory: bool = False, consistent: bool = False) -> Snapshot:
        """Of all its volumes at one instant, with *memory* of its memory, too; it is called ``INSTANCE@name``."""
        call = storage_calls.create_snapshot(
            self._project, self.id, name, instance=True, consistent=consistent, memory=memory
        )
        return self._talk.ask(call)

    def kill(self, signal: str = "KILL") -> None:
        """Send *signal*, by name or number, to its own command."""
        self.instance = self._talk.ask(calls.kill(self._project, self.id, signal))

    def remove(self, *, force: bool = False) -> None:
        """Remove it, and wait until nothing is left of it. *force* stops it first."""
        self._talk.ask(calls.remove(self._project, "instance", self.id, force=force, wait=calls.SETTLE))

    def set(self, **changes: Unpack[Changes]) -> Instance:
        """Change what it was asked to be: ``box.set(memory="1GiB", rate_in="100Mbit")``; what it can take while it runs is in
        force then.

        :raise Invalid: when a change is not understood. :raise NotFound: when it has no such NIC. :raise Conflict: when it has none.
        """
        if not of_a_nic(changes):
            self.instance = self._talk.ask(calls.patch_instance(self._project, self.id, patch(changes)))
            return self.instance
        for left in reversed(range(TRIES)):
            self._look()
            if self._patched(to_instance(self.instance, changes), last=not left):
                break
        return self.instance

    def capture(
        self,
        *,
        nic: str | None = None,
        filter: str = "",
        duration: float | str | None = None,
        packets: int | None = None,
    ) -> Iterator[bytes]:
        """What passes a NIC (left out: the first), as a capture file (pcap), piece by piece as it comes: those packets that *filter* lets
        through, as tcpdump has it, for *duration* (seconds, or ``"10s"``), so many *packets*, or as long as somebody reads.

        :raise Invalid: when *filter* or *duration* is none. :raise NotFound: when there is no such NIC.
        :raise Conflict: when it does not run. :raise NoRoom: when too many captures go on.
        """
        request = network_calls.capture(
            self._project, self.id, nic=nic, filter=filter, duration=duration, packets=packets
        )
        with self._talk.wire.stream(request) as pieces:
            yield from pieces

    def mirror(self, to: str | None, *, nic: str | None = None) -> Port:
        """Send a copy of all that passes a NIC (left out: the first) to the first NIC of the instance *to*; ``None`` ends it.

        :raise NotFound: when there is no such instance or NIC. :raise Conflict: when copies would come back to where they came from.
        :raise Unsupported: when the two are on different hosts.
        """
        return self._talk.ask(network_calls.mirror(self._project, self.id, to, nic))

    def contract(self) -> Contract:
        """What isolates it, what it is guaranteed, what limits it."""
        return self._talk.ask(calls.contract(self._project, self.id))

    def explain(self) -> Explanation:
        """How it came to be as it is."""
        return self._talk.ask(calls.explain(self._project, self.id))

    def usage(self) -> Usage | None:
        """What it uses now; ``None`` when it does not run."""
        return (self._talk.ask(calls.usage(self._project))).get(self.name)

    def logs(
        self, *, follow: bool = False, tail: int | None = None, since: datetime | None = None
    ) -> Iterator[LogEntry]:
        """What its command has printed, oldest first; with *follow* what it prints from now on, too."""
        reader = LineReader()
        with self._talk.wire.stream(
            calls.logs(self._project, self.id, follow=follow, tail=tail, since=since)
        ) as pieces:
            for data in pieces:
                for line in reader.feed(data):
                    if line:
                        yield calls.log_entry(line)

    def stat(self, path: str) -> FileInfo:
        return self._talk.ask(calls.file_info(self._project, self.id, path))

    def list_directory(self, path: str) -> builtins.list[FileInfo]:
        return self._talk.ask(calls.list_directory(self._project, self.id, path))

    def read_file(self, path: str) -> bytes:
        """The whole of a file. Use :meth:`open_file` for one that does not fit into memory."""
        return self._talk.ask(calls.read_file(self._project, self.id, path))

    def open_file(self, path: str) -> Iterator[bytes]:
        """A file, piece by piece."""
        with self._talk.wire.stream(routes.read_file(self._project, self.id, path)) as pieces:
            yield from pieces

    def write_file(
        self, path: str, data: bytes | Iterable[bytes], *, mode: int = 0o644, uid: int = 0, gid: int = 0
    ) -> None:
        """Write a file; it is there whole, or not at all."""
        self._talk.ask(calls.write_file(self._project, self.id, path, data, mode=mode, uid=uid, gid=gid))

    def make_directory(self, path: str, *, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None:
        """Make a directory, and those above it."""
        self._talk.ask(calls.make_directory(self._project, self.id, path, mode=mode, uid=uid, gid=gid))

    def _power(self, verb: calls.PowerVerb, timeout: float | None = None) -> None:
        self.instance = calls.started(self._talk.ask(calls.power(self._project, self.id, verb, timeout=timeout)))
