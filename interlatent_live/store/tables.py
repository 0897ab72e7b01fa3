"""The tables, as SQLAlchemy Core describes them; the migrations make them."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

# SQLite numbers rows by itself only in a column of its plain INTEGER type.
_NUMBER = BigInteger().with_variant(Integer(), "sqlite")
_OF_CLAIM = ("claims.id",)


def _claim_id() -> Column[str]:
    return Column(
        "claim_id", String(64), ForeignKey(*_OF_CLAIM, ondelete="CASCADE"), nullable=False
    )


runs = Table(
    "runs",
    metadata,
    Column("run_id", String(256), primary_key=True),
    Column("agent", Text, nullable=False),
    Column("environment", Text, nullable=False),
    Column("policy_hash", String(128), nullable=False),
    Column("boot_id", String(256), nullable=False),
    Column("first_seen_ns", BigInteger, nullable=False),
    Column("last_seen_ns", BigInteger, nullable=False),
    Column("ended", Boolean, nullable=False),
    Column("steps_received", BigInteger, nullable=False),
    Column("document", JSON, nullable=False),
)

claims = Table(
    "claims",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("run_id", String(256), nullable=False),
    Column("hook_point", Text, nullable=False),
    Column("feature", Integer, nullable=False),
    Column("address", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("verdict", String(32), nullable=False),
    Column("updated_ns", BigInteger, nullable=False),
    Column("document", JSON, nullable=False),
    Index("claims_by_run", "run_id", "id"),
    Index("claims_by_verdict", "verdict", "id"),
    Index("claims_by_address", "address"),
)

claim_versions = Table(
    "claim_versions",
    metadata,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    _claim_id(),
    Column("version", Integer, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("label", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("predicate", Text),
    Column("writer", Text, nullable=False),
    Column("prompt_hash", String(128), nullable=False),
    # An explainer that was restarted numbers from 0 again; its texts are other ones.
    UniqueConstraint("claim_id", "version", "created_ns"),
)

verdicts = Table(
    "verdicts",
    metadata,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    _claim_id(),
    Column("version", Integer, nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("verdict", String(32), nullable=False),
    Column("reason", Text, nullable=False),
    Column("balanced_accuracy", Float),
    UniqueConstraint("claim_id", "version", "at_ns", "verdict"),
)

costs = Table(
    "costs",
    metadata,
    Column("writer", String(256), primary_key=True),
    Column("since_ns", BigInteger, primary_key=True, autoincrement=False),
    Column("requests", BigInteger, nullable=False),
    Column("dollars", Float, nullable=False),
    Column("updated_ns", BigInteger, nullable=False),
    Column("document", JSON, nullable=False),
)

narrations = Table(
    "narrations",
    metadata,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    Column("run_id", String(256), nullable=False),
    Column("agent", Text, nullable=False),
    Column("env", Integer, nullable=False),
    Column("episode", BigInteger, nullable=False),
    Column("from_t", BigInteger, nullable=False),
    Column("to_t", BigInteger, nullable=False),
    Column("published_ns", BigInteger, nullable=False),
    Column("lines", JSON, nullable=False),
    Column("trigger", JSON(none_as_null=True)),
    Column("truth", JSON(none_as_null=True)),
    UniqueConstraint("run_id", "env", "published_ns"),
)

corrections = Table(
    "corrections",
    metadata,
    Column("id", String(64), primary_key=True),
    _claim_id(),
    Column("version", Integer, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("person", Text, nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("note", Text, nullable=False),
    Column("label", Text, nullable=False),
    Column("verdict", String(32), nullable=False),
    Index("corrections_by_claim", "claim_id", "at_ns"),
)
