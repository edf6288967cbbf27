"""Processors: what there is, and who gets which."""
