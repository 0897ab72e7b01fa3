"""The store on SQLAlchemy: SQLite with a write-ahead log by default, PostgreSQL by address.

The schema is brought up to date when the store is opened, by one process at a time. A database that
a newer version has written is refused rather than guessed at.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import alembic.command
import alembic.config
import alembic.util
import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from interlatent_live.errors import UserError
from interlatent_live.feed.documents import (
    AgentsDocument,
    AgentStatus,
    ClaimsDocument,
    CostsDocument,
    NarrationDocument,
    document_payload,
)
from interlatent_live.store import tables as t
from interlatent_live.store.port import ClaimFilter, ClaimRow, Correction, StoreError
from interlatent_live.stream import FeatureAddress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import msgspec
    from sqlalchemy.engine import Connection, Engine

MIGRATIONS: Final = Path(__file__).parent / "migrations"
BUSY_MS: Final = 5000
_LOCK: Final = 28_410_016
"""Number of PostgreSQL's advisory lock under which a schema is changed."""
_PRUNE_EVERY: Final = 200
_RUN_AGAIN_NS: Final = 60 * 10**9
"""A run is written down again after this even when nothing is new: somebody still sees it."""
_COSTS_KEPT: Final = 1000
_WRITING: Final = "interlatent_writing"
_KEPT: Final = (AgentsDocument, ClaimsDocument, CostsDocument, NarrationDocument)


def claim_id(run_id: str, address: str) -> str:
    """The stable name of a run's claim about a feature: 16 hexadecimal digits of a hash."""
    return hashlib.sha256(f"{run_id}\n{address}".encode()).hexdigest()[:16]


def open_store(url: str, *, runs_kept: int = 200, narrations_kept: int = 10_000) -> SqlClaimStore:
    """Open a store and bring its schema up to date.

    Args:
        url: ``sqlite:////PATH`` or ``postgresql://USER@HOST/DATABASE``.
        runs_kept: newest runs that are kept; older ones go unless people corrected their claims.
        narrations_kept: newest narrated intervals that are kept, over all runs.

    Raises:
        StoreError: when it cannot be opened, is locked, or a newer version has written it.
    """
    engine = make_engine(url)
    try:
        with explained(engine):
            migrate(engine)
    except BaseException:
        engine.dispose()
        raise
    return SqlClaimStore(engine, runs_kept=runs_kept, narrations_kept=narrations_kept)


class SqlClaimStore:
    """See :class:`interlatent_live.store.port.ClaimStore`; made by :func:`open_store`."""

    def __init__(self, engine: Engine, *, runs_kept: int, narrations_kept: int) -> None:
        self._engine = engine
        self._runs_kept = runs_kept
        self._narrations_kept = narrations_kept
        self._taken = 0
        self._runs_told: dict[str, _Told] = {}

    # -- in ----------------------------------------------------------------------------------------

    def take(self, document: msgspec.Struct) -> None:
        """Keep what a feed document says; documents that are not kept are ignored."""
        if not isinstance(document, _KEPT):
            return
        told = self._runs_told
        with self._writing() as connection:
            match document:
                case AgentsDocument(published_ns=now):
                    told = _told(document, told)
                    for one in told.values():
                        if one.at_ns == now:
                            _take_run(connection, one.status, now)
                case ClaimsDocument():
                    _take_claims(connection, document)
                case CostsDocument():
                    _take_costs(connection, document)
                case NarrationDocument():
                    _take_narration(connection, document)
            self._taken += 1
            if self._taken % _PRUNE_EVERY == 0:
                self._prune(connection)
        self._runs_told = told

    def recollect(
        self, run_id: str, hook_point: str, verdicts: Mapping[str, Sequence[Mapping[str, Any]]]
    ) -> None:
        """Fill in verdicts by address; claims that were never published are left out."""
        del hook_point  # the address has it
        with self._writing() as connection:
            for address, events in verdicts.items():
                one = claim_id(run_id, address)
                if connection.scalar(sa.select(t.claims.c.id).where(t.claims.c.id == one)) is None:
                    continue
                for event in events:
                    _take_verdict(
                        connection,
                        one,
                        version=event["version"],
                        at_ns=event["at_ns"],
                        verdict=event["verdict"],
                        reason=event["reason"],
                        balanced_accuracy=event["balanced_accuracy"],
                    )

    def correct(self, correction: Correction) -> Correction:
        """Keep a person's word on the claim's newest version.

        Raises:
            UserError: when there is no such claim, or the id was used for another word.
        """
        with self._writing() as connection:
            row = connection.execute(
                sa.select(t.claims.c.version, t.claims.c.verdict).where(
                    t.claims.c.id == correction.claim_id
                )
            ).one_or_none()
            if row is None:
                raise UserError(f"there is no claim {correction.claim_id}")
            known = (
                connection.execute(
                    sa.select(t.corrections).where(t.corrections.c.id == correction.id)
                )
                .mappings()
                .one_or_none()
            )
            if known is not None:
                kept = Correction(**known)
                said = ("claim_id", "kind", "person", "note", "label")
                if any(getattr(kept, name) != getattr(correction, name) for name in said):
                    raise UserError(f"the id {correction.id} was used for another correction")
                return kept
            kept = replace(correction, version=row.version, verdict=row.verdict)
            connection.execute(sa.insert(t.corrections).values(**asdict(kept)))
        return kept

    # -- out ---------------------------------------------------------------------------------------

    def runs(self, *, after: str = "", limit: int = 100) -> list[dict[str, Any]]:
        """Runs by id, later than ``after``."""
        query = (
            sa.select(t.runs).where(t.runs.c.run_id > after).order_by(t.runs.c.run_id).limit(limit)
        )
        return self._rows(query)

    def run(self, run_id: str) -> dict[str, Any] | None:
        """One run."""
        rows = self._rows(sa.select(t.runs).where(t.runs.c.run_id == run_id))
        return rows[0] if rows else None

    def claims(self, wanted: ClaimFilter, *, after: str = "", limit: int = 100) -> list[ClaimRow]:
        """Claims by id, later than ``after``."""
        query = sa.select(t.claims).where(t.claims.c.id > after)
        for name, value in asdict(wanted).items():
            if value:
                query = query.where(t.claims.c[name] == value)
        return [ClaimRow(**row) for row in self._rows(query.order_by(t.claims.c.id).limit(limit))]

    def claim(self, claim_id: str) -> ClaimRow | None:
        """One claim."""
        rows = self._rows(sa.select(t.claims).where(t.claims.c.id == claim_id))
        return ClaimRow(**rows[0]) if rows else None

    def history(self, claim_id: str) -> dict[str, list[dict[str, Any]]]:
        """Its ``versions``, ``verdicts`` and ``corrections``, oldest first."""
        orders = {
            "versions": (t.claim_versions, t.claim_versions.c.created_ns),
            "verdicts": (t.verdicts, t.verdicts.c.at_ns),
            "corrections": (t.corrections, t.corrections.c.at_ns),
        }
        return {
            name: self._rows(sa.select(table).where(table.c.claim_id == claim_id).order_by(order))
            for name, (table, order) in orders.items()
        }

    def narration(
        self, *, run_id: str = "", before: int | None = None, limit: int = 100
    ) -> list[dict[str, Any]]:
        """Narrated intervals, newest first, with numbers smaller than ``before``."""
        query = sa.select(t.narrations)
        if run_id:
            query = query.where(t.narrations.c.run_id == run_id)
        if before is not None:
            query = query.where(t.narrations.c.number < before)
        return self._rows(query.order_by(t.narrations.c.number.desc()).limit(limit))

    def costs(self, *, limit: int = 100) -> list[dict[str, Any]]:
        """What each explainer process has spent, newest first."""
        return self._rows(sa.select(t.costs).order_by(t.costs.c.since_ns.desc()).limit(limit))

    def close(self) -> None:
        """Give connections back."""
        self._engine.dispose()

    # -- inside ------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        engine = self._engine.execution_options(**{_WRITING: True})
        with explained(engine), engine.begin() as connection:
            yield connection

    def _rows(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        with explained(self._engine), self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def _prune(self, connection: Connection) -> None:
        newest = connection.scalar(sa.select(sa.func.max(t.narrations.c.number))) or 0
        old = t.narrations.c.number <= newest - self._narrations_kept
        connection.execute(sa.delete(t.narrations).where(old))
        since = connection.scalar(
            sa.select(t.costs.c.since_ns)
            .order_by(t.costs.c.since_ns.desc())
            .offset(_COSTS_KEPT)
            .limit(1)
        )
        if since is not None:
            connection.execute(sa.delete(t.costs).where(t.costs.c.since_ns <= since))
        kept = sa.select(t.runs.c.run_id).order_by(t.runs.c.last_seen_ns.desc())
        gone = set(connection.scalars(kept.offset(self._runs_kept).limit(1000)))
        corrected = sa.select(t.claims.c.run_id).join(t.corrections).distinct()
        gone -= set(connection.scalars(corrected))
        if gone:
            connection.execute(sa.delete(t.claims).where(t.claims.c.run_id.in_(gone)))
            connection.execute(sa.delete(t.narrations).where(t.narrations.c.run_id.in_(gone)))
            connection.execute(sa.delete(t.runs).where(t.runs.c.run_id.in_(gone)))


@dataclass(frozen=True, slots=True)
class _Told:
    """What was written down of a run, and when it was published."""

    status: AgentStatus
    at_ns: int

    def still(self, status: AgentStatus, now_ns: int) -> bool:
        """Whether there is nothing new to write down: most agents of a large fleet are silent."""
        recent = 0 <= now_ns - self.at_ns < _RUN_AGAIN_NS
        return recent and _books(self.status) == _books(status)


def _books(status: AgentStatus) -> tuple[Any, ...]:
    losses = (status.dropped_declared, status.gaps_undeclared)
    return (status.boot_id, status.ended, status.steps_received, status.steps_encoded, *losses)


def _told(document: AgentsDocument, before: Mapping[str, _Told]) -> dict[str, _Told]:
    """The newest word on each run of a document; those with ``at_ns`` of now are to be written."""
    now = document.published_ns
    found: dict[str, _Told] = {}
    for status in document.agents:
        old = before.get(status.run_id)
        same = old is not None and old.still(status, now)
        found[status.run_id] = old if old is not None and same else _Told(status, now)
    return found


def _take_run(connection: Connection, agent: AgentStatus, now_ns: int) -> None:
    payload = document_payload(agent)
    values = {
        "agent": agent.agent,
        "environment": agent.environment,
        "policy_hash": agent.policy_hash,
        "boot_id": agent.boot_id,
        "last_seen_ns": agent.last_step_ns or now_ns,
        "ended": agent.ended,
        "steps_received": agent.steps_received,
        "document": payload,
    }
    _upsert(
        connection, t.runs, {"run_id": agent.run_id}, values, only_new={"first_seen_ns": now_ns}
    )


def _take_claims(connection: Connection, document: ClaimsDocument) -> None:
    for claim in document.claims:
        address = FeatureAddress.parse(claim["address"])
        one = claim_id(document.run_id, claim["address"])
        updated = connection.scalar(sa.select(t.claims.c.updated_ns).where(t.claims.c.id == one))
        if updated is None or document.published_ns >= updated:
            values = {
                "run_id": document.run_id,
                "hook_point": address.hook_point,
                "feature": address.index,
                "address": claim["address"],
                "version": claim["version"],
                "verdict": claim["verdict"],
                "updated_ns": document.published_ns,
                "document": claim,
            }
            _upsert(connection, t.claims, {"id": one}, values)
        _take_version(connection, one, claim)
        if claim.get("challenger") is not None:
            _take_version(connection, one, claim["challenger"])


def _take_version(connection: Connection, one: str, claim: Mapping[str, Any]) -> None:
    """What was said, and the verdict on it."""
    version = {"claim_id": one, "version": claim["version"], "created_ns": claim["created_ns"]}
    names = ("label", "description", "predicate", "writer", "prompt_hash")
    _insert_once(connection, t.claim_versions, version, {name: claim[name] for name in names})
    _take_verdict(
        connection,
        one,
        version=claim["version"],
        at_ns=claim["judged_ns"],
        verdict=claim["verdict"],
        reason=claim["reason"],
        balanced_accuracy=claim["balanced_accuracy"],
    )


def _take_verdict(
    connection: Connection,
    one: str,
    *,
    version: int,
    at_ns: int,
    verdict: str,
    reason: str,
    balanced_accuracy: float | None,
) -> None:
    key = {"claim_id": one, "version": version, "at_ns": at_ns, "verdict": verdict}
    rest = {"reason": reason, "balanced_accuracy": balanced_accuracy}
    _insert_once(connection, t.verdicts, key, rest)


def _take_costs(connection: Connection, document: CostsDocument) -> None:
    values = {
        "requests": document.requests,
        "dollars": document.dollars,
        "updated_ns": document.published_ns,
        "document": document_payload(document),
    }
    key = {"writer": document.writer, "since_ns": document.since_ns}
    _upsert(connection, t.costs, key, values)


def _take_narration(connection: Connection, document: NarrationDocument) -> None:
    payload = document_payload(document)
    key = {name: payload[name] for name in ("run_id", "env", "published_ns")}
    names = ("agent", "episode", "from_t", "to_t", "lines", "trigger", "truth")
    rest = {name: payload[name] for name in names}
    _insert_once(connection, t.narrations, key, rest)


def _upsert(
    connection: Connection,
    table: sa.Table,
    key: Mapping[str, Any],
    values: Mapping[str, Any],
    *,
    only_new: Mapping[str, Any] | None = None,
) -> None:
    row = {**key, **values, **(only_new or {})}
    insert = _insert(connection, table).values(row)
    connection.execute(insert.on_conflict_do_update(index_elements=list(key), set_=dict(values)))


def _insert_once(
    connection: Connection, table: sa.Table, key: Mapping[str, Any], rest: Mapping[str, Any]
) -> None:
    insert = _insert(connection, table).values({**key, **rest})
    connection.execute(insert.on_conflict_do_nothing(index_elements=list(key)))


def _insert(connection: Connection, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    """One statement that inserts or not: of two that look first, both would insert."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)


# ----------------------------------------------------------------------------------- the database


def make_engine(url: str) -> Engine:
    """An engine that speaks to a database as the store does.

    Raises:
        StoreError: when the address is none, or its driver is missing.
    """
    # The driver is ours to choose; people write the address that every tool takes.
    address = url.replace("postgresql://", "postgresql+psycopg://", 1)
    try:
        if not address.startswith("sqlite:"):
            return sa.create_engine(address, pool_pre_ping=True)
        engine = sa.create_engine(address, connect_args={"timeout": BUSY_MS / 1000})
    except (ArgumentError, NoSuchModuleError) as error:
        raise StoreError(f"console.store is no address of a database: {error}") from error
    except ModuleNotFoundError as error:
        raise StoreError(
            f"PostgreSQL needs {error.name}: pip install 'interlatent-live[postgres]'"
        ) from error

    @sa.event.listens_for(engine, "connect")
    def _settings(connection: Any, _record: Any) -> None:
        # Python's driver would begin transactions by itself, and late; see _begin.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # Taking the lock at once waits for another writer; taking it late fails instead.
        writing = connection.get_execution_options().get(_WRITING, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    return engine


def migrate(engine: Engine, revision: str = "head") -> None:
    """Bring the schema up to a revision; to the newest one, which alone the store can use.

    Raises:
        StoreError: when a newer version has written it.
    """
    config = _alembic()
    with engine.execution_options(**{_WRITING: True}).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:n)"), {"n": _LOCK})
        current = known_revision(connection)
        if current != ScriptDirectory.from_config(config).get_current_head():
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, revision)


def known_revision(connection: Connection) -> str | None:
    """The schema of a database; ``None`` where no store is.

    Raises:
        StoreError: when it is of a newer version.
    """
    current = MigrationContext.configure(connection).get_current_revision()
    script = ScriptDirectory.from_config(_alembic())
    if current is not None and current not in {one.revision for one in script.walk_revisions()}:
        raise StoreError(
            f"the store was written by a newer version (schema {current}); upgrade "
            "interlatent-live, or set console.store to another database"
        )
    return current


def _alembic() -> alembic.config.Config:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


@contextmanager
def explained(engine: Engine) -> Iterator[None]:
    """Turn the database's errors into a sentence; the address's password is never in it."""
    try:
        yield
    except DBAPIError as error:
        where = engine.url.render_as_string(hide_password=True)
        reason = str(error.orig).strip().partition("\n")[0]
        raise StoreError(
            f"the store {where} can't be used now: {reason}; make room or end what holds it"
        ) from error
    except SQLAlchemyError as error:
        where = engine.url.render_as_string(hide_password=True)
        raise StoreError(f"the store {where} failed: {error}") from error
