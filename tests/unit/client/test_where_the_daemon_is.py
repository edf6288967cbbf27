"""Where the daemon is looked for, and what its refusals become."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.client import address
from lamella.client.problem import problem
from lamella.model.errors import Conflict, Internal, Invalid, LamellaError, NotFound, StaleRevision, Unavailable


def test_the_places_in_order() -> None:
    assert address.find(None, {}).path == "/var/lib/lamella/run/lamellad.sock"
    assert address.find(None, {"LAMELLA_HOME": "/srv/one/"}).path == "/srv/one/run/lamellad.sock"
    assert address.find(None, {"LAMELLA_HOME": "/srv/one", "LAMELLA_HOST": "unix:///run/x.sock"}).path == "/run/x.sock"
    assert address.find("/run/y.sock", {"LAMELLA_HOST": "unix:///run/x.sock"}).path == "/run/y.sock"
    remote = address.find("https://far.example:9000", {"LAMELLA_CERT": "c", "LAMELLA_KEY": "k", "LAMELLA_CA": "a"})
    assert (remote.path, remote.host, remote.port, remote.certificate) == ("", "far.example", 9000, "c")
    assert address.find("https://[fd00::1]", {}).name == f"[fd00::1]:{address.DEFAULT_PORT}"


@pytest.mark.parametrize(
    "url", ["http://here:1", "https://", "https://a:0", "https://a:65536", "https://a/b", "https://a:x", "relative"]
)
def test_other_places_are_refused(url: str) -> None:
    with pytest.raises(Invalid):
        address.find(url, {})


def test_a_problem_is_the_error_that_it_was() -> None:
    error = problem(
        404, b'{"code":"not-found","detail":"there is none","hint":"make it","field":"spec.image","status":404}'
    )
    assert isinstance(error, NotFound)
    assert (error.message, error.hint, error.field) == ("there is none", "make it", "spec.image")
    assert isinstance(problem(412, b""), StaleRevision)
    assert isinstance(problem(409, b"[]"), Conflict)
    assert isinstance(problem(503, b"<html>"), Unavailable)
    assert isinstance(problem(500, b'{"code":"something-new"}'), Internal)


@given(st.integers(400, 599), st.binary(max_size=60))
def test_whatever_was_answered_is_an_error(status: int, body: bytes) -> None:
    assert isinstance(problem(status, body), LamellaError)
