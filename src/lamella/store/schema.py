"""The six tables. Kinds are values in a column, so adding one changes nothing here.

Documents are JSON text as it was encoded: TEXT in SQLite, and in PostgreSQL ``json`` rather than ``jsonb``, which would
reorder keys (an environment has an order) and refuse ``\\u0000``. Moments are RFC 3339 text in UTC with microseconds, which
sorts as time does in both. ``migrations/`` makes these tables; a test holds that it makes exactly these.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
)

METADATA = MetaData()

# Sorted byte by byte, whatever the database's locale is: pages follow the order of ids.
Id = Text().with_variant(Text(collation="C"), "postgresql")
Document = Text().with_variant(JSON(), "postgresql")
Number = BigInteger().with_variant(Integer(), "sqlite")

RESOURCES = Table(
    "resources",
    METADATA,
    Column("kind", Text, nullable=False),
    Column("id", Id, primary_key=True),
    Column("name", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("labels", Document, nullable=False),
    Column("generation", Number, nullable=False),
    Column("revision", Number, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("deleted_at", Text),
    Column("spec", Document, nullable=False),
    Column("status", Document, nullable=False),
    UniqueConstraint("kind", "project", "name", name="resources_name"),
    Index("resources_kind_id", "kind", "id"),
)

# The newest row is never pruned: its revision is the counter, so there is no other one to disagree with.
CHANGES = Table(
    "changes",
    METADATA,
    Column("revision", Number, primary_key=True, autoincrement=False),
    Column("at", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("id", Id, nullable=False),
    Column("project", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("resource", Document, nullable=False),
)

CLAIMS = Table(
    "claims",
    METADATA,
    Column("space", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("owner", Id, nullable=False),
    PrimaryKeyConstraint("space", "key"),
    Index("claims_owner", "owner"),
)

# Amounts add up within an hour, so that the table grows with time and subjects, not with how often somebody measures.
USAGE = Table(
    "usage",
    METADATA,
    Column("subject", Id, nullable=False),
    Column("meter", Text, nullable=False),
    Column("hour", Text, nullable=False),
    Column("amount", Float(53), nullable=False),
    PrimaryKeyConstraint("subject", "meter", "hour"),
)

AUDIT = Table(
    "audit",
    METADATA,
    Column("number", Number, primary_key=True, autoincrement=True),
    Column("at", Text, nullable=False),
    Column("principal", Text, nullable=False),
    Column("verb", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("allowed", Boolean, nullable=False),
    Column("detail", Text, nullable=False),
)

# ``expires`` is in seconds since 1970 by the database's clock.
LEASES = Table(
    "leases",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("expires", Float(53), nullable=False),
)
