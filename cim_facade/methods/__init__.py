"""Extrinsic methods. One file per service, each with its table ``METHODS``."""
