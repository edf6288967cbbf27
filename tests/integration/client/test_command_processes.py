"""``run``, ``exec`` and ``shell`` as a person uses them: output, exit codes, input, signals, terminals."""

import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from fcntl import ioctl

import pytest

from conftest import Served


def test_run_gives_the_commands_output_and_exit_code(served: Served) -> None:
    done = served.lamella("run", "--rm", "debian:12", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    assert served.lamella("ps", "-a", "-q").stdout == b""


def test_run_leaves_it_stopped_without_rm(served: Served) -> None:
    assert served.lamella("run", "--name", "web", "debian:12", "true").returncode == 0
    assert served.lamella("ps", "-a", "-o", "name").stdout == b"web\n"
    assert served.lamella("ps", "-q").stdout == b""


def test_the_commands_own_options_are_its_own(served: Served) -> None:
    done = served.lamella("run", "--rm", "-e", "A=1", "debian:12", "sh", "-c", 'echo "$A $0 $1"', "--name", "-d")
    assert done.stdout == b"1 --name -d\n"


def test_an_absent_image_names_the_command_that_makes_it(served: Served) -> None:
    done = served.lamella("run", "debian:99", "true")
    assert done.returncode == 125
    assert done.stdout == b""
    assert done.stderr == b"lamella: there is no image 'debian:99'\n  make it: lamella image build debian:99\n"


def test_a_command_that_is_not_there_exits_127(served: Served) -> None:
    done = served.lamella("run", "--rm", "debian:12", "no-such-command")
    assert done.returncode == 127
    assert b"not found" in done.stderr


def test_detached_prints_the_name(served: Served) -> None:
    done = served.lamella("run", "-d", "--name", "web", "debian:12", "sleep", "100")
    assert (done.returncode, done.stdout) == (0, b"web\n")
    failed = served.lamella("run", "-d", "debian:12", "no-such-command")
    assert failed.returncode in (125, 127)
    assert b"there is no such command" in failed.stderr


def test_exec_passes_input_output_and_code(served: Served) -> None:
    served.lamella("run", "-d", "--name", "web", "debian:12", "sleep", "100")
    done = served.lamella("exec", "web", "--", "sh", "-c", "exit 7")
    assert done.returncode == 7
    echoed = served.lamella("exec", "-i", "web", "cat", input=b"in\x00\xffput")
    assert (echoed.returncode, echoed.stdout) == (0, b"in\x00\xffput")
    closed = served.lamella("exec", "web", "cat", input=b"not passed on")
    assert (closed.returncode, closed.stdout) == (0, b"")
    late = served.lamella("exec", "--timeout", "300ms", "web", "sleep", "100")
    assert late.returncode == 124


def test_exec_where_nothing_runs_is_a_sentence_and_125(served: Served) -> None:
    absent = served.lamella("exec", "web", "true")
    assert (absent.returncode, absent.stderr.splitlines()[0]) == (
        125,
        b"lamella: there is no instance 'web' in project default",
    )
    usage = served.lamella("exec", "--no-such-option", "web", "true")
    assert usage.returncode == 125
    bare = served.lamella("exec", "web")
    assert bare.returncode == 125


def test_much_data_goes_both_ways_at_once(served: Served) -> None:
    """Both ends must read while they write, or this never ends."""
    served.lamella("run", "-d", "--name", "web", "debian:12", "sleep", "100")
    data = os.urandom(8 << 20)
    done = served.lamella("exec", "-i", "web", "cat", input=data)
    assert done.returncode == 0
    assert done.stdout == data


def test_an_input_that_nobody_reads_keeps_nobody(served: Served) -> None:
    served.lamella("run", "-d", "--name", "web", "debian:12", "sleep", "100")
    done = served.lamella("exec", "-i", "web", "sh", "-c", "exec <&-; sleep 0.3; echo done", input=b"x" * (4 << 20))
    assert (done.returncode, done.stdout) == (0, b"done\n")


def test_signals_are_sent_on(served: Served) -> None:
    served.lamella("run", "-d", "--name", "web", "debian:12", "sleep", "100")
    script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    process = served.begin("exec", "web", "sh", "-c", script, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == b"caught\n"
    assert process.wait(90) == 5
    process.stdout.close()


def test_the_third_interrupt_lets_go(served: Served) -> None:
    served.lamella("run", "-d", "--name", "web", "debian:12", "sleep", "100")
    script = "trap '' INT; echo ready; sleep 100"
    process = served.begin(
        "exec", "web", "sh", "-c", script, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == b"ready\n"
    # Two that come before the first was taken are one to the kernel: where that was so it takes some more.
    for number in range(300):
        if number < 3:
            assert process.poll() is None
        elif process.poll() is not None:
            break
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    assert process.wait(90) == 130
    assert process.stderr.read() == b""
    process.stdout.close()
    process.stderr.close()


def test_a_reader_that_goes_is_no_traceback(served: Served) -> None:
    served.lamella("run", "-d", "--name", "web", "debian:12", "sleep", "100")
    process = served.begin(
        "exec", "web", "yes", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(100)
    process.stdout.close()
    assert process.wait(90) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, served: Served, *words: str, rows: int = 40, columns: int = 100) -> None:
        self.master, slave = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.seen = b""
        self.process = served.begin(*words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)

    def resize(self, rows: int, columns: int) -> None:
        ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def read_until(self, text: bytes, timeout: float = 90) -> bytes:
        deadline = time.monotonic() + timeout
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} did not come, but {self.seen!r}"
            if select.select([self.master], [], [], left)[0]:
                self.seen += os.read(self.master, 65536)
        before, _, self.seen = self.seen.partition(text)
        return before

    def end(self) -> int:
        deadline = time.monotonic() + 90
        while self.process.poll() is None and time.monotonic() < deadline:
            if select.select([self.master], [], [], 0.05)[0]:
                self.seen += os.read(self.master, 65536)
        code = self.process.wait(90)
        self.after = termios.tcgetattr(self.slave)
        os.close(self.slave)
        os.close(self.master)
        return code


def test_run_it_is_a_terminal(served: Served) -> None:
    terminal = Terminal(served, "run", "-it", "--rm", "debian:12", "sh")
    terminal.type(b"test -t 0 && test -t 1 && echo a-ter''minal\n")
    terminal.read_until(b"a-terminal")
    terminal.type(b"stty size; echo fi''rst\n")
    assert b"40 100" in terminal.read_until(b"first")
    terminal.resize(50, 132)
    terminal.process.send_signal(signal.SIGWINCH)
    deadline = time.monotonic() + 90
    while True:
        terminal.type(b"stty size; echo sec''ond\n")
        if b"50 132" in terminal.read_until(b"second"):
            break
        assert time.monotonic() < deadline
        time.sleep(0.1)
    terminal.type(b"echo sl''eeps; sleep 100\n")
    terminal.read_until(b"sleeps")
    time.sleep(0.3)
    terminal.type(b"\x03")
    terminal.type(b"echo code $?; echo thi''rd\n")
    assert b"code 130" in terminal.read_until(b"third")
    terminal.type(b"exit 3\n")
    assert terminal.end() == 3
    assert terminal.after == terminal.before


def test_shell_is_interactive(served: Served) -> None:
    served.lamella("run", "-d", "--name", "web", "debian:12", "sleep", "100")
    terminal = Terminal(served, "shell", "web")
    terminal.type(b"echo $((6*7)) ye''s\n")
    terminal.read_until(b"42 yes")
    terminal.type(b"exit 4\n")
    assert terminal.end() == 4
    piped = served.lamella("shell", "web", input=b"echo from a pipe\n")
    assert piped.stdout == b"from a pipe\n"


def test_a_terminal_without_one_is_refused(served: Served) -> None:
    done = served.lamella("run", "-it", "debian:12", "sh", input=b"")
    assert done.returncode == 125
    assert b"standard input is no terminal" in done.stderr


@pytest.mark.parametrize("words", [["ps"], ["run", "debian:12"], ["image", "ls"], ["top"]])
def test_an_absent_daemon_is_a_sentence(served: Served, words: list[str], tmp_path: object) -> None:
    done = served.lamella(*words, LAMELLA_HOST=f"unix://{tmp_path}/nowhere.sock")
    assert done.returncode == (125 if words[0] == "run" else 1)
    assert b"no Lamella daemon at" in done.stderr
    assert b"lamellad" in done.stderr
    assert b"Traceback" not in done.stderr
