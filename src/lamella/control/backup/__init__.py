"""Backups as control sees them: intent in rows, carried out by operations, by a person's wish or a policy's."""
