"""The native volume file (``.tvol``): one family per file. See docs/on-disk-format.md."""
