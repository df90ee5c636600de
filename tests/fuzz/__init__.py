"""Fuzz harnesses of the parsers of strangers' bytes. ``python -m tests.fuzz --help``."""
