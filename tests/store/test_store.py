"""One suite for every database behind the store's port.

PostgreSQL is tested where INTERLATENT_TEST_POSTGRES holds the address of an empty database, as
`.ci/with_postgres` arranges.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from dataclasses import replace

import msgspec
import pytest
import sqlalchemy as sa
from msgspec.structs import replace as replace_document

from interlatent_live.errors import UserError
from interlatent_live.feed.documents import NarrationTrigger, NarrationTruth
from interlatent_live.store import (
    ClaimFilter,
    Correction,
    CorrectionKind,
    StoreError,
    open_store,
    sql,
)
from interlatent_live.store import tables as t
from interlatent_live.store.sql import claim_id
from tests.support.feeds import (
    HASH,
    agents_document,
    claim,
    claims_document,
    costs_document,
    narration_document,
)

POSTGRES = os.environ.get("INTERLATENT_TEST_POSTGRES", "")
ADDRESS = f"hidden.1/3@{HASH}"
ONE = claim_id("run-1", ADDRESS)


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param(
            "postgres", marks=pytest.mark.skipif(not POSTGRES, reason="no PostgreSQL given")
        ),
    ]
)
def url(request, tmp_path):
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'store.sqlite3'}"
        return
    yield POSTGRES
    engine = sa.create_engine(POSTGRES.replace("postgresql://", "postgresql+psycopg://", 1))
    with engine.begin() as connection:
        t.metadata.drop_all(connection)
        connection.execute(sa.text("DROP TABLE IF EXISTS alembic_version"))
    engine.dispose()


@pytest.fixture
def store(url):
    opened = open_store(url)
    yield opened
    opened.close()


def full(index=3, verdict="verified", **changes):
    values = {
        "version": 0,
        "created_ns": 1,
        "judged_ns": 2,
        "reason": "because",
        "writer": "built-in",
        "prompt_hash": "",
    }
    return claim(index, verdict, **(values | changes))


def document(*claims, at=10):
    made = claims_document(list(claims))
    return type(made)(
        **{f: getattr(made, f) for f in made.__struct_fields__} | {"published_ns": at}
    )


def test_the_same_documents_again_after_a_restart_change_nothing(url):
    documents = [
        agents_document(),
        document(full()),
        costs_document(),
        narration_document(),
        document(full(verdict="stale", judged_ns=7), at=11),
    ]

    def everything(store):
        return [
            store.runs(),
            store.claims(ClaimFilter()),
            store.history(ONE),
            store.costs(),
            store.narration(),
        ]

    first = open_store(url)
    for one in documents:
        first.take(one)
    kept = everything(first)
    first.close()
    second = open_store(url)
    for one in documents:
        second.take(one)
    assert everything(second) == kept
    second.close()
    assert [row["verdict"] for row in kept[2]["verdicts"]] == ["verified", "stale"]
    assert len(kept[2]["versions"]) == len(kept[3]) == len(kept[4]) == 1


def test_narration_is_kept_with_what_had_it_spoken_and_how_true_it_was(store):
    said = narration_document()
    store.take(said)
    truth = NarrationTruth(cited=1, true=1, still=0, rate=0.9, still_rate=0.5, of=10)
    trigger = NarrationTrigger("terminated", "episode 2 terminated at step 100")
    store.take(replace_document(said, published_ns=2, trigger=trigger, truth=truth))
    newest, older = store.narration()
    assert (older["trigger"], older["truth"]) == (None, None)
    assert msgspec.convert(newest["trigger"], NarrationTrigger) == trigger
    assert msgspec.convert(newest["truth"], NarrationTruth) == truth


def test_a_late_old_document_does_not_replace_a_newer_one(store):
    store.take(document(full(verdict="stale", judged_ns=7), at=20))
    store.take(document(full(), at=10))
    assert store.claim(ONE).verdict == "stale"
    assert [row["verdict"] for row in store.history(ONE)["verdicts"]] == ["verified", "stale"]


def test_verdicts_that_passed_while_nobody_wrote_are_filled_in_once(store):
    store.take(document(full(judged_ns=2)))
    events = [
        {"version": 0, "at_ns": at, "verdict": verdict, "reason": "", "balanced_accuracy": None}
        for at, verdict in ((1, "pending"), (2, "verified"), (5, "stale"))
    ]
    for _ in range(2):
        store.recollect("run-1", "hidden.1", {ADDRESS: events, "hidden.1/99@sha256:0": events})
    assert [row["at_ns"] for row in store.history(ONE)["verdicts"]] == [1, 2, 5]


def test_an_explainer_that_numbers_from_0_again_makes_another_version(store):
    store.take(document(full(created_ns=1)))
    store.take(document(full(created_ns=50, judged_ns=51, label="another"), at=60))
    versions = store.history(ONE)["versions"]
    assert [(row["version"], row["created_ns"]) for row in versions] == [(0, 1), (0, 50)]


def test_a_challenger_s_text_and_verdict_are_kept_beside_those_of_the_claim_that_stands(store):
    rival = full(3, "weak", version=1, created_ns=8, judged_ns=9, writer="person:ada")
    store.take(document(full(challenger=rival)))
    row, history = store.claim(ONE), store.history(ONE)
    assert (row.version, row.verdict) == (0, "verified")
    assert [(one["version"], one["writer"]) for one in history["versions"]] == [
        (0, "built-in"),
        (1, "person:ada"),
    ]
    assert [(one["version"], one["verdict"]) for one in history["verdicts"]] == [
        (0, "verified"),
        (1, "weak"),
    ]


def test_claims_are_paged_and_filtered(store):
    store.take(document(*(full(index, "weak" if index % 2 else "verified") for index in range(7))))
    found, after = [], ""
    while page := store.claims(ClaimFilter(), after=after, limit=3):
        found += [row.feature for row in page]
        after = page[-1].id
    assert sorted(found) == list(range(7))
    assert {row.feature for row in store.claims(ClaimFilter(verdict="weak"))} == {1, 3, 5}
    assert [row.id for row in store.claims(ClaimFilter(address=ADDRESS))] == [ONE]
    assert store.claims(ClaimFilter(run_id="another")) == []
    assert store.claim("nothing") is None


def test_a_persons_word_is_kept_with_the_verdict_of_that_moment(store):
    store.take(document(full()))
    said = Correction("c1", ONE, CorrectionKind.REJECT, "ada", 5, note="it is noise")
    kept = store.correct(said)
    assert (kept.verdict, kept.version) == ("verified", 0)
    assert store.correct(replace(said, at_ns=9)) == kept
    with pytest.raises(UserError, match="used for another"):
        store.correct(replace(said, note="something else"))
    with pytest.raises(UserError, match="no claim nothing"):
        store.correct(replace(said, claim_id="nothing"))
    store.take(document(full(verdict="stale", judged_ns=7), at=11))
    (row,) = store.history(ONE)["corrections"]
    assert (row["kind"], row["verdict"], row["note"]) == ("reject", "verified", "it is noise")


def test_what_is_kept_is_bounded_and_what_people_corrected_stays(url, monkeypatch):
    monkeypatch.setattr("interlatent_live.store.sql._PRUNE_EVERY", 1)
    store = open_store(url, runs_kept=2, narrations_kept=3)
    store.take(agents_document(run_id="run-1", last_step_ns=1))
    store.take(document(full()))
    store.correct(Correction("c1", ONE, CorrectionKind.ACCEPT, "ada", 5))
    made = narration_document()
    for number in range(2, 8):
        store.take(agents_document(run_id=f"run-{number}", last_step_ns=number))
        fields = {f: getattr(made, f) for f in made.__struct_fields__}
        store.take(type(made)(**fields | {"run_id": "run-7", "published_ns": number}))
    assert [run["run_id"] for run in store.runs()] == ["run-1", "run-6", "run-7"]
    assert store.claim(ONE) is not None
    assert [row["published_ns"] for row in store.narration()] == [7, 6, 5]
    store.close()


def test_processes_that_open_it_together_make_one_schema(url):
    failed = []

    def use():
        try:
            one = open_store(url)
            one.take(document(full()))
            one.close()
        except Exception as error:  # noqa: BLE001 - shown by the assertion
            failed.append(error)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    store = open_store(url)
    assert len(store.history(ONE)["verdicts"]) == 1
    store.close()


def test_the_migrations_make_exactly_the_tables_that_the_code_uses(url, store):
    from alembic.autogenerate import compare_metadata  # noqa: PLC0415 - only here
    from alembic.runtime.migration import MigrationContext  # noqa: PLC0415 - only here

    with store._engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), t.metadata) == []


def test_a_locked_a_full_a_newer_and_a_foreign_database_are_said_in_a_sentence(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("interlatent_live.store.sql.BUSY_MS", 50)
    file = tmp_path / "store.sqlite3"
    store = open_store(f"sqlite:///{file}")
    store.take(document(full()))
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"):
        store.take(document(full(), at=11))
    assert store.claim(ONE).updated_ns == 10  # reading waits for no writer
    other.execute("ROLLBACK")
    store.take(document(full(), at=12))
    store.close()
    full_up = open_store(f"sqlite:///{file}")

    @sa.event.listens_for(full_up._engine, "connect")
    def _small(connection, record):
        connection.execute("PRAGMA max_page_count=1")

    full_up._engine.dispose()
    with pytest.raises(StoreError, match="full"):
        full_up.take(document(*(full(n, description="x" * 5000) for n in range(50)), at=13))
    full_up.close()
    other.execute("UPDATE alembic_version SET version_num = '9999'")
    other.close()
    with pytest.raises(StoreError, match="newer version"):
        open_store(f"sqlite:///{file}")
    file.write_text("not a database, and long enough to be noticed as such" * 40)
    with pytest.raises(StoreError, match="not a database"):
        open_store(f"sqlite:///{file}")


def test_a_run_of_which_nothing_is_new_is_written_down_once_a_minute(store, monkeypatch):
    written = []
    take = sql._take_run

    def taking(connection, agent, now_ns):
        written.append(now_ns)
        take(connection, agent, now_ns)

    monkeypatch.setattr(sql, "_take_run", taking)
    second = 10**9
    for at in (1, 2, 3, 70):
        store.take(replace_document(agents_document(), published_ns=at * second))
    assert written == [1 * second, 70 * second]
    news = agents_document(steps_received=2000)
    store.take(replace_document(news, published_ns=71 * second))
    assert written[-1] == 71 * second
    assert store.run("run-1")["steps_received"] == 2000
