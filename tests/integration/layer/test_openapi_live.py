"""The served document is true of a real daemon with real instances; and what no schema says: revisions, watches, pages, once."""

import asyncio
import concurrent.futures
import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.config import GenerationConfig, ProjectConfig, ProjectsConfig, SchemathesisConfig
from schemathesis.specs.openapi.checks import positive_data_acceptance
from tests.house import LayerUnderTest

from lamella.api.app import all_routes

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

MANY = "/v1/projects/default/instances"
ENDS_AT_ONCE = "trap exit TERM; while :; do sleep 0.1; done"
EXAMPLES = {GenerationMode.POSITIVE: 4, GenerationMode.NEGATIVE: 3}


@pytest.fixture(scope="module")
def socket_path(layer: LayerUnderTest) -> str:
    return str(layer.home / "run" / "lamellad.sock")


@pytest.fixture
def http(layer: LayerUnderTest, socket_path: str) -> Iterator[httpx.Client]:
    transport = httpx.HTTPTransport(uds=socket_path)
    with httpx.Client(transport=transport, base_url="http://lamella", timeout=90) as client:
        clear(client)
        yield client
        clear(client)
    assert "Traceback" not in layer.log()


def clear(client: httpx.Client) -> None:
    for item in client.get(MANY).json()["items"]:
        client.delete(f"{MANY}/{item['name']}", params={"force": "true", "wait": "20"})
    assert client.get(MANY).json()["items"] == []


def make(http: httpx.Client, name: str | None = None, *, wait: float = 0, headers: Any = None, **spec: Any) -> Any:
    body = {"labels": spec.pop("labels", {}), "spec": {"image": "busybox", "command": ["sleep", "1000"], **spec}}
    if name is not None:
        body["name"] = name
    return http.post(MANY, json=body, params={"wait": wait}, headers=headers)


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    said = response.json()
    assert said["code"] == code and said["detail"], said
    return said


# --- the document


@pytest.fixture(scope="module")
def base_url(socket_path: str) -> Iterator[str]:
    """The daemon's socket behind a TCP port: the tool speaks nothing else."""
    loop = asyncio.new_event_loop()
    port: concurrent.futures.Future[int] = concurrent.futures.Future()
    stop = asyncio.Event()

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner = await asyncio.open_unix_connection(socket_path)
        await asyncio.gather(pour(reader, inner[1]), pour(inner[0], writer))

    async def serve() -> None:
        server = await asyncio.start_server(relay, "127.0.0.1", 0)
        port.set_result(server.sockets[0].getsockname()[1])
        await stop.wait()
        server.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    yield f"http://127.0.0.1:{port.result(20)}"
    loop.call_soon_threadsafe(stop.set)
    thread.join(90)
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


@pytest.fixture(scope="module")
def document(base_url: str) -> Any:
    generation = GenerationConfig(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE], database="none")
    project = ProjectConfig(generation=generation, request_timeout=90)
    config = SchemathesisConfig(projects=ProjectsConfig(default=project))
    schema = schemathesis.openapi.from_url(f"{base_url}/v1/openapi.json", config=config)

    @schema.hook
    def map_query(context: Any, query: Any) -> Any:
        # Nothing here is waited for, and no stream without an end is read.
        calm = {"watch": "false", "follow": "false", "wait": "0.1", "timeout": "0.1"}
        return {
            name: calm.get(name, value) if _is_valid(value) else value for name, value in (query or {}).items()
        } or query

    return schema


def _is_valid(value: Any) -> bool:
    """A number or a flag, and not something that has to be refused."""
    return isinstance(value, bool | int | float) or value in ("true", "false")


@pytest.fixture(scope="module")
def known(layer: LayerUnderTest) -> Iterator[dict[str, str]]:
    yield {"instance": "web", "image": "busybox", "project": "default", "pool": "default", "network": "default"}
    for name in layer.out("ps", "-a", "-q").split():
        layer.lamella("rm", "--force", name)


def _operations() -> list[Any]:
    # The stream of changes has no end; the deletion of images would leave none for the rest.
    left_out = ("watchChanges", "deleteImage")
    return [pytest.param(r.name, r.kind, id=r.name) for r in all_routes() if r.name not in left_out]


@pytest.mark.parametrize(("operation_id", "kind"), _operations())
def test_answers_are_as_the_document_says(
    layer: LayerUnderTest, socket_path: str, document: Any, known: dict[str, str], operation_id: str, kind: str | None
) -> None:
    transport = httpx.HTTPTransport(uds=socket_path)
    with httpx.Client(transport=transport, base_url="http://lamella", timeout=90) as http:
        if http.get(f"{MANY}/web").status_code == 404:
            assert make(http, "web", wait=90, command=["sh", "-c", ENDS_AT_ONCE], stop_timeout=1).status_code == 201
        http.post(f"{MANY}/web/start", params={"wait": 90})
    operation = document.find_operation_by_id(operation_id)
    parameters = [parameter.name for parameter in (*operation.path_parameters, *operation.query, *operation.headers)]
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        if mode is GenerationMode.NEGATIVE and not parameters and not operation.body:
            continue
        cases = operation.as_strategy(mode)
        fixed = {
            name: value
            for name, value in (("project", "default"), ("name", known.get(kind or "")))
            if name in parameters
        }
        if fixed and None not in fixed.values() and (mode is GenerationMode.POSITIVE or set(parameters) != set(fixed)):
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
            # 504 is the answer to who does not wait long enough, and the document tells it where it may come.
            answer = case.call_and_validate(excluded_checks=[positive_data_acceptance, not_a_server_error])
            assert answer.status_code < 500 or answer.status_code == 504, answer.text

        ask()
    assert "Traceback" not in layer.log()


# --- what no schema says


def test_the_same_key_makes_one_instance(http: httpx.Client) -> None:
    key = {"Idempotency-Key": "once only"}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: make(http, headers=key, power="stopped"), range(16)))
    assert {answer.status_code for answer in made} == {201}
    assert len({answer.json()["id"] for answer in made}) == 1
    assert make(http, headers={"Idempotency-Key": "another"}, power="stopped").json()["id"] != made[0].json()["id"]
    assert len(http.get(MANY).json()["items"]) == 2
    problem(make(http, headers={"Idempotency-Key": "x" * 256}), 400, "invalid")


def test_one_name_is_one_instance_however_many_ask_at_once(http: httpx.Client) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: make(http, "same", power="stopped"), range(16)))
    assert sorted(answer.status_code for answer in made) == [201] + [409] * 15
    assert "same" in problem(make(http, "same"), 409, "conflict")["detail"]
    assert len(http.get("/v1/projects/default/volumes").json()["items"]) == 1


def test_a_stale_revision_is_refused(http: httpx.Client) -> None:
    # What its host sees changes it, too: at rest, nobody but us does.
    made = make(http, "stale", power="stopped", wait=90)
    old = {"If-Match": made.headers["etag"]}
    changed = http.patch(f"{MANY}/stale", json={"labels": {"a": "b"}}, headers=old)
    assert changed.status_code == 200 and changed.headers["etag"] != made.headers["etag"]
    problem(http.patch(f"{MANY}/stale", json={"labels": {"a": "c"}}, headers=old), 412, "stale-revision")
    spec = made.json()["spec"]
    problem(http.put(f"{MANY}/stale", json={"spec": spec}, headers=old), 412, "stale-revision")
    problem(http.delete(f"{MANY}/stale", headers=old), 412, "stale-revision")
    now = http.get(f"{MANY}/stale")
    assert now.json()["labels"] == {"a": "b"} and now.json()["deleted_at"] is None
    fresh = {"If-Match": now.headers["etag"]}
    assert http.delete(f"{MANY}/stale", headers=fresh, params={"wait": 90}).status_code == 204
    problem(http.get(f"{MANY}/stale"), 404, "not-found")


def test_a_watch_from_a_revision_misses_nothing(http: httpx.Client, socket_path: str) -> None:
    """Twenty are made while three listen: one from before, one that joins in the midst, one that comes afterwards."""
    since = http.get(MANY).json()["revision"]

    def watch() -> list[tuple[int, str, str]]:
        transport = httpx.HTTPTransport(uds=socket_path)
        seen: list[tuple[int, str, str]] = []
        with httpx.Client(transport=transport, base_url="http://lamella", timeout=90) as client:
            with client.stream("GET", MANY, params={"watch": "true", "since": since}) as answer:
                assert answer.headers["content-type"].startswith("text/event-stream")
                fields: dict[str, str] = {}
                for line in answer.iter_lines():
                    key, _, value = line.partition(": ")
                    if line:
                        fields[key] = value
                        continue
                    if "data" in fields:
                        seen.append((int(fields["id"]), fields["event"], json.loads(fields["data"])["name"]))
                    fields = {}
                    if sum(event == "deleted" for _, event, _ in seen) == 20:
                        return seen
        raise AssertionError(f"the watch ended: {seen}")

    names = [f"watched-{number}" for number in range(20)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        first = pool.submit(watch)
        made = list(pool.map(lambda name: make(http, name, power="stopped").status_code, names[:10]))
        second = pool.submit(watch)
        made += pool.map(lambda name: make(http, name, power="stopped").status_code, names[10:])
        assert made == [201] * 20
        for name in names:
            assert http.delete(f"{MANY}/{name}", params={"wait": 90}).status_code == 204
        third = pool.submit(watch)
        seen = [watcher.result(60) for watcher in (first, second, third)]
    assert seen[0] == seen[1] == seen[2]
    revisions = [revision for revision, _, _ in seen[0]]
    assert revisions == sorted(set(revisions)) and revisions[0] > since
    assert sorted(name for _, event, name in seen[0] if event == "created") == sorted(names)


def test_pages_and_labels(http: httpx.Client) -> None:
    for number in range(7):
        labels = {"parity": "even" if number % 2 == 0 else "odd", "team/name": "a b"}
        assert make(http, f"page-{number}", labels=labels, power="stopped").status_code == 201
    found: list[str] = []
    cursor, pages = "", 0
    while True:
        page = http.get(MANY, params={"limit": 3, "cursor": cursor}).json()
        assert len(page["items"]) <= 3
        found += [item["name"] for item in page["items"]]
        pages += 1
        cursor = page["cursor"]
        if not cursor:
            break
    assert (sorted(found), pages) == ([f"page-{n}" for n in range(7)], 3)
    odd = http.get(MANY, params={"label": "parity=odd"}).json()["items"]
    assert sorted(item["name"] for item in odd) == ["page-1", "page-3", "page-5"]
    both = http.get(MANY, params=[("label", "parity=even"), ("label", "team/name=a b"), ("limit", "2")]).json()
    assert len(both["items"]) == 2 and both["cursor"]
    assert http.get(MANY, params={"label": "parity=neither"}).json()["items"] == []
    problem(http.get(MANY, params={"cursor": "made up"}), 400, "invalid")
    problem(http.get(MANY, params={"label": "nothing"}), 400, "invalid")
    problem(http.get(MANY, params={"limit": "0"}), 400, "invalid")


def test_to_wait_or_not_to_wait(http: httpx.Client) -> None:
    at_once = make(http, "waits", wait=0)
    assert at_once.status_code == 201 and at_once.json()["status"]["phase"] in ("pending", "starting")
    settled = http.get(f"{MANY}/waits/wait", params={"for": "settled", "timeout": 30})
    assert settled.json()["status"]["phase"] == "running"
    assert make(http, "waited", wait=90).json()["status"]["phase"] == "running"
    problem(http.get(f"{MANY}/waits/wait", params={"for": "stopped", "timeout": 0.2}), 504, "deadline-exceeded")
    assert (
        http.post(f"{MANY}/waits/stop", json={"timeout": 0}, params={"wait": 90}).json()["status"]["phase"] == "stopped"
    )
    problem(http.delete(f"{MANY}/waited"), 409, "conflict")
    assert http.delete(f"{MANY}/waited", params={"force": "true", "wait": 90}).status_code == 204


def test_what_never_ran_is_at_rest(http: httpx.Client) -> None:
    """Nothing that is asked of it is waited for in vain."""
    made = make(http, "rests", power="stopped", wait=90)
    assert made.status_code == 201 and made.json()["status"]["phase"] == "pending"
    changed = http.patch(f"{MANY}/rests", json={"spec": {"memory": 64 << 20}}, params={"wait": 90})
    assert changed.status_code == 200 and changed.json()["spec"]["memory"] == 64 << 20
    assert http.post(f"{MANY}/rests/stop", params={"wait": 90}).status_code == 200
    logged = http.get(f"{MANY}/rests/logs", params={"follow": "true"})
    assert (logged.status_code, logged.content) == (200, b"")
    problem(http.post(f"{MANY}/rests/pause"), 409, "conflict")
    problem(http.get(f"{MANY}/rests/files", params={"path": "/etc"}), 409, "conflict")
    assert http.get(f"{MANY}/rests/contract").json()["observed"] is False
    assert http.delete(f"{MANY}/rests", params={"wait": 90}).status_code == 204


def test_what_is_paused_can_be_killed_and_stopped(http: httpx.Client) -> None:
    for verb, body, code in (("kill", {"signal": "KILL"}, 137), ("stop", {"timeout": 5}, 0)):
        assert make(http, verb, wait=90, command=["sh", "-c", ENDS_AT_ONCE]).status_code == 201
        time.sleep(0.3)
        assert http.post(f"{MANY}/{verb}/pause", params={"wait": 90}).json()["status"]["phase"] == "paused"
        problem(http.post(f"{MANY}/{verb}/kill", json={"signal": "HUP"}), 409, "conflict")
        ended = http.post(f"{MANY}/{verb}/{verb}", json=body, params={"wait": 90}).json()["status"]
        assert (ended["phase"], ended["exit_code"]) == ("stopped", code)


def test_put_is_the_whole_and_patch_a_part(http: httpx.Client) -> None:
    spec = {"image": "busybox", "command": ["sleep", "1000"], "memory": 64 << 20, "power": "stopped"}
    made = http.put(f"{MANY}/put", json={"labels": {"a": "1", "b": "2"}, "spec": spec})
    assert made.status_code in (200, 201) and made.json()["spec"]["memory"] == 64 << 20
    again = http.put(f"{MANY}/put", json={"labels": {"c": "3"}, "spec": {**spec, "memory": 96 << 20}})
    assert again.json()["id"] == made.json()["id"] and again.json()["labels"] == {"c": "3"}
    assert again.json()["spec"]["memory"] == 96 << 20
    bare = http.put(f"{MANY}/put", json={"spec": {key: spec[key] for key in ("image", "command")}})
    assert bare.json()["labels"] == {} and bare.json()["spec"]["memory"] is None
    patched = http.patch(
        f"{MANY}/put", json={"labels": {"x": "y"}, "spec": {"cpu": 500, "environment": {"A": "B"}}}
    ).json()
    assert (patched["spec"]["cpu"], patched["spec"]["environment"], patched["labels"]) == (500, {"A": "B"}, {"x": "y"})
    patched = http.patch(f"{MANY}/put", json={"labels": {"x": None}, "spec": {"cpu": None}}).json()
    assert (patched["spec"]["cpu"], patched["spec"]["environment"], patched["labels"]) == (None, {"A": "B"}, {})
    assert patched["generation"] > made.json()["generation"]
    problem(http.patch(f"{MANY}/put", json={"spec": {"image": "other"}}), 422, "unsupported")
    problem(http.patch(f"{MANY}/put", json={"spec": {"epoch": 7}}), 400, "invalid")
    problem(http.patch(f"{MANY}/put", json={"spec": {"memory": "lots"}}), 400, "invalid")
    problem(http.patch(f"{MANY}/put", json={"status": {}}), 400, "invalid")


@pytest.mark.parametrize(
    "spec",
    [
        {"command": ["a\0b"]},
        {"command": [""]},
        {"command": ["x" * 200_000]},
        {"environment": {"A\0": "b"}},
        {"environment": {"A=B": "b"}},
        {"environment": {"A": "b\0"}},
        {"working_directory": "relative"},
        {"working_directory": "/a\0b"},
        {"hostname": "a\nb"},
        {"hostname": "../../etc"},
        {"user": "\0"},
        {"cpu": 0},
        {"cpu": -1},
        {"cpu": 1 << 63},
        {"memory": 1},
        {"memory": -5},
        {"memory": 1 << 80},
        {"disk": -1},
        {"disk": 1 << 70},
        {"pids": 0},
        {"image": "x" * 5000},
        {"image": "../../etc/passwd"},
        {"stop_signal": "SIGNONE"},
        {"stop_timeout": -1},
        {"isolation": "chroot"},
        {"nics": [{"network": "none such"}]},
        {"nics": [{"network": "default", "publish": [{"port": 70000}]}]},
        {"unheard": "of"},
    ],
    ids=lambda spec: json.dumps(spec)[:40],
)
def test_what_makes_no_sense_is_refused_and_leaves_nothing(http: httpx.Client, spec: dict[str, Any]) -> None:
    answer = make(http, "never", **spec)
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["code"] and answer.json()["detail"] and len(answer.text) < 20_000
    assert http.get(MANY).json()["items"] == []


def test_huge_and_broken_bodies(http: httpx.Client) -> None:
    problem(http.post(MANY, content=b"{" * 100_000), 400, "invalid")
    problem(http.post(MANY, content=b" " * (9 << 20)), 413, "too-large")
    problem(http.post(MANY, content=b"\xff\xfe"), 400, "invalid")
    problem(make(http, "x" * 64), 400, "invalid")
    for name in ("A_b", "a/b", "-a", "a\n", "a\0", "\u202e", ""):
        problem(make(http, name), 400, "invalid")
    assert http.get(f"{MANY}/{'x' * 5000}").status_code in (400, 404, 414)
    assert http.get(f"{MANY}/%00").status_code in (400, 404)
    problem(http.get(MANY, params={"unknown": "1"}), 400, "invalid")


# --- the same through the command


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run", "debian:99", "--", "true"), b"lamella image build debian:99"),
        (("run", "team/web", "--", "true"), b"lamella image pull docker://team/web"),
        (("run", "nothing", "--", "true"), b"lamella image"),
        (("run", "--memory", "lots", "busybox", "--", "true"), b"lots"),
        (("run", "--memory", "1", "busybox", "--", "true"), b"memory"),
        (("run", "--cpu", "0", "busybox", "--", "true"), b"cpu"),
        (("run", "--disk", "-1", "busybox", "--", "true"), b"disk"),
        (("run", "--name", "Bad_Name", "busybox", "--", "true"), b"Bad_Name"),
        (("run", "--name", "../x", "busybox", "--", "true"), b"../x"),
        (("run", "--isolation", "chroot", "busybox", "--", "true"), b"chroot"),
        (("run", "--restart", "often", "busybox", "--", "true"), b"often"),
        (("run", "-p", "99999:1", "busybox", "--", "true"), b"99999"),
        (("run", "--network", "absent", "busybox", "--", "true"), b"absent"),
        (("run", "--rm", "--restart", "always", "busybox", "--", "true"), b"--rm"),
        (("run", "-w", "relative", "busybox", "--", "true"), b"relative"),
        (("run", "-l", "=x", "busybox", "--", "true"), b"label"),
        (("run",), b"image"),
        (("exec", "absent", "--", "true"), b"absent"),
        (("exec", "absent"), b"command"),
        (("exec", "--timeout", "soon", "absent", "--", "true"), b"soon"),
        (("create", "absent"), b"absent"),
        (("stop", "absent"), b"absent"),
        (("rm", "absent"), b"absent"),
        (("set", "absent", "--memory", "lots"), b"lots"),
        (("contract", "absent"), b"absent"),
        (("logs", "absent"), b"absent"),
        (("show", "absent"), b"absent"),
        (("cp", "absent:/x", "/dev/null"), b"absent"),
        (("image", "import", "/no/such/file", "--name", "x"), b"/no/such/file"),
        (("image", "rm", "absent"), b"absent"),
        (("image", "show", "absent"), b"absent"),
        (("kill", "--signal", "NONE", "absent"), b""),
        (("frobnicate",), b"frobnicate"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else None,
)
def test_bad_input_is_one_sentence(layer: LayerUnderTest, arguments: tuple[str, ...], says: bytes) -> None:
    done = layer.lamella(*arguments, check=False, timeout=90)
    expected = {125} if arguments[0] in ("run", "exec") else {1, 2}
    assert done.returncode in expected, done
    assert done.stdout == b"" and says in done.stderr and b"Traceback" not in done.stderr, done
    lines = done.stderr.decode().splitlines()
    assert 1 <= len(lines) <= 3 and lines[0].startswith("lamella: "), lines
    assert layer.out("ps", "-a", "-q") == ""


def test_a_duplicate_name_is_one_sentence(layer: LayerUnderTest) -> None:
    layer.lamella("create", "--name", "double", "busybox")
    for arguments in (("run", "--name", "double", "busybox", "--", "true"), ("create", "--name", "double", "busybox")):
        done = layer.lamella(*arguments, check=False)
        assert done.returncode == (125 if arguments[0] == "run" else 1)
        assert b"double" in done.stderr and len(done.stderr.splitlines()) <= 2
    assert layer.out("ps", "-a", "-q") == "double\n"
    layer.lamella("rm", "double")
