"""Which of the host's DNS servers instances are given."""

from pathlib import Path

from lamella.host.network.resolvers import nameservers, parse


def test_loopback_and_ipv6_servers_are_left_out() -> None:
    text = "# comment\nsearch example.org\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 192.0.2.1\nnameserver\n"
    assert parse(text + "nameserver 192.0.2.1 # again\nnameserver 198.51.100.2\noptions edns0\n") == [
        "192.0.2.1",
        "198.51.100.2",
    ]


def test_what_a_stub_hides_is_found_behind_it(tmp_path: Path) -> None:
    stub, real = tmp_path / "stub", tmp_path / "real"
    stub.write_text("nameserver 127.0.0.53\n")
    assert nameservers((stub, real)) == []
    real.write_text("nameserver 192.0.2.1\n")
    assert nameservers((stub, real)) == ["192.0.2.1"]
    stub.write_text("nameserver 192.0.2.9\n")
    assert nameservers((stub, real)) == ["192.0.2.9"]
