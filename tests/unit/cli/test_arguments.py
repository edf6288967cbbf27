"""From words on the command line to requests."""

import string

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.cli import spec
from lamella.cli.commands import MODULES, SUMMARIES
from lamella.cli.main import load
from lamella.cli.parser import Parser
from lamella.model.errors import Invalid, LamellaError
from lamella.model.instance import InstanceSpec

WORDS = st.text(string.ascii_letters + string.digits + "-=/.:", min_size=1, max_size=10)


def read(name: str, *words: str) -> object:
    parser = Parser(name, SUMMARIES[name])
    load(name)[0](parser)
    return parser.read(list(words))


def instance(*words: str) -> InstanceSpec:
    """Through the rules of the other side."""
    return msgspec.convert(spec.instance(read("run", *words)), InstanceSpec)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MODULES)
def test_every_command_can_be_prepared(name: str) -> None:
    parser = Parser(name, SUMMARIES[name])
    load(name)[0](parser)
    assert parser.format_help().startswith(f"usage: lamella {name}")


@given(st.lists(WORDS, max_size=5), st.booleans())
def test_the_command_is_never_read_as_options(command: list[str], dashes: bool) -> None:
    words = ["-it", "-e", "A=1", "--name=web", "-m512MiB", "debian:12", *(["--"] if dashes else []), *command]
    options = read("run", *words)
    rest = command[1:] if not dashes and command[:1] == ["--"] else command
    assert (options.image, options.rest) == ("debian:12", rest)  # type: ignore[attr-defined]
    assert (options.name, options.memory, options.interactive) == ("web", "512MiB", True)  # type: ignore[attr-defined]


def test_a_value_that_looks_like_the_image_is_none() -> None:
    options = read("run", "-ditw", "/tmp", "--label", "a=b", "-p", "80:80", "--", "debian:12", "-d")
    assert (options.image, options.rest, options.workdir) == ("debian:12", ["-d"], "/tmp")  # type: ignore[attr-defined]


def test_all_of_run() -> None:
    sizes = ["--cpu", "1.5", "--memory", "512MiB", "--pids", "100", "--disk", "1GiB"]
    ports = ["-p", "127.0.0.1:8080:80", "-p", "53:53/udp"]
    who = ["-e", "A=1", "-w", "/srv", "-u", "1000:1000", "--hostname", "web"]
    end = ["--stop-signal", "int", "--stop-timeout", "1m", "--rm"]
    made = instance("--isolation", "microvm", "-i", "-t", *sizes, *ports, *who, *end, "debian:12", "--", "sleep", "1")
    assert (made.isolation, made.remove_on_exit, made.stdin, made.terminal) == ("microvm", True, True, True)
    assert (made.working_directory, made.user, made.hostname, made.stop_signal) == ("/srv", "1000:1000", "web", "INT")
    assert (made.cpu, made.memory, made.pids, made.disk, made.stop_timeout) == (1500, 512 << 20, 100, 1 << 30, 60.0)
    assert (made.command, made.entrypoint, made.environment["A"]) == (["sleep", "1"], None, "1")
    published = [(port.host_address, port.host_port, port.port, port.protocol) for port in made.nics[0].publish]
    assert published == [("127.0.0.1", 8080, 80, "tcp"), ("0.0.0.0", 53, 53, "udp")]


def test_another_entrypoint_drops_the_images_command() -> None:
    assert (
        instance("--entrypoint", "sh", "debian:12").entrypoint,
        instance("--entrypoint", "sh", "debian:12").command,
    ) == (["sh"], [])
    assert instance("--entrypoint=", "debian:12", "ls").entrypoint == []
    assert instance("debian:12").command is None


def test_contradictions_are_refused() -> None:
    for words in (("--rm", "--restart", "always"), ("--network", "none", "-p", "80:80")):
        with pytest.raises(Invalid):
            instance(*words, "debian:12")


@given(
    st.integers(0, 65535),
    st.integers(1, 65535),
    st.sampled_from(["", "/tcp", "/udp"]),
    st.sampled_from(["", "10.0.0.1:", "[::1]:"]),
)
def test_a_published_port_is_what_was_written(host: int, port: int, protocol: str, ip: str) -> None:
    made = spec.publish(f"{ip}{host}:{port}{protocol}")
    assert (made["host_port"], made["port"], made["protocol"]) == (host, port, protocol[1:] or "tcp")
    assert made.get("host_address", "") == ip.removesuffix(":").strip("[]")


@given(st.text(max_size=20))
def test_any_text_is_a_port_or_a_sentence(text: str) -> None:
    try:
        made = spec.publish(text)
    except Invalid as error:
        assert error.field == "publish" and error.hint
    else:
        assert 0 < int(str(made["port"])) < 65536


@given(st.text(max_size=20))
def test_any_text_is_a_restart_policy_or_a_sentence(text: str) -> None:
    try:
        made = spec.restart(text)
    except LamellaError:
        assert text not in spec.RESTART
    else:
        assert made["mode"] in spec.RESTART


def test_variables_come_from_options_files_and_here(tmp_path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "env"
    file.write_text("# a comment\nA=file\nB=two=three\n\nHERE\nABSENT\n")
    found = spec.variables(["A=option", "EMPTY="], [str(file)], {"HERE": "outer", "OTHER": "x"})
    assert found == {"A": "option", "B": "two=three", "HERE": "outer", "EMPTY": ""}
    with pytest.raises(Invalid):
        spec.variables(["=x"], [], {})


def test_help_tells_that_a_command_follows() -> None:
    for name in ("run", "exec"):
        parser = Parser(name, SUMMARIES[name])
        load(name)[0](parser)
        assert "[--] [COMMAND ...]" in parser.format_help().split("\n\n")[0]


def test_filters_are_labels_or_a_status() -> None:
    from lamella.cli import ps

    assert ps.labels(["label=a=b", "status=running", "label=c=d=e"]) == {"a": "b", "c": "d=e"}
    for wrong in ("name=web", "label=a", "status", ""):
        with pytest.raises(Invalid):
            ps.labels([wrong])
