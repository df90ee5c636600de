"""Composition root: configuration, daemon, command line."""
