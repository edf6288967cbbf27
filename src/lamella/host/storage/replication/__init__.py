"""Volumes that are kept a second time: by copies of what changed (``async``), or by writing twice (``sync``)."""
