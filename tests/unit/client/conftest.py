"""A busy machine is no reason for a property to fail: no timed assertions."""

from hypothesis import settings

settings.register_profile("lamella", deadline=None)
settings.load_profile("lamella")
