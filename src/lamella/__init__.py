"""Lamella: one thin layer between machines and everything that runs on them."""

__version__ = "0.1.0"
