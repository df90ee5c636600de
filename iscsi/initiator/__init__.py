"""A small iSCSI initiator on the same wire codecs."""
