"""Composition root: configuration, daemon, command line."""

__version__ = "0.1.0.dev0"
