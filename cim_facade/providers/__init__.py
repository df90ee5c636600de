"""Instances and associations, computed at each call. One file per family, each with its table ``PROVIDERS``."""
