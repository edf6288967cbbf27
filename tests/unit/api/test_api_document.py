"""The document and the routes are the same thing."""

import json

import msgspec
import pytest

from lamella.api.app import all_routes
from lamella.api.openapi import document
from lamella.model.errors import LamellaError, NotFound, error_for
from lamella.model.kinds import KINDS, plural
from lamella.wire.problem import Problem, error_of, problem_of, read_error
from lamella.wire.pump import close_code

DOCUMENT = json.loads(document(all_routes()))


def test_every_route_is_told_once() -> None:
    told = [operation["operationId"] for path in DOCUMENT["paths"].values() for operation in path.values()]
    assert len(told) == len(set(told)) == len(all_routes())


def test_every_kind_can_be_listed_and_got() -> None:
    for kind in KINDS:
        assert "get" in DOCUMENT["paths"][f"/v1/projects/{{project}}/{plural(kind)}"]
        assert "get" in DOCUMENT["paths"][f"/v1/projects/{{project}}/{plural(kind)}/{{name}}"]
        assert kind.capitalize() in DOCUMENT["components"]["schemas"]


def test_every_reference_leads_somewhere() -> None:
    text = json.dumps(DOCUMENT)
    names = {part.split('"', 1)[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= set(DOCUMENT["components"]["schemas"])
    assert "Resource" not in text.replace("ResourcePut", "").replace("ResourcePatch", "")


def test_every_refusal_is_a_problem() -> None:
    for path in DOCUMENT["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert list(response["content"]) == ["application/problem+json"]


def all_errors(root: type[LamellaError] = LamellaError) -> list[type[LamellaError]]:
    found = [child for direct in root.__subclasses__() for child in (direct, *all_errors(direct))]
    # The client's library has errors of its own, which never cross.
    return [error for error in found if error.__module__ == LamellaError.__module__]


@pytest.mark.parametrize("error", all_errors())
def test_an_error_crosses_the_wire_as_itself(error: type[LamellaError]) -> None:
    sent = error("what happened", hint="what to do", field="spec.cpu")
    data = msgspec.json.encode(problem_of(sent, instance="/v1/x"))
    back = read_error(data)
    assert type(back) is error_for(error.code)
    assert (back.message, back.hint, back.field) == (sent.message, sent.hint, sent.field)
    assert 4000 <= close_code(sent) < 5000


def test_a_message_with_bytes_that_are_no_text_can_be_sent() -> None:
    problem = problem_of(NotFound("no file \udcff"))
    assert error_of(msgspec.json.decode(msgspec.json.encode(problem), type=Problem)).message == "no file \\udcff"


def test_an_answer_that_is_no_problem_is_quoted() -> None:
    assert "<html>" in read_error(b"<html>", status=502).message
