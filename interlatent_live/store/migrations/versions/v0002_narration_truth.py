"""What had the narrator speak, and how true its lines were."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add two columns; what was narrated before has neither."""
    op.add_column("narrations", sa.Column("trigger", sa.JSON(none_as_null=True)))
    op.add_column("narrations", sa.Column("truth", sa.JSON(none_as_null=True)))
