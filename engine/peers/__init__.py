"""Other twinvols: who they are (``identity``, ``invitation``), and the wire between them (docs/decisions/0023)."""
