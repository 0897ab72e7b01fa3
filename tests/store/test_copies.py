"""Backups of the store, from and to every database behind its port."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from interlatent_live.errors import UserError
from interlatent_live.store import ClaimFilter, Correction, CorrectionKind, open_store
from interlatent_live.store.copies import backup_store, contents_of, restore_store
from tests.store.test_store import ONE, POSTGRES, document, full, url  # noqa: F401 - a fixture
from tests.support.feeds import agents_document, costs_document, narration_document

PREVIOUS = Path(__file__).parents[1] / "upgrade" / "previous" / "store.sqlite3"


def fill(store, narrations=3):
    store.take(agents_document())
    store.take(document(full(), full(4, "weak")))
    store.take(document(full(verdict="stale", judged_ns=7), at=11))
    store.take(costs_document())
    for at in range(narrations):
        made = narration_document(f"At {at}.")
        store.take(type(made)(**{
            name: getattr(made, name) for name in made.__struct_fields__ if name != "published_ns"
        }, published_ns=at))  # fmt: skip
    store.correct(
        Correction("c1", ONE, CorrectionKind.REJECT, "ada", 5, "It is the cart.", "", 0, "")
    )


def everything(store):
    claims = store.claims(ClaimFilter())
    return (
        store.runs(), claims, store.costs(), store.narration(),
        [store.history(one.id) for one in claims],
    )  # fmt: skip


def said(url):  # noqa: F811 - the address, here of any store
    store = open_store(url)
    try:
        return everything(store)
    finally:
        store.close()


def sqlite_url(folder, name="other.sqlite3"):
    return f"sqlite:///{folder / name}"


def test_a_backup_restores_to_the_same_store_also_in_another_database(url, tmp_path):  # noqa: F811
    store = open_store(url)
    fill(store)
    before = everything(store)
    file = tmp_path / "backup.sqlite3"
    made = backup_store(url, file)
    assert (made.rows["runs"], made.rows["claims"], made.rows["corrections"]) == (1, 2, 1)
    assert file.stat().st_mode & 0o777 == 0o600
    # Alone in its folder: nothing of SQLite's lies beside it.
    assert [one.name for one in tmp_path.glob("*backup*")] == ["backup.sqlite3"]
    assert contents_of(file) == made
    assert restore_store(file, sqlite_url(tmp_path)) == made
    assert said(sqlite_url(tmp_path)) == before

    # What came after the backup goes; the store goes on from where the backup was.
    store.take(document(full(9), at=20))
    with pytest.raises(UserError, match=r"holds 1 runs and 3 claims.*--force"):
        restore_store(file, url)
    store.close()
    restore_store(file, url, force=True)
    assert said(url) == before
    store = open_store(url)
    store.take(document(full(9), at=30))
    store.take(narration_document("Later."))
    numbers = [row["number"] for row in store.narration()]
    assert len(set(numbers)) == len(numbers)
    assert len(store.claims(ClaimFilter())) == 3
    store.close()


def test_a_backup_is_of_one_moment_while_others_write(url, tmp_path):  # noqa: F811
    store, stop = open_store(url), threading.Event()
    written = []

    def write():
        at = 0
        while not stop.is_set():
            at += 1
            store.take(document(full(at), at=at))
            written.append(at)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        while len(written) < 5:
            stop.wait(0.01)
        for number in range(3):
            at_least = len(written)
            rows = backup_store(url, tmp_path / f"{number}.sqlite3").rows
            assert at_least <= rows["claims"] <= len(written) + 1
            assert rows["claims"] == rows["claim_versions"] == rows["verdicts"]
    finally:
        stop.set()
        thread.join()
        store.close()
    assert len(written) > at_least, "the writer was not stopped"


def test_restoring_under_a_store_that_is_open_is_seen_by_it(tmp_path):
    address = sqlite_url(tmp_path)
    store = open_store(address)
    fill(store)
    backup_store(address, tmp_path / "b")
    before = everything(store)
    store.take(document(full(9), at=20))
    restore_store(tmp_path / "b", address, force=True)
    assert everything(store) == before
    store.take(document(full(9), at=21))
    assert len(store.claims(ClaimFilter())) == 3
    store.close()


def test_a_backup_of_the_previous_version_is_brought_up_to_date(url, tmp_path):  # noqa: F811
    before = PREVIOUS.read_bytes()
    file = tmp_path / "previous.sqlite3"
    file.write_bytes(before)
    made = restore_store(file, url)
    assert made.revision > contents_of(file).revision == "0001"
    assert len(said(url)[1]) == made.rows["claims"] > 0
    assert file.read_bytes() == before
    # And a store of the previous version is backed up as it is, before an upgrade.
    old = tmp_path / "old.sqlite3"
    old.write_bytes(before)
    assert backup_store(sqlite_url(tmp_path, "old.sqlite3"), tmp_path / "b").revision == "0001"


def test_every_bad_input_is_one_sentence(tmp_path):
    address = sqlite_url(tmp_path)
    with pytest.raises(UserError, match="there is no store at"):
        backup_store(address, tmp_path / "b")
    store = open_store(address)
    fill(store)
    store.close()
    file = tmp_path / "other.sqlite3"
    with pytest.raises(UserError, match="there is no folder"):
        backup_store(address, tmp_path / "no" / "b")
    backup_store(address, tmp_path / "b")
    with pytest.raises(UserError, match=r"is there already.*--force"):
        backup_store(address, tmp_path / "b")
    backup_store(address, tmp_path / "b", force=True)
    with pytest.raises(UserError, match="is the store itself"):
        backup_store(address, file, force=True)
    with pytest.raises(UserError, match="is the store itself"):
        restore_store(file, address, force=True)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        restore_store(tmp_path / "missing", address)
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        restore_store(tmp_path, address)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UserError, match="is not a SQLite file"):
        restore_store(tmp_path / "text", address)
    whole = (tmp_path / "b").read_bytes()
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"half.*(cannot be used|is damaged)"):
        restore_store(tmp_path / "half", address, force=True)
    sqlite3.connect(tmp_path / "empty").execute("CREATE TABLE one (two)").connection.close()
    with pytest.raises(UserError, match="is no store of interlatent-live"):
        restore_store(tmp_path / "empty", address)
    newer = sqlite3.connect(tmp_path / "b")
    newer.execute("UPDATE alembic_version SET version_num = '9999'")
    newer.commit()
    newer.close()
    with pytest.raises(UserError, match="written by a newer version \\(schema 9999\\)"):
        restore_store(tmp_path / "b", address, force=True)
    assert len(said(address)[1]) == 2, "nothing of that touched the store"
    assert not list(tmp_path.glob(".*")), "nothing is left behind"


@pytest.mark.skipif(not POSTGRES, reason="no PostgreSQL given")
def test_a_database_without_a_store_is_told_from_one_that_is_away(tmp_path):
    engine = sa.create_engine(POSTGRES.replace("postgresql://", "postgresql+psycopg://", 1))
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE IF EXISTS alembic_version"))
    engine.dispose()
    with pytest.raises(UserError, match="there is no store in that database"):
        backup_store(POSTGRES, tmp_path / "b")
    with pytest.raises(UserError, match="can't be used now"):
        backup_store("postgresql://nobody@127.0.0.1:1/none", tmp_path / "b")


def test_the_commands(tmp_path):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "interlatent_live", "store", *arguments,
             "--set", f"console.store={sqlite_url(tmp_path)}"],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    store = open_store(sqlite_url(tmp_path))
    fill(store)
    store.close()
    done = run("backup", str(tmp_path / "b"))
    assert "1 runs, 2 claims in 2 versions" in done.stdout, done.stderr
    refused = run("restore", str(tmp_path / "b"))
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: the store sqlite:///")
    assert run("restore", str(tmp_path / "b"), "--force").stdout.startswith("restored 1 runs")
