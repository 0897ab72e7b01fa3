"""Backups of the store: one file that any store can be restored from, whatever database it is in.

A backup is a SQLite file with the store's own tables. From SQLite it is made by SQLite's backup
interface, which takes a consistent state while others write; from PostgreSQL it is the rows of one
read-only, repeatable-read transaction. That it is rows and no dump of a server means that it needs
no client programs of the server's version, opens with any tool that reads SQLite, restores into the
other kind of database too (so it is also the way from SQLite to PostgreSQL), and passes through the
same migrations as a store of its age does.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from interlatent_live.errors import UserError
from interlatent_live.store import tables as t
from interlatent_live.store.sql import explained, known_revision, make_engine, migrate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection, Engine

_SQLITE: Final = "sqlite:///"
_HEADER: Final = b"SQLite format 3\x00"
_ROWS_AT_ONCE: Final = 500
_BUSY_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Contents:
    """What a backup or a store holds."""

    revision: str
    """Of its schema."""
    rows: dict[str, int]
    """By table."""


def backup_store(url: str, file: Path, *, force: bool = False) -> Contents:
    """Write a store into a file while services may go on writing to it.

    Args:
        url: as :func:`interlatent_live.store.open_store` takes it; its schema is left as it is.
        file: is put in place whole, readable by its owner only.
        force: replace a file that is there.

    Raises:
        UserError: when there is no store, it is of a newer version, or the file cannot be written.
    """
    if not file.parent.is_dir():
        raise UserError(f"there is no folder {file.parent} to write {file.name} into; make it")
    if file.exists() and not force:
        raise UserError(f"{file} is there already; name another file, or replace it with --force")
    source = _sqlite_file(url)
    if source is not None and not source.exists():
        raise UserError(f"there is no store at {source}: no console has run here yet")
    if source is not None and file.exists() and source.samefile(file):
        raise UserError(f"{file} is the store itself; name another file for its backup")
    with _temporary(file.parent, file.name) as made:
        if source is not None:
            _copy_sqlite(source, made)
        else:
            _rows_into_file(url, made)
        # In a file of its own, without a log beside it, it can also be read where nobody can write.
        with _damage_told(made), contextlib.closing(sqlite3.connect(made)) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")
        contents = contents_of(made)
        made.replace(file)
    return contents


def restore_store(file: Path, url: str, *, force: bool = False) -> Contents:
    """Put a backup in the place of a store; an older one is brought up to date on the way.

    The backup itself is not changed, and the store is replaced in one transaction.

    Raises:
        UserError: when the file is no backup, damaged, or of a newer version, or when there is a
            store with something in it and not ``force``.
    """
    contents_of(file)
    target = _sqlite_file(url)
    if target is not None and target.exists() and target.samefile(file):
        raise UserError(f"{file} is the store itself; there is nothing to restore")
    with tempfile.TemporaryDirectory() as folder:
        newest = Path(folder) / "store.sqlite3"
        _copy_sqlite(file, newest)
        with _opened(f"{_SQLITE}{newest}") as engine:
            migrate(engine)
        _refuse_to_replace(url, force=force)
        if target is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy_sqlite(newest, target)
        else:
            _file_into_rows(newest, url)
        return contents_of(newest)


def contents_of(file: Path) -> Contents:
    """What a backup holds.

    Raises:
        UserError: when it is not there, no backup, damaged, or of a newer version.
    """
    try:
        with file.open("rb") as opened:
            header = opened.read(len(_HEADER))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    if header != _HEADER:
        raise UserError(f"{file} is no backup of a store: it is not a SQLite file")
    engine = sa.create_engine("sqlite://", creator=lambda: _readable(file))
    try:
        with _damage_told(file), engine.connect() as connection:
            found = connection.scalar(sa.text("PRAGMA quick_check"))
            if found != "ok":
                raise UserError(f"{file} is damaged ({found}); take another backup")
            return _contents(connection, str(file))
    finally:
        engine.dispose()


def _readable(file: Path) -> sqlite3.Connection:
    """A connection that changes nothing, not even how the file is written."""
    return sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_S)


def _contents(connection: Connection, name: str) -> Contents:
    revision = known_revision(connection)
    if revision is None:
        raise UserError(f"{name} is no store of interlatent-live: its tables are missing")
    there = sa.inspect(connection).get_table_names()
    rows = {
        table.name: connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0
        for table in t.metadata.sorted_tables
        if table.name in there
    }
    return Contents(revision, rows)


def _refuse_to_replace(url: str, *, force: bool) -> None:
    target = _sqlite_file(url)
    if force or (target is not None and not target.exists()):
        return
    with _opened(url) as engine, engine.connect() as connection:
        if known_revision(connection) is None:
            return
        held = _contents(connection, "the store").rows
    if any(held.values()):
        where = engine.url.render_as_string(hide_password=True)
        raise UserError(
            f"the store {where} holds {held['runs']} runs and {held['claims']} claims; stop the "
            "console and replace them with --force"
        )


# -------------------------------------------------------------------------------------- SQLite


def _sqlite_file(url: str) -> Path | None:
    return Path(url.removeprefix(_SQLITE)) if url.startswith(_SQLITE) else None


def _copy_sqlite(source: Path, target: Path) -> None:
    """One database over another by SQLite's backup interface, in one transaction of the target."""
    with (
        _damage_told(source),
        contextlib.closing(_readable(source)) as reading,
        contextlib.closing(sqlite3.connect(target, timeout=_BUSY_S)) as writing,
    ):
        # All pages at once: in a write-ahead log a reader keeps nobody from writing.
        reading.backup(writing, pages=-1)
    target.chmod(0o600)


@contextlib.contextmanager
def _damage_told(file: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.DatabaseError, sa.exc.DBAPIError) as error:
        reason = getattr(error, "orig", error)
        raise UserError(f"{file} cannot be used: {reason}; take another backup") from error


@contextlib.contextmanager
def _temporary(folder: Path, name: str) -> Iterator[Path]:
    """A file beside its final place, gone where it was not moved there, with what SQLite adds."""
    try:
        descriptor, made = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror}") from error
    os.close(descriptor)
    try:
        yield Path(made)
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(f"{made}{suffix}").unlink(missing_ok=True)


# ------------------------------------------------------------------------------ other databases


@contextlib.contextmanager
def _opened(url: str) -> Iterator[Engine]:
    engine = make_engine(url)
    try:
        with explained(engine):
            yield engine
    finally:
        engine.dispose()


def _rows_into_file(url: str, file: Path) -> None:
    """All rows of a server's store, as they were at one moment, under the schema that it has."""
    with _opened(url) as server, _opened(f"{_SQLITE}{file}") as made:
        steady = server.execution_options(isolation_level="REPEATABLE READ")
        with steady.connect() as reading, reading.begin():
            reading.execute(sa.text("SET TRANSACTION READ ONLY"))
            revision = known_revision(reading)
            if revision is None:
                raise UserError("there is no store in that database: no console has run there yet")
            migrate(made, revision)
            with made.begin() as writing:
                _copy_rows(reading, writing)


def _file_into_rows(file: Path, url: str) -> None:
    """All rows of a file in the place of those of a server's store, in one transaction."""
    with _opened(url) as server, _opened(f"{_SQLITE}{file}") as source:
        migrate(server)
        with source.connect() as reading, server.begin() as writing:
            for table in reversed(t.metadata.sorted_tables):
                writing.execute(sa.delete(table))
            _copy_rows(reading, writing)
            for table in t.metadata.sorted_tables:
                if "number" in table.c:
                    # Rows came with their numbers; the next one must be another.
                    newest = sa.select(sa.func.max(table.c.number)).scalar_subquery()
                    sequence = sa.func.pg_get_serial_sequence(table.name, "number")
                    writing.execute(
                        sa.select(
                            sa.func.setval(
                                sequence, sa.func.coalesce(newest, 1), newest.is_not(None)
                            )
                        )
                    )


def _copy_rows(source: Connection, target: Connection) -> None:
    """Every table's rows, parents first; both have the same schema."""
    for table in t.metadata.sorted_tables:
        read, written = _reflected(source, table.name), _reflected(target, table.name)
        rows = source.execution_options(yield_per=_ROWS_AT_ONCE).execute(sa.select(read))
        for some in rows.mappings().partitions(_ROWS_AT_ONCE):
            target.execute(sa.insert(written), [dict(row) for row in some])


def _reflected(connection: Connection, name: str) -> sa.Table:
    """A table as it is there, which may be of an older schema than this version's."""
    table = sa.Table(name, sa.MetaData(), autoload_with=connection, resolve_fks=False)
    for column in table.columns:
        if isinstance(column.type, sa.JSON):
            column.type.none_as_null = True
    return table
