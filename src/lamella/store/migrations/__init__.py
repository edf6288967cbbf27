"""The steps of the schema, for Alembic."""
