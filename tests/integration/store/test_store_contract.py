"""What every database under the store has to keep: the words of ``store.py``, one test each."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from store_actors import instance, volume

from lamella.model.errors import Conflict, Internal, Invalid, LamellaError, NotFound, StaleRevision, Unavailable
from lamella.model.ids import new_id
from lamella.model.kinds import AnyResource
from lamella.model.operation import Event, EventSpec, EventStatus
from lamella.model.resource import new_resource
from lamella.store.store import Audit, Change, Store, Transaction

Another = Callable[[], Awaitable[Store]]


async def put(store: Store, resource: AnyResource) -> AnyResource:
    return await store.write(lambda tx: tx.insert(resource))


async def log(store: Store, since: int = 0) -> list[Change]:
    return list(await store.changes(since))


def event(name: str) -> Event:
    return new_resource("event", name, EventSpec(type="t", subject="s", subject_name="n", message="m"), EventStatus())


async def test_what_was_inserted_is_read_back_equal(store: Store) -> None:
    given = instance("web", tier="front")
    given.spec.environment = {"Z": "1", "A": "\U0001f980", "M": "3"}
    given.deleted_at = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    made = await put(store, given)
    assert made.revision == 1
    assert msgspec.structs.replace(given, revision=1) == made
    assert await store.get("instance", "default", "web") == made
    assert await store.get("instance", "default", made.id) == made
    assert await store.by_id(made.id) == made
    assert list((await store.by_id(made.id)).spec.environment) == ["Z", "A", "M"]
    assert given.revision == 0


async def test_text_is_kept_whatever_is_in_it(store: Store) -> None:
    given = event("e")
    given.spec.message = "nul \x00, quotes \"'`, \\, \u2028, \ufffd, \U0001f980, %s :x {}"
    given.spec.facts = {"b": "1", "a": "2", "": "3"}
    made = await put(store, given)
    found = await store.by_id(made.id)
    assert found.spec == given.spec and list(found.spec.facts) == ["b", "a", ""]


async def test_absent_resources_are_not_found(store: Store) -> None:
    made = await put(store, instance("web"))
    for kind, project, name in [
        ("instance", "default", "other"),
        ("instance", "else", "web"),
        ("volume", "default", "web"),
        ("volume", "default", made.id),
        ("instance", "else", made.id),
        ("instance", "default", new_id("instance")),
    ]:
        with pytest.raises(NotFound):
            await store.get(kind, project, name)
    with pytest.raises(NotFound):
        await store.by_id(new_id("instance"))


async def test_a_taken_name_is_a_conflict_that_says_which(store: Store) -> None:
    await put(store, instance("web"))
    with pytest.raises(Conflict, match="instance 'web' exists already in project 'default'"):
        await put(store, instance("web"))
    await put(store, volume("web"))
    elsewhere = instance("web")
    elsewhere.project = "team"
    await put(store, elsewhere)
    assert [change.revision for change in await log(store)] == [1, 2, 3]


async def test_a_taken_id_is_a_conflict(store: Store) -> None:
    made = await put(store, instance("web"))
    twin = instance("other")
    twin.id = made.id
    with pytest.raises(Conflict, match=made.id):
        await put(store, twin)


async def test_what_no_reader_could_read_is_not_stored(store: Store) -> None:
    unknown, wrong = instance("a"), instance("b")
    unknown.kind = "spaceship"
    wrong.spec.cpu = -5
    for bad in (unknown, wrong):
        with pytest.raises(Invalid):
            await put(store, bad)
    assert (await store.list("instance")).items == []


async def test_an_update_writes_what_may_change(store: Store) -> None:
    made = await put(store, instance("web"))
    made.labels = {"a": "b"}
    made.status.restarts = 3
    updated = await store.write(lambda tx: tx.update(made))
    assert (updated.revision, updated.generation, updated.labels) == (2, 1, {"a": "b"})
    updated.spec.memory = 1 << 30
    again = await store.write(lambda tx: tx.update(updated, expected=2))
    assert (again.revision, again.generation) == (3, 2)
    again.name, again.project = "moved", "elsewhere"
    again.deleted_at = datetime.now(UTC)
    gone = await store.write(lambda tx: tx.update(again))
    assert (gone.name, gone.project, gone.deleted_at) == ("web", "default", again.deleted_at)
    assert await store.by_id(made.id) == gone
    assert [(c.action, c.resource.revision) for c in await log(store)] == [
        ("created", 1),
        ("updated", 2),
        ("updated", 3),
        ("updated", 4),
    ]
    assert (await log(store))[-1].resource == gone


async def test_a_new_name_is_all_that_a_rename_changes(store: Store) -> None:
    made = await put(store, volume("data"))
    other = await put(store, volume("other"))

    def change(tx: Transaction) -> AnyResource:
        tx.by_id(made.id)
        renamed = tx.rename(made.id, "moved")
        assert tx.get("volume", "default", "data") is None and tx.by_id(made.id) == renamed
        return renamed

    renamed = await store.write(change)
    assert renamed == msgspec.structs.replace(made, name="moved", revision=3)
    assert await store.get("volume", "default", "moved") == renamed
    with pytest.raises(NotFound):
        await store.get("volume", "default", "data")
    last = (await log(store))[-1]
    assert (last.action, last.name, last.resource) == ("updated", "moved", renamed)
    with pytest.raises(Conflict, match="'other' exists already"):
        await store.write(lambda tx: tx.rename(made.id, "other"))
    assert await store.write(lambda tx: tx.rename(other.id, "other")) == other
    assert (await put(store, volume("data"))).revision == 4
    with pytest.raises(NotFound):
        await store.write(lambda tx: tx.rename(new_id("volume"), "x"))


async def test_the_unchanged_is_not_written(store: Store) -> None:
    made = await put(store, instance("web"))
    assert await store.write(lambda tx: tx.update(made)) == made
    assert await store.revision() == 1


async def test_a_stale_revision_is_refused_even_when_nothing_would_change(store: Store) -> None:
    made = await put(store, instance("web"))
    made.labels = {"v": "1"}
    await store.write(lambda tx: tx.update(made, expected=1))
    with pytest.raises(StaleRevision):
        await store.write(lambda tx: tx.update(made, expected=1))
    assert await store.revision() == 2


async def test_the_gone_cannot_be_updated_or_deleted(store: Store) -> None:
    made = await put(store, instance("web"))
    await store.write(lambda tx: tx.delete(made.id))
    with pytest.raises(NotFound):
        await store.write(lambda tx: tx.update(made))
    with pytest.raises(NotFound):
        await store.write(lambda tx: tx.delete(made.id))
    last = (await log(store))[-1]
    assert (last.action, last.revision, last.resource) == ("deleted", 2, made)
    assert (await put(store, instance("web"))).revision == 3


async def test_one_write_of_many_has_a_revision_for_each(store: Store) -> None:
    def change(tx: Transaction) -> list[int]:
        first, second = tx.insert(instance("a")), tx.insert(volume("b"))
        first.labels = {"x": "y"}
        seen = tx.get("instance", "default", "a")
        assert seen is not None and seen.revision == first.revision
        third = tx.update(first)
        listed = tx.list("instance")
        assert [item.labels for item in listed] == [{"x": "y"}]
        tx.delete(second.id)
        assert tx.by_id(second.id) is None
        return [first.revision, second.revision, third.revision]

    assert await store.write(change) == [1, 2, 3]
    assert [(c.revision, c.action, c.name) for c in await log(store)] == [
        (1, "created", "a"),
        (2, "created", "b"),
        (3, "updated", "a"),
        (4, "deleted", "b"),
    ]


async def test_whatever_the_change_raises_undoes_all_of_it(store: Store) -> None:
    def change(tx: Transaction) -> None:
        made = tx.insert(instance("web"))
        tx.claim("address", "10.0.0.1", made.id)
        raise LookupError("not today")

    with pytest.raises(LookupError, match="not today"):
        await store.write(change)
    assert await store.revision() == 0
    assert await store.read(lambda tx: tx.claims("address")) == {}
    assert (await put(store, instance("web"))).revision == 1


@pytest.mark.parametrize("failing", [range(0, 60, 3), range(59, 60)], ids=["every third", "the last"])
async def test_who_fails_among_many_at_once_undoes_only_itself(store: Store, failing: range) -> None:
    def change(tx: Transaction, number: int) -> int:
        made = tx.insert(instance(f"i{number}"))
        if number == 0:
            # The others queue up behind it, and share a commit.
            time.sleep(0.05)
        if number in failing:
            raise LookupError(number)
        return made.revision

    writes = (store.write(lambda tx, n=n: change(tx, n)) for n in range(60))
    answers = await asyncio.gather(*writes, return_exceptions=True)
    assert [n for n, answer in enumerate(answers) if isinstance(answer, LookupError)] == list(failing)
    good = 60 - len(failing)
    assert [answer for answer in answers if isinstance(answer, int)] == list(range(1, good + 1))
    assert [c.revision for c in await log(store)] == list(range(1, good + 1))
    assert len((await store.list("instance")).items) == good


async def test_a_refused_step_may_be_followed_by_another(store: Store) -> None:
    holder = await put(store, instance("holder"))
    await store.write(lambda tx: tx.claim("address", "1", holder.id))

    def change(tx: Transaction) -> str:
        made = tx.insert(instance("second"))
        for key in ("1", "2"):
            try:
                tx.claim("address", key, made.id)
            except Conflict:
                continue
            return key
        raise AssertionError

    assert await store.write(change) == "2"
    assert (await store.read(lambda tx: tx.claims("address")))["1"] == holder.id


async def test_a_swallowed_error_of_the_database_is_no_success(store: Store) -> None:
    def change(tx: Transaction) -> str:
        tx.insert(instance("web"))
        try:
            tx.session.run("SELECT nonsense FROM nowhere")  # type: ignore[attr-defined]
        except Exception:
            return "fine"
        raise AssertionError

    with pytest.raises(Internal):
        await store.write(change)
    assert await store.revision() == 0


async def test_claims_are_held_once(store: Store) -> None:
    a, b = await put(store, instance("a")), await put(store, instance("b"))
    await store.write(lambda tx: tx.claim("mac", "02:00", a.id))
    await store.write(lambda tx: tx.claim("mac", "02:00", a.id))
    with pytest.raises(Conflict, match=a.id):
        await store.write(lambda tx: tx.claim("mac", "02:00", b.id))
    await store.write(lambda tx: tx.release("mac", "02:00", b.id))
    assert await store.read(lambda tx: tx.claims("mac")) == {"02:00": a.id}
    await store.write(lambda tx: tx.claim("ip", "02:00", b.id))
    await store.write(lambda tx: tx.delete(a.id))
    assert await store.read(lambda tx: tx.claims("mac")) == {}
    assert await store.read(lambda tx: tx.claims("ip")) == {"02:00": b.id}
    await store.write(lambda tx: tx.release("ip", "02:00", b.id))
    assert await store.read(lambda tx: tx.claims("ip")) == {}


async def test_a_look_cannot_write(store: Store) -> None:
    made = await put(store, instance("web"))
    looks: list[Callable[[Transaction], object]] = [
        lambda tx: tx.insert(instance("b")),
        lambda tx: tx.update(made),
        lambda tx: tx.delete(made.id),
        lambda tx: tx.claim("a", "b", made.id),
        lambda tx: tx.release("a", "b", made.id),
        lambda tx: tx.audit(Audit(principal="p", verb="v", subject="s")),
        lambda tx: tx.session.run("DELETE FROM resources"),  # type: ignore[attr-defined]
    ]
    for look in looks:
        with pytest.raises(LamellaError):
            await store.read(look)
    assert await store.by_id(made.id) == made


async def test_what_a_look_raises_is_raised(store: Store) -> None:
    def look(tx: Transaction) -> None:
        raise LookupError(str(len(tx.list("instance"))))

    with pytest.raises(LookupError, match="0"):
        await store.read(look)


async def test_a_look_is_of_one_moment(store: Store) -> None:
    made = await put(store, instance("web"))
    began, written = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def look(tx: Transaction) -> tuple[int, int, int]:
        first = len(tx.list("instance"))
        loop.call_soon_threadsafe(began.set)
        deadline = time.monotonic() + 90
        while not written.is_set() and time.monotonic() < deadline:
            time.sleep(0.005)
        seen = tx.by_id(made.id)
        assert seen is not None
        return first, len(tx.list("instance")), seen.revision

    looking = asyncio.create_task(store.read(look))
    await began.wait()
    made.labels = {"new": "label"}
    await store.write(lambda tx: (tx.update(made), tx.insert(instance("other"))))
    written.set()
    assert await looking == (1, 1, 1)


async def test_pages_follow_each_other_in_order_of_id(store: Store) -> None:
    for number in range(25):
        await put(store, instance(f"i{number}", odd=str(number % 2)))
    await put(store, volume("not-this"))
    whole = (await store.list("instance")).items
    assert [item.id for item in whole] == sorted(item.id for item in whole)
    cursor, pages = "", []
    while True:
        page = await store.list("instance", cursor=cursor, limit=5)
        pages.append(page.items)
        assert page.revision == 26
        cursor = page.cursor
        if not cursor:
            break
    assert [len(items) for items in pages] == [5, 5, 5, 5, 5]
    assert [item for items in pages for item in items] == whole
    # What is made or removed between two pages moves nothing else.
    first = await store.list("instance", limit=10)
    await store.write(lambda tx: tx.delete(first.items[9].id))
    await store.write(lambda tx: tx.delete(first.items[0].id))
    rest = await store.list("instance", cursor=first.cursor, limit=1000)
    assert rest.items == whole[10:]
    assert (await store.list("event")).items == []


async def test_bad_cursors_and_sizes_are_refused_with_a_sentence(store: Store) -> None:
    for cursor in ("x", "inst_", "'; DROP TABLE resources", "inst_" + "u" * 26):
        with pytest.raises(Invalid, match="cursor"):
            await store.list("instance", cursor=cursor)
    for limit in (0, -1, 1_000_000):
        with pytest.raises(Invalid):
            await store.list("instance", limit=limit)


async def test_what_no_database_can_hold_is_refused_with_a_sentence(store: Store) -> None:
    lone = "\ud800"
    with pytest.raises(Invalid):
        await store.get("instance", "default", lone)
    with pytest.raises(Invalid):
        await store.list("instance", labels={"a": lone})
    with pytest.raises(Invalid):
        await store.list("instance", labels={str(n): "" for n in range(2000)})
    with pytest.raises(Invalid):
        await put(store, instance("web", a=lone))
    with pytest.raises(Invalid):
        await store.write(lambda tx: tx.claim("space", lone, "owner"))
    for since in (-1, 1 << 63, 10**30):
        with pytest.raises(Invalid):
            await store.changes(since)


async def test_labels_and_projects_select(store: Store) -> None:
    odd = {"a.b/c-d": "1", 'quote"s': "it's $", "plain": "%x"}
    made = await put(store, instance("a", **odd))
    await put(store, instance("b", plain="other"))
    elsewhere = instance("a", plain="%x")
    elsewhere.project = "team"
    elsewhere = await put(store, elsewhere)

    async def names(project: str | None, labels: dict[str, str]) -> list[str]:
        return [item.id for item in (await store.list("instance", project=project, labels=labels)).items]

    for key, value in odd.items():
        assert await names("default", {key: value}) == [made.id]
        assert await names("default", {key: value + "?"}) == []
    assert await names("default", odd) == [made.id]
    assert await names(None, {"plain": "%x"}) == [made.id, elsewhere.id]
    assert await names("team", {"plain": "%x"}) == [elsewhere.id]
    assert await names("team", {}) == [elsewhere.id]
    assert await names("nobody", {}) == []


async def test_the_log_says_when_it_no_longer_reaches_back(store: Store) -> None:
    for number in range(10):
        await put(store, instance(f"i{number}"))
    await store.prune(keep_changes=4, keep_events=100)
    assert [change.revision for change in await log(store, 6)] == [7, 8, 9, 10]
    assert [change.revision for change in await store.changes(7, limit=2)] == [8, 9]
    assert await log(store, 10) == []
    for since in (0, 5, 11):
        with pytest.raises(Conflict):
            await log(store, since)
    with pytest.raises(Conflict):
        async for _ in store.watch(5):
            pass
    await store.prune(keep_changes=0, keep_events=0)
    assert await store.revision() == 10
    assert (await put(store, instance("next"))).revision == 11
    assert len((await store.list("instance")).items) == 11


async def test_pruning_takes_the_oldest_events_and_nothing_else(store: Store) -> None:
    def many(tx: Transaction) -> None:
        for number in range(2500):
            made = event(f"e{number}")
            made.id = new_id("event", now_ms=1_700_000_000_000 + number)
            tx.insert(made)

    await store.write(many)
    await put(store, instance("web"))
    await store.prune(keep_changes=10, keep_events=7)
    assert [item.name for item in (await store.list("event")).items] == [f"e{n}" for n in range(2493, 2500)]
    assert len((await store.list("instance")).items) == 1
    assert [change.revision for change in await log(store, 2491)] == list(range(2492, 2502))
    await store.prune(keep_changes=10, keep_events=7)
    assert len((await store.list("event")).items) == 7


async def test_a_watch_tells_the_backlog_and_then_what_comes(store: Store) -> None:
    await put(store, instance("a"))
    await put(store, instance("b"))
    watch = store.watch(1)
    assert (await anext(watch)).revision == 2
    waiting = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    made = await put(store, instance("c"))
    change = await asyncio.wait_for(waiting, 90)
    assert (change.revision, change.action, change.resource) == (3, "created", made)
    await watch.aclose()  # type: ignore[attr-defined]


async def test_a_slow_watcher_misses_nothing(store: Store) -> None:
    async def slowly() -> list[int]:
        seen: list[int] = []
        async for change in store.watch(0):
            seen.append(change.revision)
            if len(seen) % 50 == 0:
                await asyncio.sleep(0.02)
            if len(seen) == 600:
                break
        return seen

    watcher = asyncio.create_task(slowly())
    for batch in range(60):
        await store.write(lambda tx, batch=batch: [tx.insert(instance(f"i{batch}-{n}")) for n in range(10)] and None)
    assert await asyncio.wait_for(watcher, 90) == list(range(1, 601))


async def test_watchers_end_when_the_store_is_closed(store: Store, another: Another) -> None:
    other = await another()
    waiting = asyncio.ensure_future(anext(other.watch(0)))
    await asyncio.sleep(0.05)
    await other.close()
    with pytest.raises(Unavailable):
        await asyncio.wait_for(waiting, 90)
    with pytest.raises(Unavailable):
        await other.revision()
    with pytest.raises(Unavailable):
        await other.write(lambda tx: None)


async def test_a_watcher_hears_of_another_store_on_the_same_database(store: Store, another: Another) -> None:
    other = await another()
    watch = store.watch(0)
    waiting = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0.3)
    made = await put(other, instance("web"))
    assert (await asyncio.wait_for(waiting, 3)).resource == made
    await watch.aclose()  # type: ignore[attr-defined]


async def test_leases_pass_on_when_they_run_out(store: Store, another: Another) -> None:
    other = await another()
    assert await store.acquire("leader", "a", 0.4)
    assert not await other.acquire("leader", "b", 60)
    assert await store.acquire("leader", "a", 0.4)
    await asyncio.sleep(0.5)
    assert await other.acquire("leader", "b", 60)
    assert not await store.acquire("leader", "a", 60)
    await store.release("leader", "a")
    assert not await store.acquire("leader", "a", 60)
    await other.release("leader", "b")
    assert await store.acquire("leader", "a", 60)
    assert await store.acquire("other", "b", 60)


async def test_usage_adds_up_within_the_hour(store: Store) -> None:
    at = datetime(2026, 5, 1, 10, 59, 59, tzinfo=UTC)
    for amount in (1.5, 2.25):
        await store.add_usage("inst_x", "cpu", amount, at)
    await store.add_usage("inst_x", "cpu", 4, at.astimezone(UTC) + timedelta(seconds=1))
    await store.add_usage("inst_x", "memory", 8, at)
    rows = await store.read(
        lambda tx: tx.session.all("SELECT subject, meter, hour, amount FROM usage ORDER BY meter, hour")  # type: ignore[attr-defined]
    )
    assert [tuple(row) for row in rows] == [
        ("inst_x", "cpu", "2026-05-01T10", 3.75),
        ("inst_x", "cpu", "2026-05-01T11", 4.0),
        ("inst_x", "memory", "2026-05-01T10", 8.0),
    ]


async def test_an_audit_is_kept_with_the_change_that_it_tells_of(store: Store) -> None:
    entry = Audit(principal="unix:root", verb="create", subject="instance/web", allowed=False, detail="no")
    await store.write(lambda tx: tx.audit(entry))

    def undone(tx: Transaction) -> None:
        tx.audit(entry)
        raise LookupError

    with pytest.raises(LookupError):
        await store.write(undone)
    rows = await store.read(
        lambda tx: tx.session.all("SELECT principal, verb, subject, allowed, detail FROM audit")  # type: ignore[attr-defined]
    )
    assert [tuple(row) for row in rows] == [("unix:root", "create", "instance/web", False, "no")]


async def test_a_cancelled_write_happens_wholly_or_not_at_all(store: Store) -> None:
    def change(tx: Transaction, number: int) -> None:
        made = tx.insert(instance(f"i{number}"))
        time.sleep(0.002)
        tx.insert(volume(f"i{number}"))
        tx.claim("n", str(number), made.id)

    tasks = [asyncio.create_task(store.write(lambda tx, n=n: change(tx, n))) for n in range(40)]
    for number, task in enumerate(tasks):
        if number % 2:
            await asyncio.sleep(0.003)
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    # Whatever was still on its way ends before this does.
    await store.write(lambda tx: None)
    instances = {item.name for item in (await store.list("instance")).items}
    volumes = {item.name for item in (await store.list("volume")).items}
    claims = await store.read(lambda tx: tx.claims("n"))
    assert instances == volumes == {f"i{key}" for key in claims}
    assert {f"i{n}" for n, task in enumerate(tasks) if not task.cancelled()} <= instances
    assert [c.revision for c in await log(store)] == list(range(1, 2 * len(instances) + 1))
