"""Pools, volumes and snapshots as control sees them: intent in rows, made true by their hosts, again and again until it is."""
