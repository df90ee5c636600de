"""On-disk structures of the volume file: pure structs, no meaning, no I/O."""
