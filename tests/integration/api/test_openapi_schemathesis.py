"""The served OpenAPI document is true: whatever is asked, the answer is one that it tells, and never a 5xx.

``make_app`` is what another test swaps to hold another layer to the same document.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import schemathesis
from fake_layer import FakeLayer
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from litestar import Litestar
from schemathesis import GenerationMode
from schemathesis.config import GenerationConfig, ProjectConfig, ProjectsConfig, SchemathesisConfig
from schemathesis.specs.openapi.checks import positive_data_acceptance
from server_thread import serving

from lamella.api.app import all_routes, create_app
from lamella.wire import listener
from lamella.wire.identity import Peer

# An invalid body of many fields takes long to make up.
EXAMPLES = {GenerationMode.POSITIVE: 8, GenerationMode.NEGATIVE: 5}


@pytest.fixture(scope="module")
def make_app() -> Callable[[], Litestar]:
    """Called inside the loop that serves; gives the application under test."""
    return lambda: create_app(FakeLayer())


@pytest.fixture(scope="module")
def known() -> dict[str, str]:
    """A name of each kind that the layer under test has."""
    return {
        "instance": "web",
        "image": "team/web:1.0",
        "project": "default",
        "volume": "data",
        "snapshot": "data@nightly",
        "pool": "default",
    }


def as_root(app: Any) -> Any:
    """The application as root on the Unix socket sees it: the tool speaks TCP only."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["peer"] = Peer(uid=0, gid=0)
        await app(scope, receive, send)

    return application


@pytest.fixture(scope="module")
def base_url(make_app: Callable[[], Litestar]) -> Iterator[str]:
    sock = listener.bind_tcp("127.0.0.1", 0)
    port = sock.getsockname()[1]
    with serving(lambda ready: listener.serve(as_root(make_app()), sock, ready=ready, deadline=1)):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def document(base_url: str) -> Any:
    generation = GenerationConfig(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE], database="none")
    project = ProjectConfig(generation=generation, request_timeout=20)
    config = SchemathesisConfig(projects=ProjectsConfig(default=project))
    schema = schemathesis.openapi.from_url(f"{base_url}/v1/openapi.json", config=config)

    @schema.hook
    def map_query(context: Any, query: Any) -> Any:
        # A stream without an end would be read without an end; the streams have tests of their own.
        return {
            name: "false" if name in ("watch", "follow") else value for name, value in (query or {}).items()
        } or query

    return schema


def _operations() -> list[Any]:
    # The stream of changes has no end that could be waited for; its query has tests of its own.
    return [
        pytest.param(route.name, route.kind, id=route.name) for route in all_routes() if route.name != "watchChanges"
    ]


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])
@pytest.mark.parametrize(("operation_id", "kind"), _operations())
def test_answers_are_as_the_document_says(
    document: Any, known: dict[str, str], operation_id: str, kind: str | None, mode: GenerationMode
) -> None:
    operation = document.find_operation_by_id(operation_id)
    parameters = [parameter.name for parameter in (*operation.path_parameters, *operation.query, *operation.headers)]
    if mode is GenerationMode.NEGATIVE and not parameters and not operation.body:
        pytest.skip("nothing in it can be invalid")
    cases = operation.as_strategy(mode)
    fixed = {
        name: value for name, value in (("project", "default"), ("name", known.get(kind or ""))) if name in parameters
    }
    if fixed and None not in fixed.values() and (mode is GenerationMode.POSITIVE or set(parameters) != set(fixed)):
        # A made-up name is hardly ever there: most of the answers are those about what there is.
        cases = st.one_of(cases, operation.as_strategy(mode, path_parameters=fixed))

    @settings(
        max_examples=EXAMPLES[mode],
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def ask(case: Any) -> None:
        # What a schema cannot say (a cursor of ours, a revision that is current) is refused all the same.
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    ask()
