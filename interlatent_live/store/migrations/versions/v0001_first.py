"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _number() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _claim_id() -> sa.Column[str]:
    return sa.Column(
        "claim_id", sa.String(64), sa.ForeignKey("claims.id", ondelete="CASCADE"), nullable=False
    )


def upgrade() -> None:
    """Make every table."""
    op.create_table(
        "runs",
        sa.Column("run_id", sa.String(256), primary_key=True),
        sa.Column("agent", sa.Text, nullable=False),
        sa.Column("environment", sa.Text, nullable=False),
        sa.Column("policy_hash", sa.String(128), nullable=False),
        sa.Column("boot_id", sa.String(256), nullable=False),
        sa.Column("first_seen_ns", sa.BigInteger, nullable=False),
        sa.Column("last_seen_ns", sa.BigInteger, nullable=False),
        sa.Column("ended", sa.Boolean, nullable=False),
        sa.Column("steps_received", sa.BigInteger, nullable=False),
        sa.Column("document", sa.JSON, nullable=False),
    )
    op.create_table(
        "claims",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("run_id", sa.String(256), nullable=False),
        sa.Column("hook_point", sa.Text, nullable=False),
        sa.Column("feature", sa.Integer, nullable=False),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("verdict", sa.String(32), nullable=False),
        sa.Column("updated_ns", sa.BigInteger, nullable=False),
        sa.Column("document", sa.JSON, nullable=False),
    )
    op.create_index("claims_by_run", "claims", ["run_id", "id"])
    op.create_index("claims_by_verdict", "claims", ["verdict", "id"])
    op.create_index("claims_by_address", "claims", ["address"])
    op.create_table(
        "claim_versions",
        sa.Column("number", _number(), primary_key=True, autoincrement=True),
        _claim_id(),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("predicate", sa.Text),
        sa.Column("writer", sa.Text, nullable=False),
        sa.Column("prompt_hash", sa.String(128), nullable=False),
        sa.UniqueConstraint("claim_id", "version", "created_ns"),
    )
    op.create_table(
        "verdicts",
        sa.Column("number", _number(), primary_key=True, autoincrement=True),
        _claim_id(),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("at_ns", sa.BigInteger, nullable=False),
        sa.Column("verdict", sa.String(32), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("balanced_accuracy", sa.Float),
        sa.UniqueConstraint("claim_id", "version", "at_ns", "verdict"),
    )
    op.create_table(
        "costs",
        sa.Column("writer", sa.String(256), primary_key=True),
        sa.Column("since_ns", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("dollars", sa.Float, nullable=False),
        sa.Column("updated_ns", sa.BigInteger, nullable=False),
        sa.Column("document", sa.JSON, nullable=False),
    )
    op.create_table(
        "narrations",
        sa.Column("number", _number(), primary_key=True, autoincrement=True),
        sa.Column("run_id", sa.String(256), nullable=False),
        sa.Column("agent", sa.Text, nullable=False),
        sa.Column("env", sa.Integer, nullable=False),
        sa.Column("episode", sa.BigInteger, nullable=False),
        sa.Column("from_t", sa.BigInteger, nullable=False),
        sa.Column("to_t", sa.BigInteger, nullable=False),
        sa.Column("published_ns", sa.BigInteger, nullable=False),
        sa.Column("lines", sa.JSON, nullable=False),
        sa.UniqueConstraint("run_id", "env", "published_ns"),
    )
    op.create_table(
        "corrections",
        sa.Column("id", sa.String(64), primary_key=True),
        _claim_id(),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("person", sa.Text, nullable=False),
        sa.Column("at_ns", sa.BigInteger, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("verdict", sa.String(32), nullable=False),
    )
    op.create_index("corrections_by_claim", "corrections", ["claim_id", "at_ns"])
