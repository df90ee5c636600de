"""Own minimal MOF: names, types, keys, numbers. One file per family of classes; no descriptions are copied."""
