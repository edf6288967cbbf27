"""Six tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

ID = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
DOCUMENT = sa.Text().with_variant(sa.JSON(), "postgresql")
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "resources",
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("id", ID, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("labels", DOCUMENT, nullable=False),
        sa.Column("generation", NUMBER, nullable=False),
        sa.Column("revision", NUMBER, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("deleted_at", sa.Text),
        sa.Column("spec", DOCUMENT, nullable=False),
        sa.Column("status", DOCUMENT, nullable=False),
        sa.UniqueConstraint("kind", "project", "name", name="resources_name"),
    )
    op.create_index("resources_kind_id", "resources", ["kind", "id"])
    op.create_table(
        "changes",
        sa.Column("revision", NUMBER, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("id", ID, nullable=False),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("resource", DOCUMENT, nullable=False),
    )
    op.create_table(
        "claims",
        sa.Column("space", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("owner", ID, nullable=False),
        sa.PrimaryKeyConstraint("space", "key"),
    )
    op.create_index("claims_owner", "claims", ["owner"])
    op.create_table(
        "usage",
        sa.Column("subject", ID, nullable=False),
        sa.Column("meter", sa.Text, nullable=False),
        sa.Column("hour", sa.Text, nullable=False),
        sa.Column("amount", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("subject", "meter", "hour"),
    )
    op.create_table(
        "audit",
        sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("principal", sa.Text, nullable=False),
        sa.Column("verb", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("allowed", sa.Boolean, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("expires", sa.Float(53), nullable=False),
    )
