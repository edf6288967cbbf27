"""Backups: a well-kept engine's repositories, what is read into them, and how it comes back."""
